"""Sampler: from the prior to z_0 along a list of steps, given any denoiser."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from medqdm.diffusion.policies import Policy, Regions, StepIndex, spread
from medqdm.diffusion.process import Process

Latent = Float[Tensor, "b c h w"]
Denoiser = Callable[[Latent, int], Latent]
RegionDenoiser = Callable[[Latent, StepIndex, Regions | None], Latent]
Noise = Callable[[int], Latent]
Variance = Callable[[Latent, StepIndex], Latent]


class Step(NamedTuple):
    """What the sampler shows after each step.

    Args:
        t: schedule index the denoiser was called at, or a map of it per region.
        z_0: the prediction, (b, c, h, w).
        z_s: the state after the jump, (b, c, h, w); equal to z_0 after the last step.
    """

    t: StepIndex
    z_0: Float[Tensor, "b c h w"]
    z_s: Float[Tensor, "b c h w"]


def sample(
    denoise: Denoiser,
    process: Process,
    z_lr: Float[Tensor, "b c h w"],
    *,
    steps: Sequence[int],
    gamma: float,
    noise: Noise,
    refined: Bool[Tensor, "b 1 h w"] | None = None,
) -> Iterator[Step]:
    """Draw z_0 with all regions at all steps, yielding after each step.

    Args:
        denoise: (scaled z_t, t) -> z_0, both latents (b, c, h, w); t the schedule index.
        process: the diffusion.
        z_lr: latent of the upsampled LR image.
        steps: schedule indices, falling, the first T - 1 (``Schedule.subset``).
        gamma: 1 ancestral ... 0 deterministic.
        noise: standard normal noise like z_lr for draw k: 0 is the prior's, k the k-th step's.
        refined: regions that carry noise; None means all.
    """
    whole = torch.ones(len(z_lr), 1, 1, dtype=torch.int64, device=z_lr.device)
    return sample_regions(
        lambda scaled, t, _due: denoise(scaled, int(t)), process, z_lr,
        policy=Policy(steps, whole), gamma=gamma, noise=noise, refined=refined,
    )  # fmt: skip


def sample_regions(
    denoise: RegionDenoiser,
    process: Process,
    z_lr: Float[Tensor, "b c h w"],
    *,
    policy: Policy,
    gamma: float,
    noise: Noise,
    refined: Bool[Tensor, "b 1 h w"] | None = None,
    variance: Variance | None = None,
) -> Iterator[Step]:
    """Draw z_0 with the regions that a policy asks for, yielding after each step.

    A region that has run downstream and is not due keeps its estimate z_w, and its latent moves
    along with the noise e_w it carries: ``z_w + eta_t (z_lr - z_w) + kappa sqrt(eta_t) e_w``, so
    that the upstream finds every region at the noise level of the step. One that has not run yet
    takes the upstream's estimate of each step.

    Args:
        denoise: (scaled z_t, t, due) -> z_0: the downstream's where due (None: everywhere) and
            refined, the upstream's elsewhere; t the schedule index, or one per region.
        process: the diffusion.
        z_lr: latent of the upsampled LR image.
        policy: steps, and which regions are due; fresh from its constructor.
        gamma: 1 ancestral ... 0 deterministic.
        noise: standard normal noise like z_lr for draw k: 0 is the prior's, k the k-th step's.
        refined: regions that carry noise; None means all.
        variance: (estimate, t) -> variance of the true z_0 around it, which jumps account for.
    """
    z = process.prior(z_lr, noise(0), refined)
    first = policy.steps[0]

    def look() -> Latent:
        policy.cost.evaluations += 1
        nothing = torch.zeros_like(policy.tokens, dtype=torch.bool)
        return denoise(process.scale_input(z, step_index(first, z), refined), first, nothing)

    policy.begin(look)
    estimates = _Estimates(z_lr, refined)
    for k, t in enumerate(policy.steps):
        due = policy.due(k)
        scaled = process.scale_input(z, step_index(t, z), refined)
        prediction = denoise(scaled, t, due).to(z_lr.dtype)
        policy.cost.evaluations += 1
        policy.record(due)
        z_0, is_new = estimates.update(prediction, due)
        policy.observe(k, z_0)
        if k + 1 == len(policy.steps):
            z = z_0
        else:
            fresh = noise(k + 1) if gamma > 0 else torch.zeros_like(z)
            z = process.jump(
                z, z_0, z_lr, t=step_index(t, z), s=step_index(policy.steps[k + 1], z),
                gamma=gamma if is_new is None else gamma * is_new, noise=fresh, refined=refined,
                variance=variance(z_0, t) if variance is not None and gamma > 0 else None,
            )  # fmt: skip
        yield Step(t, z_0, z)


class _Estimates:
    """The last estimate of each region that has run downstream."""

    def __init__(self, z_lr: Latent, refined: Bool[Tensor, "b 1 h w"] | None) -> None:
        everywhere = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=z_lr.device)
        self._refined = everywhere if refined is None else refined
        self._has_run = torch.zeros_like(self._refined)
        self._last = z_lr

    def update(
        self, prediction: Latent, due: Regions | None
    ) -> tuple[Latent, Bool[Tensor, "b 1 h w"] | None]:
        """The estimates after a step, and where they are new (None: everywhere)."""
        if due is None:
            self._last, self._has_run = prediction, self._refined
            return prediction, None
        now = spread(due, prediction) & self._refined
        held = self._has_run & ~now
        self._last = torch.where(held, self._last, prediction)
        self._has_run = self._has_run | now
        return self._last, ~held


def step_index(t: StepIndex, like: Latent) -> Int[Tensor, "..."]:
    """A step as the process takes it: one per slice, or one per latent."""
    if isinstance(t, int):
        return torch.full((len(like),), t, device=like.device)
    return spread(t, like)
