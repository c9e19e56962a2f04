"""Planes: coronal and sagittal cuts through a stack of slices, in true millimetres."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqdm.picture import orientation_letters
from medqdm.volume import Volume

_REACH = 0.75  # a row shows its nearest slice up to this many steps away, beyond it nothing


@dataclass(frozen=True, eq=False)
class Plane:
    """The planes along one in-plane axis: they are at right angles to the slices.

    Rows are equally high, whatever the distances of the slices: each shows the nearest slice, and
    nothing in a gap. Where slices are shifted against each other (gantry tilt), so are their
    lines, to the nearest pixel of the output.

    Args:
        across: 0: a plane holds rows of the slices, 1: columns.
        count: planes, one per row (or column) of the output.
        height_mm: of a row.
        width_mm: of a column.
        slices: ``(rows,)`` the slice that a row shows, from the top; -1 for none.
        shifts: ``(z, 2)`` pixels (y, x) by which a slice starts later than the middle one.
        size_px: ``(y, x)`` pixels of a slice.
        letters: left, right, top, bottom.
    """

    across: int
    count: int
    height_mm: float
    width_mm: float
    slices: NDArray[np.intp]
    shifts: NDArray[np.intp]
    size_px: tuple[int, int]
    letters: tuple[str, str, str, str]

    @property
    def columns(self) -> int:
        """Columns of a plane: a slice's, and more where slices are shifted."""
        shifts = self.shifts[:, 1 - self.across]
        return self.size_px[1 - self.across] + int(np.ptp(shifts))

    def line(self, index: NDArray[np.intp], z: int) -> NDArray[np.intp]:
        """Which row (or column) of slice z lies in each plane, in pixels, cut to the slice."""
        return self._line(index, z).clip(0, self.count - 1)

    def _line(self, index: Any, z: int) -> NDArray[np.intp]:
        return np.asarray(index - self.shifts[z, self.across])

    def lines(self, image: NDArray[Any], index: NDArray[np.intp]) -> NDArray[Any]:
        """Rows (or columns) of a slice, ``(lines, pixels along them)``."""
        return image[index] if self.across == 0 else image[:, index].T

    def assemble(self, lines: NDArray[Any], index: int, cell_px: int) -> NDArray[Any]:
        """One plane as it is shown.

        Args:
            lines: ``(z, pixels)`` of the plane, one line of each slice.
            index: of the plane.
            cell_px: side of the lines' pixels in pixels of the output.

        Returns:
            ``(rows, columns)`` of the lines' type; NaN (or 0) where there is no slice.
        """
        length = self.size_px[1 - self.across]
        fine = lines.repeat(cell_px, axis=1)[:, :length]
        blank = np.nan if np.issubdtype(lines.dtype, np.floating) else 0
        placed = np.full((len(lines), self.columns), blank, dtype=lines.dtype)
        starts = self.shifts[:, 1 - self.across]
        for z, start in enumerate(starts - starts.min()):
            if 0 <= self._line(index, z) < self.count:
                placed[z, start : start + length] = fine[z]
        shown = placed[self.slices]
        shown[self.slices < 0] = blank
        return shown


def planes_of(volume: Volume) -> dict[str, Plane]:
    """The coronal and sagittal planes of a stack; none of a single slice.

    Names are those of an axial stack: ``coronal`` planes hold rows, ``sagittal`` ones columns.
    """
    if len(volume.hu) < 2:
        return {}
    steps = (volume.y_step_mm, volume.x_step_mm)
    lengths = np.array(volume.spacing_mm)
    units = np.stack([step / np.linalg.norm(step) for step in steps])
    offsets = (volume.origins_mm - volume.origins_mm[len(volume.hu) // 2]) @ units.T
    shifts = np.rint(offsets / lengths).astype(np.intp)
    normal = np.cross(volume.x_step_mm, volume.y_step_mm)
    below, above = orientation_letters(normal)
    is_upward = above[0] in "HAL"
    positions = volume.positions_mm
    step = float(np.median(np.abs(np.diff(positions))))
    slices = _slices_of_rows(positions, step)
    if is_upward:
        slices, top, bottom = slices[::-1], above, below
    else:
        top, bottom = below, above
    planes = {}
    for across, name in enumerate(("coronal", "sagittal")):
        left, right = orientation_letters(steps[1 - across])
        planes[name] = Plane(
            across=across,
            count=volume.shape[1 + across],
            height_mm=step,
            width_mm=float(lengths[1 - across]),
            slices=slices,
            shifts=shifts,
            size_px=volume.shape[1:],
            letters=(left, right, top, bottom),
        )
    return planes


def _slices_of_rows(positions_mm: NDArray[np.float64], step_mm: float) -> NDArray[np.intp]:
    """The nearest slice of each row, rows ascending along the normal."""
    rows = round(float(np.ptp(positions_mm)) / step_mm) + 1
    places = positions_mm.min() + step_mm * np.arange(rows)
    away = np.abs(places[:, None] - positions_mm[None])
    nearest = away.argmin(axis=1)
    return np.where(away.min(axis=1) <= _REACH * step_mm, nearest, -1)
