"""Calibration: whether errors are as large as the deviation over draws says."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

EDGES_HU = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, np.inf)
ERROR, VARIANCE, WITHIN = "squared_error_hu2", "variance_hu2", "within_2_sd"
MEASURED = (ERROR, VARIANCE, WITHIN)


def _title(low: float, high: float) -> str:
    return f"{low:g} to {high:g} HU" if np.isfinite(high) else f"from {low:g} HU"


STATED = {f"deviation {_title(*ends)}": ends for ends in pairwise(EDGES_HU)}  # regions


def stated_regions(deviation_hu: Image) -> Iterator[tuple[str, Mask]]:
    """Where an output's own deviation lies in which range; ranges without a pixel are absent.

    Args:
        deviation_hu: ``(y, x)`` in HU.
    """
    for name, (low, high) in STATED.items():
        mask = (deviation_hu >= low) & (deviation_hu < high)
        if mask.any():
            yield name, mask


def calibration(
    sr_hu: Image, hr_hu: Image, deviation_hu: Image, mask: Mask | None = None
) -> dict[str, float]:
    """Means over a region: squared error, variance, and the share within two deviations.

    Args:
        sr_hu: ``(y, x)`` output in HU.
        hr_hu: the truth.
        deviation_hu: standard deviation that the output is said to have, in HU.
        mask: ``(y, x)`` of the region; None: everywhere.

    >>> one = np.ones((2, 2), np.float32)
    >>> calibration(one, np.array([[0, 1], [1, 4]], np.float32), one)
    {'squared_error_hu2': 2.5, 'variance_hu2': 1.0, 'within_2_sd': 0.75}
    """
    error, deviation = (sr_hu - hr_hu).astype(np.float64), deviation_hu.astype(np.float64)
    if mask is not None:
        error, deviation = error[mask], deviation[mask]
    return {
        ERROR: float((error**2).mean()),
        VARIANCE: float((deviation**2).mean()),
        WITHIN: float((np.abs(error) <= 2 * deviation).mean()),
    }
