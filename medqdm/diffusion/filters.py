"""Filters: blur, high-pass and local variance of images and latents."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Image = Float[Tensor, "b c h w"]


def gaussian_blur(image: Image, sigma_px: float) -> Image:
    """Gaussian blur that repeats the border, cut off after three deviations.

    Args:
        image: of any size.
        sigma_px: standard deviation in pixels, above 0.
    """
    radius = math.ceil(3 * sigma_px)
    x = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    weights = torch.softmax(-(x**2) / (2 * sigma_px**2), dim=0)
    return _separable(image, weights)


def local_mean(image: Image, side_px: int) -> Image:
    """Mean of the square around each pixel; the border is repeated.

    Args:
        image: of any size.
        side_px: odd side of the square.
    """
    return _separable(image, image.new_full((side_px,), 1 / side_px))


def local_variance(image: Image, side_px: int) -> Image:
    """Variance in the square around each pixel; the border is repeated.

    Args:
        image: of any size.
        side_px: odd side of the square.
    """
    return (local_mean(image**2, side_px) - local_mean(image, side_px) ** 2).clamp_min(0)


def high_pass(latent: Image) -> Image:
    """What a 3 x 3 mean takes away."""
    return latent - local_mean(latent, 3)


def _separable(image: Image, weights: Float[Tensor, " taps"]) -> Image:
    radius = len(weights) // 2
    planes = functional.pad(image, (radius,) * 4, mode="replicate").flatten(0, 1)[:, None]
    planes = functional.conv2d(planes, weights[None, None, :, None])
    planes = functional.conv2d(planes, weights[None, None, None, :])
    return planes.reshape(image.shape)
