"""Padding: pixels in which the scanner wrote a code instead of a measurement.

Padding is one value (nearly one after lossy compression) in regions that touch the border of the
image. The same value elsewhere was measured, and so was noisy air that a scanner clips at one
value: its pixels leave pores, which padding has not.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, label

AIR_HU = -1000.0
LOWEST_REAL_HU = -1024.0  # what scanners clip at; noise in air may reach a little below
CODE_HU = -1100.0  # undeclared codes (-1500, -2000, -3024) lie below, noise does not
_BLUR = 1 / 50  # of the gap between a code and real values, in lossy images
_MOST_ALIKE = 0.98  # of padding in lossy images, away from its edge
_RINGING_PX = 8  # from an edge; a block of JPEG

# A region is no code if its pores or its pixels that are thinner than 3 x 3 are more than this.
_MOST_PORES = 1 / 100
_MOST_THIN = 1 / 4
_FEW_PORES = 8  # the tips of a convex field of view look like pores
_PORE = 5  # of its 8 neighbours are padding


def fill(hu: NDArray[np.float32], padding: NDArray[np.bool_]) -> NDArray[np.float32]:
    """HU ``(y, x)`` with padding replaced by the nearest measured value (air if there is none)."""
    if not padding.any():
        return hu
    if padding.all():
        return np.full_like(hu, AIR_HU)
    nearest = distance_transform_edt(padding, return_distances=False, return_indices=True)
    filled: NDArray[np.float32] = hu[tuple(nearest)]
    return filled


def find_declared(is_code: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The part ``(y, x)`` of the pixels with a declared padding value that is padding.

    Args:
        is_code: ``(y, x)``, where the image holds that value.
    """
    height, width = is_code.shape
    edges = (is_code[0], is_code[-1], is_code[:, 0], is_code[:, -1])
    if not any(edge.any() for edge in edges):
        return np.zeros_like(is_code)
    framed = np.pad(is_code, 2, constant_values=True)  # padding goes on outside of the image
    regions, _ = label(framed, np.ones((3, 3)))
    region = regions == regions[0, 0]
    solid = _count(_count(region) == 9) > 0
    inside = np.s_[2 : 2 + height, 2 : 2 + width]
    size, size_solid = (np.count_nonzero(part[inside]) for part in (region, solid))
    num_pores = np.count_nonzero((_count(solid) >= _PORE) & ~solid)
    is_thin = size - size_solid > size * _MOST_THIN
    if is_thin or num_pores > _FEW_PORES + size_solid * _MOST_PORES:
        return np.zeros_like(is_code)
    return np.ascontiguousarray(region[inside])


def find_undeclared(
    hu: NDArray[np.floating], *, is_lossy: bool = False
) -> NDArray[np.bool_] | None:
    """Padding ``(y, x)`` that a header is silent about; None if there is none.

    All four corners hold one value that is lower than any of CT. Lossy compression blurs it: what
    lies nearer to it than to the lowest real value is padding then, if most of it is that value.

    Args:
        hu: ``(y, x)``.
        is_lossy: whether the image was compressed with loss.
    """
    corners = hu[[0, 0, -1, -1], [0, -1, 0, -1]]
    code = float(np.median(corners))
    blur = (LOWEST_REAL_HU - code) * _BLUR if is_lossy else 0.0
    if code >= CODE_HU or np.abs(corners - code).max() > 2 * blur:
        return None
    if not is_lossy:
        found = find_declared(hu == code)
        return found if found.any() else None
    found = find_declared(hu < (code + LOWEST_REAL_HU) / 2)
    deep = binary_erosion(found, iterations=_RINGING_PX, border_value=True)
    deep = deep if deep.any() else found
    alike = np.count_nonzero(np.abs(hu[deep] - code) <= blur)
    return found if alike > _MOST_ALIKE * np.count_nonzero(deep) else None


def _count(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """How many of the 3 x 3 pixels around each are in the mask."""
    framed = np.pad(mask.astype(np.uint8), 1, mode="edge")
    rows = framed[:-2] + framed[1:-1] + framed[2:]
    counts: NDArray[np.uint8] = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return counts
