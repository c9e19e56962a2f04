"""Conservation: an output keeps the mean HU that its input has in flat regions.

A network that removes noise also moves the mean of flat regions, by up to 37 HU with the bundled
models. ``conserve`` takes that shift out again, and ``largest_flat_shift`` says what is left.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from medqdm.diffusion.filters import gaussian_blur, local_mean

PASSES = 2
BLUR_PX = 2.0  # smallest deviation of the Gaussian, in input pixels
LARGEST_BLUR_PX = 6.0
NOISE_HU_PER_PX = 7.0  # at 2 px a seventh of white noise returns; noisier inputs get a wider blur
SIMILAR_HU = 200.0  # pixels share a correction if they differ by less
EDGE_PX, EDGE_HU = 5, 100.0  # a range of 100 HU within 5 x 5 pixels halves a pixel's weight
LEAST_WEIGHT = 0.1  # of a neighbourhood, for a full correction
CLIPPED_SD = 0.9  # for each pixel along the side of an input pixel; see _air_clipped_before
GUIDE_HU = (-1100.0, 3000.0)  # metal and padding codes count as the nearer end

FLAT_PX, FLAT_BORDER_PX, FLAT_STEP_PX = 16, 2, 4  # a square every 4 pixels
CLASS_ENDS_HU = (-950.0, -500.0, -190.0, -30.0, 150.0, 300.0)
_CLIPPED_SHARE = 0.002  # of a slice's pixels exactly at its lowest or highest value

Image = Float[Tensor, "1 1 h w"]
Mask = Bool[Tensor, "1 1 h w"]


def conserve(
    sr_hu: Float[Tensor, "1 1 hs ws"],
    lr_hu: Image,
    padding: Mask | None = None,
    *,
    floor_hu: float = -1000.0,
) -> Float[Tensor, "1 1 hs ws"]:
    """Add what an output lost or gained against its input in flat regions.

    Twice: ``sr + up(L(w (lr - A sr)) / L(w))``, where A is the mean over an input pixel, L a joint
    bilateral Gaussian (over pixels within 200 HU in A sr) and up bicubic. The weight w is 0 in
    padding and where the input's noise is clipped, because the input's own mean is biased there.
    It falls near edges, where ``lr - A sr`` is a difference in sharpness and not in HU.

    Args:
        sr_hu: output in HU; not clipped to a window.
        lr_hu: input in HU; ``sr_hu`` has whole multiples of its sides.
        padding: where the input holds padding.
        floor_hu: lower end of the network's window.
    """
    factor = sr_hu.shape[-1] // lr_hu.shape[-1]
    noise_hu = noise_deviation_hu(lr_hu)
    blur_px = min(LARGEST_BLUR_PX, max(BLUR_PX, noise_hu / NOISE_HU_PER_PX))
    untrusted = clipped_noise(lr_hu, noise_hu)
    if floor_hu - 1 <= float(lr_hu.min()) <= floor_hu + 10:  # an image that was clipped there
        reduced = functional.avg_pool2d(sr_hu, factor)
        untrusted |= _air_clipped_before(reduced, lr_hu, floor_hu, CLIPPED_SD * factor * noise_hu)
    if padding is not None:
        untrusted |= padding
    trusted = (~untrusted).float()
    for _ in range(PASSES):
        reduced = functional.avg_pool2d(sr_hu, factor)
        weight = trusted / (1 + (_local_range(reduced, EDGE_PX) / EDGE_HU) ** 2)
        correction = _bilateral_mean(lr_hu - reduced, weight, reduced.clamp(*GUIDE_HU), blur_px)
        sr_hu = sr_hu + functional.interpolate(
            correction, scale_factor=factor, mode="bicubic", align_corners=False
        )
    return sr_hu


class FlatShift(NamedTuple):
    """The largest shift of the mean in a flat area.

    Args:
        hu: mean of the output minus mean of the input.
        y: row of the area's centre, in input pixels.
        x: its column.
    """

    hu: float
    y: int
    x: int


def largest_flat_shift(
    difference_hu: Image, lr_hu: Image, padding: Mask | None = None
) -> FlatShift | None:
    """Find the flat area whose mean moved most.

    A flat area is 16 x 16 input pixels of one HU class (air, lung, fat, soft tissue, bone and the
    two ranges between; decided on a 5 x 5 mean) whose inner 12 x 12 pixels have a standard
    deviation below three of the noise. Areas with padding or clipped noise do not count.

    Args:
        difference_hu: the output, reduced by area, minus the input.
        lr_hu: input in HU.
        padding: where the input holds padding.

    Returns:
        None if there is no flat area.
    """
    if min(lr_hu.shape[-2:]) < FLAT_PX:
        return None
    noise_hu = noise_deviation_hu(lr_hu)
    classes = torch.bucketize(local_mean(lr_hu, 5), lr_hu.new_tensor(CLASS_ENDS_HU)).float()
    excluded = clipped_noise(lr_hu, noise_hu)
    if padding is not None:
        excluded = excluded | padding
    pooled = torch.cat([classes, -classes, excluded.float()], 1)
    highest = functional.max_pool2d(pooled, FLAT_PX, FLAT_STEP_PX)
    mean, mean_square, shift = _inner_means(lr_hu, lr_hu.double() ** 2, difference_hu)
    is_flat = (highest[0, 0] == -highest[0, 1]) & (highest[0, 2] == 0)
    is_flat &= mean_square - mean**2 < (3 * max(noise_hu, 1.0)) ** 2
    if not is_flat.any():
        return None
    index = int(torch.where(is_flat, shift.abs(), -1.0).argmax())
    y, x = divmod(index, shift.shape[-1])
    centre = (FLAT_STEP_PX * place + FLAT_PX // 2 for place in (y, x))
    return FlatShift(float(shift[y, x]), *centre)


def noise_deviation_hu(lr_hu: Image) -> float:
    """Standard deviation of the noise in HU, as ``quadtree.noise_deviation`` (Immerkaer 1996).

    Pixels at the lowest or highest value of the image do not count: noise may be clipped there.
    Other constant pixels count, so that an image without noise has 0.
    """
    if min(lr_hu.shape[-2:]) < 3:
        return 0.0
    kernel = lr_hu.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    response = functional.conv2d(lr_hu, kernel[None, None]).abs()
    inner = lr_hu[..., 1:-1, 1:-1]
    response = response[(inner > lr_hu.min()) & (inner < lr_hu.max())]
    return float(response.median()) / 0.6745 / 6 if response.numel() else 0.0


def clipped_noise(lr_hu: Image, noise_hu: float) -> Mask:
    """Find where noise is clipped at an end of the image's range.

    There, some pixels near the end lie exactly at it and others do not. Air that lies at the end
    altogether has no noise to clip.

    Args:
        lr_hu: the image in HU.
        noise_hu: standard deviation of its noise in HU.
    """
    clipped = torch.zeros_like(lr_hu, dtype=torch.bool)
    for distance in (lr_hu - lr_hu.min(), lr_hu.max() - lr_hu):
        at = (distance == 0).float()
        if at.mean() < _CLIPPED_SHARE:
            continue
        near = (distance <= max(5 * noise_hu, 20.0)).float()
        share = gaussian_blur(at, 3.0) / gaussian_blur(near, 3.0).clamp_min(1e-6)
        clipped |= (near > 0) & (share > 0.02) & (share < 0.98)
    return clipped


def _air_clipped_before(reduced: Image, lr_hu: Image, floor_hu: float, most_hu: float) -> Mask:
    """Find air whose noise was clipped before the image was reduced to its size.

    No pixel is left at the floor there. The mean of noise that is cut off at its middle is 0.4 of
    its deviation too high; the mean of n x n such pixels has a deviation of 0.58 / n, so that the
    air seems to lie 0.7 n of its own deviations above the floor. The network shows it at the floor.

    Args:
        reduced: the network's output, reduced by area.
        lr_hu: the input.
        floor_hu: lower end of the window.
        most_hu: how far above it the input's air may lie.
    """
    near = (local_mean(reduced, 7) < floor_hu + 15) & (local_mean(lr_hu, 7) < floor_hu + most_hu)
    return functional.max_pool2d(near.float(), 5, 1, 2) > 0


def _inner_means(*images: Tensor) -> Float[Tensor, "n y x"]:
    """Means over the inner 12 x 12 pixels of each 16 x 16 square, float64."""
    border, side = FLAT_BORDER_PX, FLAT_PX - 2 * FLAT_BORDER_PX
    stacked = torch.cat([image.double() for image in images], 1)
    inner = stacked[..., border : stacked.shape[-2] - border, border : stacked.shape[-1] - border]
    return functional.avg_pool2d(inner, side, FLAT_STEP_PX)[0]


def _local_range(image: Image, side_px: int) -> Image:
    """Largest minus smallest value of the square around each pixel."""
    padded = functional.pad(image, (side_px // 2,) * 4, mode="replicate")
    return functional.max_pool2d(padded, side_px, 1) + functional.max_pool2d(-padded, side_px, 1)


def _bilateral_mean(image: Image, weight: Image, guide: Image, blur_px: float) -> Image:
    """Weighted mean of the neighbours that have a similar guide; 0 where their weight is.

    The guide's range is cut into layers, each blurred alone at half the resolution (F. Durand and
    J. Dorsey, 2002); a pixel interpolates between the two layers next to it.
    """
    low, high = float(guide.min()), float(guide.max())
    layers = max(1, math.ceil((high - low) / SIMILAR_HU))
    step = max((high - low) / layers, 1.0)
    mean, total = torch.zeros_like(image), torch.zeros_like(image)
    for layer in range(layers + 1):
        share = (1 - (guide - (low + layer * step)).abs() / step).clamp_min(0)
        if share.any():
            blurred = _blur_at_half(torch.cat([share * weight * image, share * weight], 1), blur_px)
            mean += share * blurred[:, :1]
            total += share * blurred[:, 1:]
    return mean / total.clamp_min(LEAST_WEIGHT)


def _blur_at_half(image: Float[Tensor, "1 c h w"], blur_px: float) -> Float[Tensor, "1 c h w"]:
    height, width = image.shape[-2:]
    even = functional.pad(image, (0, width % 2, 0, height % 2))
    blurred = gaussian_blur(functional.avg_pool2d(even, 2), blur_px / 2)
    whole = functional.interpolate(blurred, scale_factor=2, mode="bilinear", align_corners=False)
    return whole[..., :height, :width]
