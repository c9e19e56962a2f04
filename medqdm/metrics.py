"""Metrics: how far a slice is from its reference, in dB and in HU."""

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from medqdm.window import Window

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


def psnr_db(sr_hu: Image, hr_hu: Image, window: Window, mask: Mask | None = None) -> float:
    """Peak signal-to-noise ratio inside the window; the peak is the window's width.

    Args:
        sr_hu: (y, x) in HU.
        hr_hu: (y, x) reference in HU.
        window: both are clipped to it first.
        mask: (y, x) pixels that count; None means all.

    Returns:
        dB; infinite for equal images.
    """
    difference = window.clip(sr_hu).astype(np.float64) - window.clip(hr_hu)
    mse = np.mean(difference[mask] ** 2 if mask is not None else difference**2)
    return float("inf") if mse == 0 else float(10 * np.log10(window.width_hu**2 / mse))


def ssim(sr_hu: Image, hr_hu: Image, window: Window, mask: Mask | None = None) -> float:
    """Structural similarity inside the window (Wang et al. 2004: Gaussian weights, sigma 1.5).

    Args:
        sr_hu: (y, x) in HU, at least 11 x 11.
        hr_hu: (y, x) reference in HU.
        window: both are clipped to it first; its width is the data range.
        mask: pixels over which the similarity map is averaged; None means all.
    """
    similarity = ssim_map(sr_hu, hr_hu, window)
    return float(similarity[mask].mean() if mask is not None else similarity.mean())


def ssim_map(sr_hu: Image, hr_hu: Image, window: Window) -> NDArray[np.float64]:
    """The (y, x) map that ``ssim`` averages, for several masks of one slice; same arguments."""
    _, similarity = structural_similarity(
        window.clip(hr_hu).astype(np.float64),
        window.clip(sr_hu).astype(np.float64),
        data_range=window.width_hu,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return np.asarray(similarity)


def mae_hu(sr_hu: Image, hr_hu: Image, mask: Mask | None = None) -> float:
    """Mean absolute error in HU, not clipped to any window."""
    difference = np.abs(sr_hu.astype(np.float64) - hr_hu)
    return float(difference[mask].mean() if mask is not None else difference.mean())


def bias_hu(sr_hu: Image, hr_hu: Image, mask: Mask | None = None) -> float:
    """Mean signed error in HU (above 0: brighter than the reference)."""
    difference = sr_hu.astype(np.float64) - hr_hu
    return float(difference[mask].mean() if mask is not None else difference.mean())


def reduce_by_area(hu: Image, factor: int) -> Image:
    """Mean of each ``factor`` x ``factor`` block: what a coarser detector would have seen.

    Args:
        hu: (..., y, x) with sides that are multiples of factor.
        factor: pixels per side of a block.
    """
    *leading, height, width = hu.shape
    blocks = hu.reshape(*leading, height // factor, factor, width // factor, factor)
    reduced: Image = blocks.mean(axis=(-3, -1), dtype=np.float64).astype(np.float32)
    return reduced


def lr_consistency_hu(sr_hu: Image, lr_hu: Image) -> float:
    """Root mean square difference, in HU, of the area-reduced output and the input.

    Near the noise of the input it says that nothing was moved or made up on the scale of an input
    pixel; it does not judge what is finer.

    Args:
        sr_hu: (..., y * s, x * s) in HU.
        lr_hu: (..., y, x) in HU.
    """
    factor = sr_hu.shape[-1] // lr_hu.shape[-1]
    difference = reduce_by_area(sr_hu, factor).astype(np.float64) - lr_hu
    return float(np.sqrt(np.mean(difference**2)))
