"""Grids: which slices of a series share matrix, axes and spacing, and what is common to them.

Headers of one scan may differ in the last digits. Slices share a grid if common axes and spacing,
starting at the outer corner of a slice's first voxel, move no voxel of the slice by more than a
quarter of an input pixel. Each slice keeps its own position, axes and spacing in its header.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medqdm.errors import MedQDMError
from medqdm.io.dicom_frames import Slice
from medqdm.volume import EDGE_TOLERANCE_MM

_TOLERANCE_PX = 0.25
_LARGEST_UPSCALE = 8  # an output of medqdm has the grid of its input, whose pixels are larger
_MOST_GRIDS = 32  # in one series
_MOST_CANDIDATES = 64  # for the common axes and spacing
_MOST_SCOUTS = 2  # of one plane: more are a stack
_OTHER_PLANE = float(np.cos(np.radians(45)))
_DECIMALS = 6  # of mm, below which two fields are one


class Grid(NamedTuple):
    """The slices of a series that share a grid, and what became of the others.

    Args:
        slices: in the order given.
        common: the slice whose axes and spacing stand for all.
        warnings: what was left out without a loss, one sentence each.
        losses: what else was left out, one sentence each.
        left_out: how many images these are.
    """

    slices: list[Slice]
    common: Slice
    warnings: list[str]
    losses: list[str]
    left_out: int


def is_enhanced(header: Dataset) -> bool:
    """Whether medqdm made the slice."""
    return "medqdm" == header.get("Manufacturer") == header.get("ManufacturerModelName")


def steps_mm(header: Dataset) -> NDArray[np.float64]:
    """``(2, 3)`` LPS vectors in mm to the next voxel in x and in y."""
    axes = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    spacing_y, spacing_x = (float(v) for v in header.PixelSpacing)  # rows first
    return axes * [[spacing_x], [spacing_y]]


def normal_of(item: Slice) -> NDArray[np.float64]:
    """``(3,)`` unit vector at right angles to a slice."""
    normal = np.cross(*steps_mm(item.header))
    unit: NDArray[np.float64] = normal / np.linalg.norm(normal)
    return unit


def central(slices: Sequence[Slice]) -> Slice:
    """The slice whose axes and spacing are nearest to the median of all; not a matter of order."""
    return slices[_central(_fields_mm(slices))]


def moves_mm(slices: Sequence[Slice], common: Slice) -> NDArray[np.float64]:
    """``(n,)`` how far a slice's voxels would move at the most with axes and spacing of another."""
    return _moves_mm(_fields_mm(slices), _fields_mm([common])[0])


def wobble_mm(slices: Sequence[Slice], common: Slice) -> float:
    """The largest such move along the normal of the other."""
    corners = _corners_mm(_fields_mm(slices) - _fields_mm([common])[0])
    return float(np.abs(corners @ normal_of(common)).max())


def common_of(slices: Sequence[Slice], grid: Slice) -> Slice:
    """The central slice of a part of a grid; where it does not fit all of it, that of the grid."""
    own = central(slices)
    return own if (moves_mm(slices, own) <= _tolerance_mm(own)).all() else grid


def origins_mm(slices: Sequence[Slice], common: Slice) -> NDArray[np.float64]:
    """``(n, 3)`` first voxels on the common grid: outer corners stay where the slices have them."""
    own = np.array([s.header.ImagePositionPatient for s in slices], dtype=np.float64)
    steps = np.array([steps_mm(s.header) for s in slices])
    moved: NDArray[np.float64] = own + (steps_mm(common.header) - steps).sum(axis=1) / 2
    return moved


def grid_warnings(slices: Sequence[Slice], common: Slice) -> list[str]:
    """A sentence on small differences between the slices of a grid."""
    move = float(moves_mm(slices, common).max())
    if move <= EDGE_TOLERANCE_MM:
        return []
    names = {"ImageOrientationPatient": "orientation", "PixelSpacing": "PixelSpacing"}
    what = " and ".join(
        name for tag, name in names.items()
        if len({tuple(map(float, s.header.get(tag))) for s in slices}) > 1
    )  # fmt: skip
    return [
        f"slices differ in {what}, by up to {move:.3f} mm at the edge of the field; DICOM output "
        "keeps each slice's own, other formats get common ones"
    ]


def keep_largest_grid(slices: list[Slice], *, label: str) -> Grid:
    """The largest group of slices on one grid; scouts often hide in a series.

    Args:
        slices: of one series, with whole geometry.
        label: what messages call the series.

    Raises:
        MedQDMError: two groups are the largest, or there are too many.
    """
    found = sorted(_grids(slices), key=len, reverse=True)
    sizes = [len(group) for group in found]
    if len(found) > _MOST_GRIDS or sizes[:1] == sizes[1:2]:
        raise MedQDMError(
            f"{label}: slices must share orientation, matrix and spacing, "
            f"got {len(found)} groups of {', '.join(map(str, sizes[:10]))}; "
            "give the files of one group"
        )
    kept = found[0]
    common = central(kept)
    scouts = sum(len(group) for group in found[1:] if _may_be_scouts(group, common))
    if scouts > len(kept):
        scouts = 0
    lost = len(slices) - len(kept) - scouts
    warnings = [f"left out {scouts} image(s) of another plane, taken for scouts"]
    losses = [f"left out {lost} image(s) of another orientation, matrix or spacing"]
    return Grid(kept, common, warnings * bool(scouts), losses * bool(lost), lost)


def _may_be_scouts(group: list[Slice], common: Slice) -> bool:
    off = abs(float(normal_of(central(group)) @ normal_of(common)))
    return len(group) <= _MOST_SCOUTS and off < _OTHER_PLANE


def _grids(slices: list[Slice]) -> list[list[Slice]]:
    by_matrix: dict[tuple[int, int], list[Slice]] = defaultdict(list)
    for item in slices:
        by_matrix[int(item.header.Rows), int(item.header.Columns)].append(item)
    found: list[list[Slice]] = []
    for same in by_matrix.values():
        fields, rest = _fields_mm(same), np.arange(len(same))
        tolerances = np.array([_tolerance_mm(item) for item in same])
        while len(rest) and len(found) <= _MOST_GRIDS:
            inside = _largest(fields[rest], tolerances[rest])
            found.append([same[k] for k in rest[inside]])
            rest = rest[~inside]
    return found


def _largest(fields: NDArray[np.float64], tolerances: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which slices of one matrix the axes and spacing stand for that fit the most of them."""
    rounded = fields.round(_DECIMALS).reshape(len(fields), -1)
    _, first, counts = np.unique(rounded, axis=0, return_index=True, return_counts=True)
    order = first[np.argsort(-counts, kind="stable")]
    candidates = [_central(fields), *order[:: -(-len(order) // _MOST_CANDIDATES)]]
    masks = [_moves_mm(fields, fields[k]) <= tolerances[k] for k in candidates]
    return max(masks, key=np.count_nonzero)


def _central(fields: NDArray[np.float64]) -> int:
    off = _moves_mm(fields, np.median(fields, axis=0)).round(_DECIMALS)
    keys = [off, *fields.round(_DECIMALS).reshape(len(fields), -1).T]
    return int(np.lexsort(keys[::-1])[0])


def _tolerance_mm(item: Slice) -> float:
    pixel = min(float(v) for v in item.header.PixelSpacing)
    return pixel * _TOLERANCE_PX * (_LARGEST_UPSCALE if is_enhanced(item.header) else 1)


def _fields_mm(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """``(n, 2, 3)`` LPS ways from the first outer corner of each slice to the last in x and in y.

    They are the same in an enlargement.
    """
    return np.array([
        steps_mm(s.header) * [[int(s.header.Columns)], [int(s.header.Rows)]] for s in slices
    ])  # fmt: skip


def _corners_mm(fields: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n, 3, 3)`` the three other outer corners."""
    return np.concatenate([fields, fields.sum(axis=1, keepdims=True)], axis=1)


def _moves_mm(fields: NDArray[np.float64], common: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(_corners_mm(fields - common), axis=2).max(axis=1)
    return lengths
