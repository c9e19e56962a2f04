"""Discs: low-contrast lesions put into flat soft tissue, and their contrast read back."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medqdm.evaluate.regions import body_mask
from medqdm.metrics import TISSUES
from medqdm.window import Window

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Kind = tuple[float, float]  # contrast in HU, diameter in mm

CONTRASTS_HU = (-100.0, -50.0, -20.0, -10.0, 10.0, 20.0, 50.0, 100.0)
DIAMETERS_MM = (2.0, 4.0, 6.0, 10.0)
KINDS: tuple[Kind, ...] = tuple((c, d) for c in CONTRASTS_HU for d in DIAMETERS_MM)
CORE_SHARE = 0.7  # of a disc's radius: where its contrast is read
FLAT_BLUR_PX = 3.0
FLAT_SD_HU = 15.0  # most that the blurred truth may vary where a disc goes
RING_LR_PX = (2, 3)  # beyond the disc's edge: what its contrast is read against
_OVERSAMPLING = 16


@dataclass(frozen=True)
class Disc:
    """A disc in a slice.

    Args:
        y: row of its middle, in HR pixels.
        x: column of its middle.
        radius_px: in HR pixels.
        contrast_hu: added to the slice.
        diameter_mm: what radius_px stands for.
    """

    y: int
    x: int
    radius_px: float
    contrast_hu: float
    diameter_mm: float

    def distance(self, shape: tuple[int, int]) -> NDArray[np.float64]:
        """``(y, x)`` distance of each pixel's centre from the disc's middle, in pixels."""
        y, x = np.ogrid[: shape[0], : shape[1]]
        return np.hypot(y - self.y, x - self.x)

    def core(self, shape: tuple[int, int]) -> Mask:
        """``(y, x)`` pixels where its contrast is read, five in the middle at the least."""
        return self.distance(shape) <= max(1.0, CORE_SHARE * self.radius_px)

    def core_coverage(self, shape: tuple[int, int]) -> float:
        """Share of its core that the disc covers; below 1 where pixels are coarse for it."""
        return float(self.coverage(shape)[self.core(shape)].mean())

    def coverage(self, shape: tuple[int, int]) -> Image:
        """``(y, x)`` share of each pixel that the disc covers."""
        reach = int(np.ceil(self.radius_px)) + 1
        fine = (np.arange((2 * reach + 1) * _OVERSAMPLING) + 0.5) / _OVERSAMPLING - reach - 0.5
        inside = np.hypot(fine[:, None], fine[None, :]) <= self.radius_px
        side = 2 * reach + 1
        share = inside.reshape(side, _OVERSAMPLING, side, _OVERSAMPLING).mean(axis=(1, 3))
        canvas = np.zeros((shape[0] + 2 * reach, shape[1] + 2 * reach), dtype=np.float32)
        canvas[self.y : self.y + side, self.x : self.x + side] = share
        return canvas[reach : reach + shape[0], reach : reach + shape[1]]


def add_discs(hu: Image, discs: Iterable[Disc]) -> Image:
    """A slice with discs added.

    Args:
        hu: ``(y, x)`` in HU.
        discs: their contrasts add up where they overlap.
    """
    out = hu.copy()
    for disc in discs:
        out += np.float32(disc.contrast_hu) * disc.coverage((hu.shape[0], hu.shape[1]))
    return out


def recovered_contrast(difference_hu: Image, disc: Disc, upscale: int) -> float:
    """Contrast of a disc in an output, over the contrast that it has in the truth.

    The contrast is the mean in the disc's core (0.7 of its radius, at least its middle pixel and
    the four beside it) minus the mean in a ring 2 to 3 input pixels beyond its edge. The truth's
    own is read in the same way, so that it recovers 1 even where pixels are coarse for the disc.

    Args:
        difference_hu: ``(y, x)`` output with the disc minus output without it, in HU.
        disc: which.
        upscale: HR pixels per input pixel along an axis.
    """
    height, width = difference_hu.shape
    distance = disc.distance((height, width))
    core = disc.core((height, width))
    near, far = (disc.radius_px + k * upscale for k in RING_LR_PX)
    ring = (distance >= near) & (distance <= far)
    inserted = disc.contrast_hu * disc.core_coverage((height, width))
    found = difference_hu[core].mean(dtype=np.float64) - difference_hu[ring].mean(dtype=np.float64)
    return float(found / inserted)


def area_noise_hu(hu: Image, places: NDArray[np.intp], radius_px: float, upscale: int) -> float:
    """Noise of an image on the scale of a disc: how much means over its core differ by chance.

    The standard deviation over flat places of the mean in a core minus the mean in the input pixel
    around the disc.

    Args:
        hu: ``(y, x)`` without discs, in HU.
        places: ``(n, 2)`` middles, as ``flat_places`` allows them.
        radius_px: of the disc.
        upscale: HR pixels per input pixel along an axis.
    """
    reach = int(np.ceil(radius_px + upscale))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(y, x)
    means = []
    for chosen in (
        distance <= max(1.0, CORE_SHARE * radius_px),
        (distance > radius_px) & (distance <= radius_px + upscale),
    ):
        rows = places[:, :1] + y[chosen][None, :]
        columns = places[:, 1:] + x[chosen][None, :]
        means.append(hu[rows, columns].mean(axis=1, dtype=np.float64))
    return float((means[0] - means[1]).std())


def place_discs(
    hr_hu: Image,
    window: Window,
    *,
    spacing_mm: float,
    upscale: int,
    random: np.random.Generator,
    placed: Counter[Kind],
) -> list[Disc]:
    """As many discs as find room in a slice's flat soft tissue, far from each other.

    A place is flat if the truth, blurred by a Gaussian of 3 pixels, is soft tissue inside the body
    and varies by at most 15 HU (standard deviation) over the disc and an input pixel around it. The
    kind that was placed least so far goes next; rings of two discs do not meet.

    Args:
        hr_hu: ``(y, x)`` truth in HU.
        window: of the task.
        spacing_mm: of the HR pixels.
        upscale: HR pixels per input pixel along an axis.
        random: draws the places.
        placed: how often each kind was placed so far; it is counted up.
    """
    free = {
        diameter: flat_places(hr_hu, window, diameter / 2 / spacing_mm + upscale)
        for diameter in DIAMETERS_MM
    }
    discs: list[Disc] = []
    while True:
        open_kinds = [kind for kind in KINDS if free[kind[1]].any()]
        if not open_kinds:
            return discs
        least = min(placed[kind] for kind in open_kinds)
        rarest = [kind for kind in open_kinds if placed[kind] == least]
        contrast, diameter = rarest[int(random.integers(len(rarest)))]
        places = np.argwhere(free[diameter])
        y, x = (int(v) for v in places[int(random.integers(len(places)))])
        disc = Disc(y, x, diameter / 2 / spacing_mm, contrast, diameter)
        discs.append(disc)
        placed[contrast, diameter] += 1
        distance = disc.distance((hr_hu.shape[0], hr_hu.shape[1]))
        for other in DIAMETERS_MM:
            reaches = disc.radius_px + other / 2 / spacing_mm + 2 * RING_LR_PX[1] * upscale
            free[other] &= distance >= reaches


def flat_places(hr_hu: Image, window: Window, reach_px: float) -> Mask:
    """Middles around which a square of ``2 * reach_px + 1`` pixels is flat soft tissue.

    Args:
        hr_hu: ``(y, x)`` truth in HU.
        window: of the task.
        reach_px: rounded up.
    """
    side = 2 * int(np.ceil(reach_px)) + 1
    smooth = ndimage.gaussian_filter(hr_hu.astype(np.float64), FLAT_BLUR_PX, mode="nearest")
    low, high = TISSUES["soft tissue"]
    soft = (smooth >= low) & (smooth < high) & body_mask(hr_hu, window)
    mean = ndimage.uniform_filter(smooth, side)
    variance = ndimage.uniform_filter(smooth**2, side) - mean**2
    whole = ndimage.minimum_filter(soft, side, mode="constant", cval=0)
    return np.asarray(whole & (variance <= FLAT_SD_HU**2), dtype=np.bool_)
