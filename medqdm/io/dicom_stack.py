"""Stacks: the CT files of one series as slices in spatial order, one stack an acquisition."""

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medqdm.errors import MedQDMError
from medqdm.io.dicom_frames import Slice, read_slice
from medqdm.io.dicom_grid import (
    central,
    common_of,
    grid_warnings,
    keep_largest_grid,
    normal_of,
)
from medqdm.io.dicom_open import check_syntax, one_line_for, shallow_copy
from medqdm.io.dicom_owner import check_owner
from medqdm.io.dicom_pixels import to_hu
from medqdm.io.dicom_split import FRAME, POSITION_TOLERANCE_MM, grouped, overlap, split

LARGEST_SIDE = 8192  # pixels of a slice; scanners make 256 to 2048
_GEOMETRY = {
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
    "PixelSpacing": 2,
    "Rows": 1,
    "Columns": 1,
}


class Stack(NamedTuple):
    """Slices of one acquisition, one at a place.

    Args:
        number: which acquisition of its series it is, from 1; 0 if it is the only one.
        name: what it differs in from the others of its series, such as ``AcquisitionNumber 2``;
            empty if it is the only one.
        slices: in spatial order.
        common: the slice whose axes and spacing stand for all; see ``dicom_grid``.
        warnings: what is odd about them, one sentence each, the losses among it.
        losses: which images of the series are in no stack though they should be.
        left_out: how many these are.
    """

    number: int
    name: str
    slices: list[Slice]
    common: Slice
    warnings: list[str]
    losses: list[str]
    left_out: int


def arrange(slices: list[Slice], *, label: str) -> list[Stack]:
    """The stacks of one series: one, or one for each acquisition at the same places.

    Args:
        slices: all CT slices of one series.
        label: what messages call the series.

    Raises:
        MedQDMError: geometry is missing, files contradict each other, belong to several studies
            or patients, or two slices share a place and nothing in their headers tells them apart.
    """
    with one_line_for(label):
        warnings: list[str] = []
        _check_owner(slices, warnings, label)
        slices = _drop_localizers(slices, warnings, label)
        for item in slices:
            check_syntax(item.header, where=item.name)
            check_geometry(item)
        slices = _drop_duplicates(slices, warnings)
        grid = keep_largest_grid(slices, label=label)
        warnings += [*grid.warnings, *grid.losses]
        heights = heights_mm(grid.slices)
        order = np.argsort(heights, kind="stable")
        slices = [grid.slices[i] for i in order]
        parts = split(slices, heights[order], label)
        stacks = []
        for number, (name, part) in enumerate(parts, int(len(parts) > 1)):
            common = common_of(part, grid.common)
            odd = [*grid_warnings(part, common), *_frame_warnings(part), *_spacing_warnings(part)]
            stacks.append(
                Stack(number, name, part, common, warnings + odd, grid.losses, grid.left_out)
            )
        return stacks


def heights_mm(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """Position of each slice in mm along the common normal."""
    origins = np.array([s.header.ImagePositionPatient for s in slices], dtype=np.float64)
    return origins @ normal_of(central(slices))


def num_gaps(slices: Sequence[Slice]) -> int:
    """Places where slices seem to be missing: one and a half times the usual distance."""
    return len(_steps(slices)[1])


def tilt_degrees(slices: Sequence[Slice]) -> float:
    """The angle between the slices' normal and the way from the first to the last, from vectors.

    GantryDetectorTilt says the same at best; it is not meant for geometry.
    """
    first, last = (
        np.array(slices[k].header.ImagePositionPatient, dtype=np.float64) for k in (0, -1)
    )
    way = last - first
    length = float(np.linalg.norm(way))
    if length < POSITION_TOLERANCE_MM:
        return 0.0
    cosine = abs(float(normal_of(central(slices)) @ way)) / length
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def is_localizer(item: Slice) -> bool:
    """Whether it is a scout, a projection, by its ImageType."""
    return "LOCALIZER" in _values(item.header.get("ImageType"))


def check_geometry(item: Slice) -> None:
    """Refuse a slice whose place in the patient its header does not tell.

    Raises:
        MedQDMError: orientation, position, spacing or matrix is missing or damaged.
    """
    for tag, count in _GEOMETRY.items():
        value = item.header.get(tag)
        try:
            numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
        except (TypeError, ValueError):
            numbers = np.array([])
        if value is None or numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise MedQDMError(
                f"{item.name}: a CT slice must have {tag} ({count} numbers), got none or a "
                "damaged one; its place in the patient cannot be known without it"
            )
    sides = int(item.header.Rows), int(item.header.Columns)
    if not 1 <= min(sides) <= max(sides) <= LARGEST_SIDE:
        raise MedQDMError(
            f"{item.name}: a CT slice must have 1 to {LARGEST_SIDE} rows and columns, "
            f"got {sides[0]} x {sides[1]}; its header is damaged"
        )
    spacing = [float(v) for v in item.header.PixelSpacing]
    if min(spacing) <= 0:
        raise MedQDMError(
            f"{item.name}: PixelSpacing must be above 0 mm, got {spacing}; "
            "the geometry in its header is damaged"
        )
    axes = np.array(item.header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
        raise MedQDMError(
            f"{item.name}: ImageOrientationPatient must be two unit vectors at a right angle, "
            "got others; the geometry in its header is damaged"
        )


def _check_owner(slices: list[Slice], warnings: list[str], label: str) -> None:
    # copies: values that are merely kept stay undecoded
    warnings += check_owner([shallow_copy(item.header) for item in slices], where=label)


def _drop_localizers(slices: list[Slice], warnings: list[str], label: str) -> list[Slice]:
    kept = [s for s in slices if not is_localizer(s)]
    if not kept:
        raise MedQDMError(
            f"{label}: must hold CT slices, got {len(slices)} localizers only; "
            "a scout is a projection and cannot be enhanced"
        )
    if len(kept) < len(slices):
        warnings.append(f"left out {len(slices) - len(kept)} localizer image(s)")
    return kept


def _values(value: object) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(v) for v in value]  # type: ignore[attr-defined]


def _drop_duplicates(slices: list[Slice], warnings: list[str]) -> list[Slice]:
    """One file of each SOPInstanceUID; other pixels under the same UID are a contradiction."""
    by_uid: dict[tuple[str, int | None], list[Slice]] = defaultdict(list)
    nameless: list[Slice] = []
    for item in slices:
        uid = str(item.header.get("SOPInstanceUID", "") or "")
        (by_uid[uid, item.frame] if uid else nameless).append(item)
    for items in by_uid.values():
        if len(items) > 1 and len({_content(item) for item in items}) > 1:
            raise MedQDMError(
                f"{items[0].name} and {items[1].name}: files with one SOPInstanceUID "
                "must be identical, got different pixels or positions; remove the wrong one"
            )
    dropped = sum(len(items) - 1 for items in by_uid.values())
    if dropped:
        warnings.append(f"left out {dropped} duplicate file(s)")
    if nameless:
        warnings.append(f"{len(nameless)} slice(s) without SOPInstanceUID")
    return [items[0] for items in by_uid.values()] + nameless


def _content(item: Slice) -> tuple[bytes, str]:
    """A checksum of the pixels, and the place."""
    pixels = to_hu(read_slice(item), where=item.name)
    return sha256(pixels.hu.data).digest(), str(item.header.ImagePositionPatient)


def _frame_warnings(slices: list[Slice]) -> list[str]:
    frames = len({str(s.header.get(FRAME) or "") for s in slices})
    if frames == 1:
        return []
    return [
        f"{FRAME} differs between slices: {frames} frames of reference in {len(slices)} slices "
        "whose places make one stack; the output gets one of them"
    ]


def _spacing_warnings(slices: list[Slice]) -> list[str]:
    steps, wide, usual = _steps(slices)
    if len(steps) == 0 or np.ptp(steps) <= 0.01:
        return []
    acquisitions = grouped(slices, ("AcquisitionNumber",))
    mixed = [
        f"{len(acquisitions)} acquisitions (by AcquisitionNumber) lie between each other's slices; "
        "the patient may have moved from one to the next"
    ] * overlap(heights_mm(slices), acquisitions)
    if len(wide) == 0:
        return [f"slices are unevenly spaced, {steps.min():.3f} to {steps.max():.3f} mm", *mixed]
    k = int(wide[0])
    return [
        *mixed,
        f"{len(wide)} gap(s) between slices: {steps[k]:.3f} mm between slices {k + 1} and {k + 2}, "
        f"usually {usual:.3f} mm; slices may be missing",
    ]


def _steps(slices: Sequence[Slice]) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """The distances between slices in mm, which of them are gaps, and the usual one."""
    steps = np.diff(heights_mm(slices))
    usual = float(np.sort(steps)[(len(steps) - 1) // 2]) if len(steps) else 0.0
    wide = np.flatnonzero((steps > 1.5 * usual) & (steps - usual > 0.01))
    return steps, wide, usual
