"""Padding: pixels in which the scanner wrote a code instead of a measurement."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

AIR_HU = -1000.0
LOWEST_REAL_HU = -1024.0  # what scanners clip at; noise in air may reach a little below
_CODE_HU = -1100.0  # undeclared codes (-1500, -2000, -3024) lie below, noise does not


def fill(hu: NDArray[np.float32], padding: NDArray[np.bool_]) -> NDArray[np.float32]:
    """HU ``(y, x)`` with padding replaced by the nearest measured value (air if there is none)."""
    if not padding.any():
        return hu
    if padding.all():
        return np.full_like(hu, AIR_HU)
    nearest = distance_transform_edt(padding, return_distances=False, return_indices=True)
    filled: NDArray[np.float32] = hu[tuple(nearest)]
    return filled


def find_undeclared(hu: NDArray[np.floating]) -> NDArray[np.bool_] | None:
    """Padding ``(y, x)`` that a header is silent about, around a disc; None if there is none.

    All four corners hold a code. Lossy compression blurs it, so that padding is what lies nearer to
    it than to the lowest real value.
    """
    corners = hu[[0, 0, -1, -1], [0, -1, 0, -1]]
    if corners.max() >= _CODE_HU:
        return None
    return np.asarray(hu < (corners.max() + LOWEST_REAL_HU) / 2)
