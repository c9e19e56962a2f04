"""Networks for regions: what a step gains, and how far the upstream's first estimate is off.

They are trained on ancestral runs of the frozen model over training slices, where the truth is
known (AdaDiffSR's gain regressor, PatchScaler's confidence).
"""

from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from medqdm.config import Task
from medqdm.diffusion.policies import Policy, UpstreamOnly, region_mean
from medqdm.engine import Engine
from medqdm.models.regions import EASY_VARIANCE
from medqdm.models.windows import WINDOW
from medqdm.sampling import tokens_of_regions
from medqdm.training.optimizer import check_finite, make_optimizer

Latent = Float[Tensor, "b c h w"]

EDGE_FLOOR = 0.01  # squared gradient of [-1, 1] images (10 HU a pixel) below which edges are alike
TENTHS = 10  # of the similarity of edges, as fidelity is in tenths of 10 dB


class RegionModule(pl.LightningModule):
    """Trains the networks for regions of an engine; everything else stays frozen.

    Args:
        task: its ``training.regions`` section says how.
        engine: networks and process, with ``regions``.
    """

    def __init__(self, task: Task, engine: Engine) -> None:
        super().__init__()
        assert engine.regions is not None
        self.task = task
        self.settings = task.training.regions
        self.engine = engine
        self.heads = engine.regions
        engine.autoencoder.requires_grad_(False)
        engine.qdm.requires_grad_(False)

    def training_step(self, batch: dict[str, Any], _batch_idx: int) -> Tensor:
        """Both losses, each near its own scale: the confidence's optimum is about eta."""
        gain, confidence = self.losses(batch)
        loss = gain + confidence / EASY_VARIANCE / TENTHS
        check_finite(loss, batch)
        self.log_dict({"train/gain": gain, "train/confidence": confidence})
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def losses(self, batch: dict[str, Any]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """L2 of both gains over a whole run, and ``C r^2 - eta log C`` of the first estimate."""
        hr, lr = batch["hr"], batch["lr"]
        engine = self.engine
        with torch.no_grad():
            z_0 = engine.encode(hr)
            z_lr = engine.encode(engine.upsample(lr))
            index = engine.index(engine.quadtree(lr), z_0)
            noise = [torch.randn_like(z_lr) for _ in engine.process.schedule.subset(None)]
            tokens = tokens_of_regions(index)
            every = engine.process.schedule.subset(None)
            ways = [
                [step.z_0 for step in engine.steps(lr, z_lr, index, noise.__getitem__, policy)]
                for policy in (Policy(every, tokens), UpstreamOnly(every[:1], tokens))
            ]
            estimates, (upstream,) = ways
            targets = self.gains(estimates, z_0, z_lr, lr, hr, index.refined)
            squared = _of_regions((upstream - z_0) ** 2, index.refined)
        counted = (tokens > 0).float()
        total = counted.sum().clamp_min(1)
        gain = torch.zeros((), device=lr.device)
        before = z_lr
        for t, estimate, target in zip(every, estimates, targets, strict=True):
            found = self.heads.gain(estimate, before, z_lr, index.refined, t / max(1, every[0]))
            gain = gain + ((found - target) ** 2 * counted[:, None]).sum() / (2 * total)
            before = estimate
        gain = gain / len(every)
        log_c = self.heads.log_confidence(upstream, z_lr, index.refined)
        confidence = ((log_c.exp() * squared - EASY_VARIANCE * log_c) * counted).sum() / total
        return gain, confidence

    def gains(
        self,
        estimates: list[Tensor],
        z_0: Latent,
        z_lr: Latent,
        lr: Tensor,
        hr: Tensor,
        refined: Bool[Tensor, "b 1 h w"],
    ) -> list[Float[Tensor, "b 2 rows columns"]]:
        """What each step brought: less latent error, in 10 dB, and edges nearer to the truth's."""
        scores = []
        for estimate in (z_lr, *estimates):
            error = _of_regions((estimate - z_0) ** 2, refined).clamp_min(1e-6)
            edges = _edge_similarity(self.engine.decode(estimate, lr), hr, error.shape[1:])
            scores.append(torch.stack([-error.log10(), TENTHS * edges], dim=1))
        return [torch.tanh(after - before) for before, after in pairwise(scores)]

    def validation_step(self, batch: dict[str, Any], _batch_idx: int) -> None:
        """The same on slices of held-out patients."""
        with torch.no_grad():
            gain, confidence = self.losses(batch)
        found = {"validation/gain": gain, "validation/confidence": confidence}
        self.log_dict(found, sync_dist=True, batch_size=len(batch["lr"]))

    def configure_optimizers(self) -> Any:
        """AdamW over the networks for regions."""
        settings = self.settings
        parameters = list(self.heads.parameters())
        return make_optimizer(
            parameters, settings.learning_rate, settings.steps, self.task.training
        )


def _of_regions(
    squared: Latent, refined: Bool[Tensor, "b 1 h w"]
) -> Float[Tensor, "b rows columns"]:
    """Mean over the refined latents of each window, 0 where there are none."""
    grid = (squared.shape[2] // WINDOW, squared.shape[3] // WINDOW)
    share = region_mean(refined[:, 0].to(squared.dtype), grid)
    return region_mean(squared.mean(dim=1) * refined[:, 0], grid) / share.clamp_min(1e-6)


def _edge_similarity(
    image: Float[Tensor, "b 1 h w"], reference: Float[Tensor, "b 1 h w"], grid: torch.Size
) -> Float[Tensor, "b rows columns"]:
    """Similarity of gradient magnitudes, ``(2 a b + c) / (a^2 + b^2 + c)``, mean of each region."""
    a, b = _gradient(image), _gradient(reference)
    similarity = (2 * a * b + EDGE_FLOOR) / (a**2 + b**2 + EDGE_FLOOR)
    return region_mean(similarity[:, 0], (grid[0], grid[1]))


def _gradient(image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    kernel = image.new_tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]]) / 8
    wide = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    x = functional.conv2d(wide, kernel[None, None])
    y = functional.conv2d(wide, kernel.T[None, None])
    return (x**2 + y**2).sqrt()
