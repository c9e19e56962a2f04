"""Sampler: from the prior to z_0 along a list of steps, given any denoiser."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medqdm.diffusion.process import Process

Denoiser = Callable[[Float[Tensor, "b c h w"], int], Float[Tensor, "b c h w"]]
Noise = Callable[[int], Float[Tensor, "b c h w"]]


class Step(NamedTuple):
    """What the sampler shows after each step.

    Args:
        t: schedule index the denoiser was called at.
        z_0: its prediction, (b, c, h, w).
        z_s: the state after the jump, (b, c, h, w); equal to z_0 after the last step.
    """

    t: int
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
    """Draw z_0, yielding after each step.

    Args:
        denoise: (scaled z_t, t) -> z_0, both latents (b, c, h, w); t the schedule index.
        process: the diffusion.
        z_lr: latent of the upsampled LR image.
        steps: schedule indices, falling, the first T - 1 (``Schedule.subset``).
        gamma: 1 ancestral ... 0 deterministic.
        noise: standard normal noise like z_lr for draw k: 0 is the prior's, k the k-th step's.
        refined: regions that carry noise; None means all.
    """
    z = process.prior(z_lr, noise(0), refined)
    batch = len(z_lr)
    for k, (t, s) in enumerate(zip(steps, [*steps[1:], -1], strict=True), start=1):
        index = torch.full((batch,), t, device=z_lr.device)
        z_0 = denoise(process.scale_input(z, index, refined), t).to(z_lr.dtype)
        if s < 0:
            z = z_0
        else:
            fresh = noise(k) if gamma > 0 else torch.zeros_like(z)
            z = process.jump(
                z, z_0, z_lr, t=index, s=torch.full_like(index, s), gamma=gamma, noise=fresh,
                refined=refined,
            )  # fmt: skip
        yield Step(t, z_0, z)
