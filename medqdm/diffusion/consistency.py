"""Consistency: bring what an output says at the LR image's resolution back to the LR image."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from medqdm.diffusion.filters import gaussian_blur
from medqdm.diffusion.quadtree import noise_deviation

BLUR_LR_PX = 0.4  # the finest differences are the likeliest to be noise


def back_project(
    sr: Float[Tensor, "b 1 hs ws"], lr: Float[Tensor, "b 1 h w"], *, iterations: int = 3
) -> Float[Tensor, "b 1 hs ws"]:
    """Damped, band-limited back-projection in pixel space, clamped to [-1, 1].

    With A the mean over the HR pixels of an LR pixel and G a small Gaussian, each iteration is
    ``sr + lam up(G (lr - A sr))``, up bicubic. ``lam = s_r^2 / (s_r^2 + sd_n^2)``, where s_r^2 is
    the mean square of ``lr - A sr`` inside the HU window and sd_n the noise that is measured in
    the LR image: the less an output differs from its input, beside the noise, the less it moves.

    Args:
        sr: output in [-1, 1], whole multiples of lr along both axes.
        lr: input in [-1, 1].
        iterations: 1 to 3 are useful.
    """
    factor = sr.shape[-1] // lr.shape[-1]
    noise_variance = noise_deviation(lr)[:, None, None, None] ** 2
    inside = lr.abs() < 1  # clipped air has neither noise nor error
    for _ in range(iterations):
        residual = lr - functional.avg_pool2d(sr, factor)
        square = (residual**2 * inside).sum(dim=(1, 2, 3), keepdim=True)
        square = square / inside.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
        tiny = torch.finfo(square.dtype).tiny  # no residual, no noise: nothing to do
        lam = square / (square + noise_variance).clamp_min(tiny)
        correction = functional.interpolate(
            gaussian_blur(residual, BLUR_LR_PX),
            size=(sr.shape[-2], sr.shape[-1]),
            mode="bicubic",
            align_corners=False,
        )
        sr = (sr + lam * correction).clamp(-1, 1)
    return sr
