"""Texture: how strongly an image varies at which frequencies, in patches of a truth's regions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medqdm.errors import MedQDMError
from medqdm.metrics import TISSUES

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Corners = Sequence[tuple[int, int]]

PATCH_PX = 32
FLAT_BLUR_PX = 3.0  # Gaussian that leaves structure and takes noise away
FLAT_SD_HU = 10.0  # most that structure may vary within a flat patch


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Power of patches over frequency, summed so that spectra of slices can be added.

    Args:
        power_hu2: ``(side, side)`` sum over patches of each frequency's share of the variance, in
            HU^2, in the order of ``numpy.fft.fft2``; without the mean, which takes a part of the
            lowest frequencies with it.
        num_patches: how many were summed.
    """

    power_hu2: NDArray[np.float64]
    num_patches: int

    def __add__(self, other: "Spectrum") -> "Spectrum":
        return Spectrum(self.power_hu2 + other.power_hu2, self.num_patches + other.num_patches)

    @property
    def mean_hu2(self) -> NDArray[np.float64]:
        """Mean over the patches."""
        return self.power_hu2 / self.num_patches

    @property
    def sd_hu(self) -> float:
        """Standard deviation within patches, the root of all frequencies' power."""
        return float(np.sqrt(self.mean_hu2.sum()))

    def band_hu2(self, low: float, high: float) -> float:
        """Variance at frequencies whose larger component is in [low, high), in cycles per pixel."""
        frequency = np.abs(np.fft.fftfreq(len(self.power_hu2)))
        larger = np.maximum(frequency[:, None], frequency[None, :])
        return float(self.mean_hu2[(larger >= low) & (larger < high)].sum())

    def radial(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Frequencies in cycles per pixel up to Nyquist, and the mean power on rings around 0."""
        side = len(self.power_hu2)
        frequency = np.fft.fftfreq(side)
        ring = np.rint(np.hypot(frequency[:, None], frequency[None, :]) * side).astype(np.intp)
        sums = np.bincount(ring.ravel(), self.mean_hu2.ravel())
        rings = np.arange(1, side // 2 + 1)
        return rings / side, (sums / np.bincount(ring.ravel()))[rings]


def spectrum(hu: Image, corners: Corners) -> Spectrum:
    """The summed power spectrum of patches, each without its mean, under a Hann window.

    Args:
        hu: ``(y, x)`` in HU.
        corners: first pixels of the patches; see ``patches_in`` and ``flat_patches``.

    Raises:
        MedQDMError: no patches.
    """
    if not corners:
        raise MedQDMError(
            "spectrum: must get one patch or more, got none; take a slice with flat soft tissue"
        )
    line = np.hanning(PATCH_PX + 2)[1:-1]
    taper = np.outer(line, line)
    taper /= np.sqrt(np.sum(taper**2))
    power = np.zeros((PATCH_PX, PATCH_PX))
    for y, x in corners:
        patch = hu[y : y + PATCH_PX, x : x + PATCH_PX].astype(np.float64)
        weighted_mean = np.average(patch, weights=taper**2)
        power += np.abs(np.fft.fft2((patch - weighted_mean) * taper)) ** 2 / PATCH_PX**2
    power[0, 0] = 0
    return Spectrum(power, len(corners))


def patches_in(mask: Mask) -> Corners:
    """First pixels of squares of 32 pixels that lie in a mask, on a grid of 16 pixels.

    Args:
        mask: ``(y, x)``.
    """
    step = PATCH_PX // 2
    height, width = mask.shape
    return [
        (y, x)
        for y in range(0, height - PATCH_PX + 1, step)
        for x in range(0, width - PATCH_PX + 1, step)
        if mask[y : y + PATCH_PX, x : x + PATCH_PX].all()
    ]


def flat_patches(hu: Image) -> Corners:
    """Squares of 32 pixels of an image that hold soft tissue and noise, and no structure.

    The image, blurred by a Gaussian of 3 pixels, must be soft tissue everywhere in the square and
    vary by at most 10 HU (standard deviation). What is finer has no say in the choice; what is
    slower than about 0.05 cycles per pixel has: squares chosen on one image have less of it there
    than another image of the same kind.

    Args:
        hu: ``(y, x)`` in HU.
    """
    smooth = ndimage.gaussian_filter(hu.astype(np.float64), FLAT_BLUR_PX, mode="nearest")
    low, high = TISSUES["soft tissue"]
    return [
        (y, x)
        for y, x in patches_in((smooth >= low) & (smooth < high))
        if smooth[y : y + PATCH_PX, x : x + PATCH_PX].std() <= FLAT_SD_HU
    ]
