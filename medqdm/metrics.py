"""Metrics: how far a slice or a stack of them is from its reference, in dB, in HU and in pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import canny
from skimage.metrics import structural_similarity

from medqdm.window import Window

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Half-open ranges in HU. Below -950 lies what emphysema studies count as air (Gevenois et al., Am J
# Respir Crit Care Med 1996); -500 is the usual upper end of aerated lung; -190 to -30 and -29 to
# 150 are the thresholds of body composition for fat and lean soft tissue (Mitsiopoulos et al., J
# Appl Physiol 1998). Bone begins at 300, above most vessels with contrast agent. What lies between
# two ranges is mostly partial volume and belongs to none.
TISSUES: dict[str, tuple[float, float]] = {
    "air": (-np.inf, -950.0),
    "lung": (-950.0, -500.0),
    "fat": (-190.0, -30.0),
    "soft tissue": (-30.0, 150.0),
    "bone": (300.0, np.inf),
}
EDGE_REACH_PX = 8  # an edge is looked at this far to either side
EDGE_STEP_HU = 300.0  # smallest step that counts as a strong edge
EDGE_FLATNESS = 0.1  # largest deviation beside an edge, as a share of its step
_EDGE_BLUR_PX, _EDGE_SLOPE_HU = 1.0, 30.0  # of the search: Gaussian, HU per pixel
_SOBEL_GAIN = 8.0  # scipy's Sobel filter of a slope of 1 a pixel
_SAMPLES_PER_PX = 4
_SSIM_BORDER_PX = 5  # the window is 11 pixels wide; nearer to the border it does not fit


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
        window: both are clipped to it first. Its lower end is 0, as SSIM's comparison of means asks
            for, and its width the data range.
        mask: pixels over which the similarity map is averaged; None means all but those within 5
            pixels of the image's border, where the Gaussian does not fit.
    """
    return mean_ssim(ssim_map(sr_hu, hr_hu, window), mask)


def mean_ssim(similarity: NDArray[np.float64], mask: Mask | None = None) -> float:
    """What ``ssim`` makes of a map, for several masks of one slice; see there."""
    inner = slice(_SSIM_BORDER_PX, -_SSIM_BORDER_PX)
    return float((similarity[inner, inner] if mask is None else similarity[mask]).mean())


def ssim_map(sr_hu: Image, hr_hu: Image, window: Window) -> NDArray[np.float64]:
    """The (y, x) map that ``ssim`` averages; same arguments."""
    _, similarity = structural_similarity(
        window.clip(hr_hu).astype(np.float64) - window.low_hu,
        window.clip(sr_hu).astype(np.float64) - window.low_hu,
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


def lr_difference_hu(sr_hu: Image, lr_hu: Image) -> NDArray[np.float64]:
    """The area-reduced output minus the input, in HU, on the input's grid.

    Args:
        sr_hu: (..., y * s, x * s) in HU.
        lr_hu: (..., y, x) in HU.
    """
    reduced = reduce_by_area(sr_hu, sr_hu.shape[-1] // lr_hu.shape[-1])
    difference: NDArray[np.float64] = reduced.astype(np.float64) - lr_hu
    return difference


def lr_consistency_hu(sr_hu: Image, lr_hu: Image) -> float:
    """Root mean square difference, in HU, of the area-reduced output and the input.

    Near the noise of the input it says that nothing was moved or made up on the scale of an input
    pixel; it does not judge what is finer.

    Args:
        sr_hu: (..., y * s, x * s) in HU.
        lr_hu: (..., y, x) in HU.
    """
    return float(np.sqrt(np.mean(lr_difference_hu(sr_hu, lr_hu) ** 2)))


def flicker_hu(stack_hu: Image) -> float:
    """Slice-to-slice flicker in HU: the mean of ``|x_k - x_(k + 1)|`` over neighbouring slices.

    Anatomy changes from slice to slice too, so it says something beside the truth's alone: above
    it, slices disagree that should not; below it, something is smoothed away.

    Args:
        stack_hu: (z, y, x) neighbouring slices in HU, two or more.
    """
    return float(np.abs(np.diff(stack_hu.astype(np.float64), axis=0)).mean())


def plane_psnr_db(sr_hu: Image, hr_hu: Image, window: Window, axis: int, mask: Mask) -> float:
    """Mean of the PSNR of each coronal or sagittal plane that cuts the body.

    A mean of planes, because over a whole stack the squared errors are the same however it is cut.

    Args:
        sr_hu: (z, y, x) in HU.
        hr_hu: (z, y, x) reference in HU.
        window: both are clipped to it first; the peak is its width.
        axis: 1 for coronal planes (one per y), 2 for sagittal ones (one per x).
        mask: (z, y, x) body; planes without any of it are left out.

    Returns:
        dB; infinite where a plane has no error; NaN where no plane cuts the body.
    """
    others = tuple(k for k in range(3) if k != axis)
    error = window.clip(sr_hu).astype(np.float64) - window.clip(hr_hu)
    mse = np.mean(error**2, axis=others)[mask.any(axis=others)]
    if mse.size == 0:
        return float("nan")
    if not mse.all():
        return float("inf")
    return float(np.mean(10 * np.log10(window.width_hu**2 / mse)))


@dataclass(frozen=True, eq=False)
class Edges:
    """Strong edges of a slice, as ``find_edges`` gives them.

    Args:
        places_px: (n, 2) pixels (y, x) on the edges.
        directions: (n, 2) unit vectors (y, x) across the edges, from dark to bright.
        low_hu: (n,) plateaus on the dark side.
        high_hu: (n,) plateaus on the bright side.
    """

    places_px: NDArray[np.float64]
    directions: NDArray[np.float64]
    low_hu: NDArray[np.float64]
    high_hu: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.places_px)


def find_edges(hu: Image) -> Edges:
    """The strong edges of an image: steps of 300 HU or more between two flat sides.

    They are Canny's edge pixels (Gaussian of 1 pixel, slope of at least 30 HU a pixel). The
    plateaus are means over 4 to 8 pixels from the edge; along each the standard deviation must be
    at most a tenth of the step, which leaves thin structures and textures out.

    Args:
        hu: (y, x) in HU: a truth, whose edges outputs are measured at, or an output.
    """
    image = hu.astype(np.float64)
    slope = _SOBEL_GAIN * _EDGE_SLOPE_HU
    found = canny(image, _EDGE_BLUR_PX, low_threshold=slope, high_threshold=slope)
    border = EDGE_REACH_PX + 1
    inside = np.zeros_like(found)
    inside[border:-border, border:-border] = True
    places = np.argwhere(found & inside).astype(np.float64)
    smooth = ndimage.gaussian_filter(image, _EDGE_BLUR_PX)
    rows, columns = places.astype(np.intp).T
    gradient = np.stack([part[rows, columns] for part in np.gradient(smooth)], axis=1)
    directions = gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-12)
    profiles = _profiles(image, places, directions)
    side = EDGE_REACH_PX // 2 * _SAMPLES_PER_PX + 1
    low, high = profiles[:, :side], profiles[:, -side:]
    step = high.mean(axis=1) - low.mean(axis=1)
    unevenness = np.maximum(low.std(axis=1), high.std(axis=1))
    kept = (step >= EDGE_STEP_HU) & (unevenness <= EDGE_FLATNESS * step)
    return Edges(places[kept], directions[kept], low.mean(axis=1)[kept], high.mean(axis=1)[kept])


def edge_rises_px(hu: Image, edges: Edges) -> NDArray[np.float64]:
    """How many pixels a slice takes from 10 % to 90 % of each step of some edges.

    Each profile runs across the edge, 8 pixels to either side. From where it crosses 50 %, nearest
    to the edge's place, it is followed outwards to the first 10 % and 90 %. For an edge blurred by
    a Gaussian it is 2.563 standard deviations. One that does not get there within reach counts as
    16 pixels. Edges are judged by the median, which a few odd profiles do not move.

    Args:
        hu: (y, x) in HU: an output, or the truth itself.
        edges: of the truth, or the slice's own.

    Returns:
        (n,) pixels; smaller is sharper.
    """
    if len(edges) == 0:
        return np.zeros(0)
    profiles = _profiles(hu.astype(np.float64), edges.places_px, edges.directions)
    share = (profiles - edges.low_hu[:, None]) / (edges.high_hu - edges.low_hu)[:, None]
    at = np.arange(share.shape[1])
    middle = (at[-1] - 1) / 2
    crosses = (share[:, :-1] < 0.5) & (share[:, 1:] >= 0.5)
    near = np.where(crosses, np.abs(at[:-1] - middle), np.inf).argmin(axis=1)
    before = (share <= 0.1) & (at <= near[:, None])
    after = (share >= 0.9) & (at > near[:, None])
    start = at[-1] - before[:, ::-1].argmax(axis=1)
    end = after.argmax(axis=1)
    whole = crosses.any(axis=1) & before.any(axis=1) & after.any(axis=1)
    rises = np.full(len(edges), 2.0 * EDGE_REACH_PX)
    found = _between(share[whole], end[whole] - 1, 0.9) - _between(share[whole], start[whole], 0.1)
    rises[whole] = found / _SAMPLES_PER_PX
    return rises


def _between(profiles: NDArray[np.float64], k: NDArray[np.intp], level: float) -> NDArray[Any]:
    """Where each profile crosses a level between its samples k and k + 1."""
    row = np.arange(len(profiles))
    left, right = profiles[row, k], profiles[row, k + 1]
    return k + (level - left) / (right - left)


def _profiles(
    image: NDArray[np.float64], places_px: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Cubic interpolation across each place, (n, 2 * reach * samples + 1)."""
    along = np.arange(-EDGE_REACH_PX * _SAMPLES_PER_PX, EDGE_REACH_PX * _SAMPLES_PER_PX + 1)
    points = places_px[:, :, None] + directions[:, :, None] * (along / _SAMPLES_PER_PX)
    return np.asarray(ndimage.map_coordinates(image, points.transpose(1, 0, 2), mode="nearest"))
