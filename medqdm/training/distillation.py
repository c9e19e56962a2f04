"""Distillation: a student that reaches in few steps what the deterministic sampler ends at.

The teacher's trajectory from z_T with gamma = 0 is a function of z_T (SinSR, arXiv:2311.14760), so
the student can learn its end from any place on it: asked at the steps it will be used at, it works
with one of them or with all. Its target may lean to the truth, where fidelity is the aim.
"""

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medqdm.config import DistillationTraining, Task
from medqdm.diffusion.policies import Policy
from medqdm.engine import Engine
from medqdm.models.windows import WindowIndex
from medqdm.sampling import tokens_of_regions
from medqdm.training.diffusion import SamplingModule
from medqdm.training.optimizer import check_finite


class DistillationModule(SamplingModule):
    """Trains the QDM of an engine as a student of itself.

    Args:
        task: its ``training.distillation`` section says how.
        engine: networks and process; its transformer as given is the teacher.
    """

    settings: DistillationTraining

    def __init__(self, task: Task, engine: Engine) -> None:
        super().__init__(task, engine)
        self.settings = task.training.distillation
        self.freeze(self.settings)
        teacher = copy.deepcopy(engine.qdm).requires_grad_(False).eval()
        # no sub-module: the weights of the teacher belong into no checkpoint
        self._teacher = [Engine(task, engine.autoencoder, teacher)]
        schedule = engine.process.schedule
        self.student_steps = schedule.subset(self.settings.student_steps)

    def on_fit_start(self) -> None:
        """Bring the teacher to the student's device."""
        self._teacher[0].to(self.device)

    def training_step(self, batch: dict[str, Any], _batch_idx: int) -> Tensor:
        """Squared errors to the teacher's end and to the truth, at one of the student's steps."""
        hr, lr = batch["hr"], batch["lr"]
        engine = self.engine
        with torch.no_grad():
            z_0 = engine.encode(hr)
            z_lr = engine.encode(engine.upsample(lr))
            index = engine.index(engine.quadtree(lr), z_0)
            states, end = self.trajectory(lr, z_lr, index)
        step = self.student_steps[int(torch.randint(len(self.student_steps), ()))]
        t = torch.full((len(lr),), step, device=lr.device)
        scaled = engine.process.scale_input(states[step], t, index.refined)
        up, down = engine.qdm.streams(scaled, t, engine.condition(lr), index)
        joined = torch.where(index.refined, down, up)
        joined = engine.qdm.correct(joined, scaled, t, engine.condition(lr), index)
        base, scale = engine.frame(scaled, t, z_lr=z_lr, noisy=index.refined)
        up, joined = up.float() * scale + base, joined.float() * scale + base
        to_teacher = _mean_square(joined - end, index.refined)
        to_truth = _mean_square(joined - z_0, index.refined)
        upstream = ((up - z_0) ** 2).mean()
        if engine.qdm.corrector is not None:
            upstream = upstream + _mean_square(joined - z_0, ~index.refined)
        settings = self.settings
        loss = settings.teacher_weight * to_teacher
        loss = loss + settings.truth_weight * (to_truth + upstream)
        self.log_dict({"train/teacher": to_teacher, "train/downstream": to_truth,
                       "train/upstream": upstream})  # fmt: skip
        if settings.image_weight > 0:
            image = self.image_loss(joined, lr, hr)
            loss = loss + settings.image_weight * image
            self.log("train/image", image)
        check_finite(loss, batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def trajectory(
        self,
        lr: Float[Tensor, "b 1 hl wl"],
        z_lr: Float[Tensor, "b c h w"],
        index: WindowIndex,
    ) -> tuple[dict[int, Tensor], Tensor]:
        """The teacher's states at the student's steps, and its end.

        Args:
            lr: LR images in [-1, 1].
            z_lr: their latents, upsampled.
            index: the tokens that the downstream runs.
        """
        teacher = self._teacher[0]
        every = teacher.process.schedule.subset(None)
        first = torch.randn_like(z_lr)
        states = {every[0]: teacher.process.prior(z_lr, first, index.refined)}
        policy = Policy(every, tokens_of_regions(index))
        following = [*every[1:], None]
        for step, t in zip(
            teacher.steps(lr, z_lr, index, lambda _k: first, policy, gamma=0.0),
            following,
            strict=True,
        ):
            if t in self.student_steps:
                states[t] = step.z_s
        return states, step.z_0


def _mean_square(
    error: Float[Tensor, "b c h w"], refined: Bool[Tensor, "b 1 h w"]
) -> Float[Tensor, ""]:
    return (error**2 * refined).sum() / (refined.sum() * error.shape[1]).clamp_min(1)
