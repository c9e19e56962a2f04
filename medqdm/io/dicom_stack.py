"""Stacks: the CT files of one series as slices in spatial order, one stack an acquisition."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import sha256
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medqdm.errors import MedQDMError
from medqdm.io.dicom_frames import Slice, read_slice
from medqdm.io.dicom_open import check_syntax, one_line_for, shallow_copy
from medqdm.io.dicom_owner import check_owner
from medqdm.io.dicom_pixels import to_hu

ORIENTATION_TOLERANCE = 1e-4  # of direction cosines
POSITION_TOLERANCE_MM = 1e-3
_NUMBER = re.compile(r"-?\d{1,16}(\.\d*)?")
_MOST_GRIDS = 32  # kinds of slices in one series; each slice is compared with all of them
LARGEST_SIDE = 8192  # pixels of a slice; scanners make 256 to 2048
_GEOMETRY = {
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
    "PixelSpacing": 2,
    "Rows": 1,
    "Columns": 1,
}
# What tells acquisitions and reconstructions of one place apart, the surest first. Exposure is not
# among them: it varies within a scan.
_DISTINCTIONS = (
    "AcquisitionNumber", "ConvolutionKernel", "ImageType", "TemporalPositionIdentifier",
    "ContentTime", "AcquisitionTime", "TriggerTime", "NominalPercentageOfCardiacPhase",
    "ReconstructionDiameter", "SliceThickness",
)  # fmt: skip


class Stack(NamedTuple):
    """Slices of one acquisition, one at a place.

    Args:
        number: which acquisition of its series it is, from 1; 0 if it is the only one.
        name: what it differs in from the others of its series, such as ``AcquisitionNumber 2``;
            empty if it is the only one.
        slices: in spatial order.
        warnings: what is odd about them, one sentence each.
    """

    number: int
    name: str
    slices: list[Slice]
    warnings: list[str]


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
        slices = _keep_largest_grid(slices, warnings, label)
        heights = heights_mm(slices)
        order = np.argsort(heights, kind="stable")
        slices = [slices[i] for i in order]
        parts = _split(slices, heights[order], label)
        first = int(len(parts) > 1)
        return [
            Stack(number, name, part, [*warnings, *_spacing_warnings(part)])
            for number, (name, part) in enumerate(parts, first)
        ]


def heights_mm(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """Position of each slice in mm along the normal of the first."""
    axes = np.array(slices[0].header.ImageOrientationPatient, dtype=np.float64)
    origins = np.array([s.header.ImagePositionPatient for s in slices], dtype=np.float64)
    return origins @ np.cross(axes[:3], axes[3:])


def num_gaps(slices: Sequence[Slice]) -> int:
    """Places where slices seem to be missing: one and a half times the usual distance."""
    return len(_steps(slices)[1])


def tilt_degrees(slices: Sequence[Slice]) -> float:
    """The angle between the slices' normal and the way from the first to the last, from vectors.

    GantryDetectorTilt says the same at best; it is not meant for geometry.
    """
    axes = np.array(slices[0].header.ImageOrientationPatient, dtype=np.float64)
    first, last = (
        np.array(slices[k].header.ImagePositionPatient, dtype=np.float64) for k in (0, -1)
    )
    way = last - first
    length = float(np.linalg.norm(way))
    if length < POSITION_TOLERANCE_MM:
        return 0.0
    cosine = abs(float(np.cross(axes[:3], axes[3:]) @ way)) / length
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def is_localizer(item: Slice) -> bool:
    """Whether it is a scout, a projection, by its ImageType."""
    return "LOCALIZER" in _values(item.header.get("ImageType"))


def is_enhanced(header: Dataset) -> bool:
    """Whether medqdm made the slice."""
    return "medqdm" == header.get("Manufacturer") == header.get("ManufacturerModelName")


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


def _keep_largest_grid(slices: list[Slice], warnings: list[str], label: str) -> list[Slice]:
    """The largest group of slices on one kind of grid; scouts often hide in a series."""
    stacks: list[list[Slice]] = []
    for item in slices:
        for stack in stacks:
            if _same_grid(item.header, stack[0].header):
                stack.append(item)
                break
        else:
            stacks.append([item])
        if len(stacks) > _MOST_GRIDS:
            break
    stacks.sort(key=len, reverse=True)
    if len(stacks) > _MOST_GRIDS or (len(stacks) > 1 and len(stacks[0]) == len(stacks[1])):
        raise MedQDMError(
            f"{label}: slices must share orientation, matrix, spacing and frame of reference, "
            f"got {len(stacks)} groups of {', '.join(str(len(stack)) for stack in stacks[:10])}; "
            "give the files of one group"
        )
    if len(stacks) > 1:
        left = len(slices) - len(stacks[0])
        warnings.append(
            f"left out {left} image(s) of another orientation, matrix, spacing or frame"
        )
    return stacks[0]


def _same_grid(header: Dataset, other: Dataset) -> bool:
    def numbers(tag: str) -> NDArray[np.float64]:
        pair = np.array([header.get(tag), other.get(tag)], dtype=np.float64)
        return np.abs(pair[0] - pair[1])

    return bool(
        (header.Rows, header.Columns) == (other.Rows, other.Columns)
        and header.get("FrameOfReferenceUID") == other.get("FrameOfReferenceUID")
        and numbers("ImageOrientationPatient").max() <= ORIENTATION_TOLERANCE
        and numbers("PixelSpacing").max() <= ORIENTATION_TOLERANCE
    )


def _split(
    slices: list[Slice], heights: NDArray[np.float64], label: str
) -> list[tuple[str, list[Slice]]]:
    """One named part for each acquisition, if several lie at the same places.

    A series is not split without need: a head scanned step by step has many acquisition numbers.
    """
    places = np.concatenate([[0], np.cumsum(np.diff(heights) >= POSITION_TOLERANCE_MM)])
    layers = int(np.bincount(places).max())
    if layers == 1:
        return [("", slices)]
    for count in (1, 2):
        for keywords in combinations(_DISTINCTIONS, count):
            groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
            for k, item in enumerate(slices):
                groups[tuple(str(item.header.get(key)) for key in keywords)].append(k)
            if _tells_apart(groups, places, layers):
                return [
                    (_name(keywords, values, n), [slices[k] for k in groups[values]])
                    for n, values in enumerate(sorted(groups, key=_in_order))
                ]
    shared = len(slices) - int(places[-1]) - 1
    numbers = Counter(str(s.header.get("AcquisitionNumber", "none")) for s in slices)
    listing = ", ".join(f"{name}: {count}" for name, count in sorted(numbers.items()))
    raise MedQDMError(
        f"{label}: every slice must have a position of its own, got {shared} that share one "
        f"(slices by AcquisitionNumber: {listing}); the series holds several acquisitions or "
        "reconstructions that no tag tells apart, give a folder with the files of one"
    )


def _tells_apart(
    groups: dict[tuple[str, ...], list[int]], places: NDArray[np.int64], layers: int
) -> bool:
    """Whether no group has two slices at a place, and they are no mere single slices."""
    are_few = len(groups) == layers or 2 * len(groups) <= len(places)
    apart = all(len(np.unique(places[group])) == len(group) for group in groups.values())
    return len(groups) > 1 and are_few and apart


def _in_order(values: tuple[str, ...]) -> list[tuple[float, str]]:
    """Numbers by size, before words: file names must not decide which acquisition is the first."""
    return [(float(v), v) if _NUMBER.fullmatch(v) else (math.inf, v) for v in values]


def _name(keywords: tuple[str, ...], values: tuple[str, ...], n: int) -> str:
    """The acquisition number if it is one; other values might name somebody."""
    number = values[0] if keywords == ("AcquisitionNumber",) else ""
    return f"AcquisitionNumber {number}" if number.isdigit() else f"{keywords[0]}, part {n + 1}"


def _spacing_warnings(slices: list[Slice]) -> list[str]:
    steps, wide, usual = _steps(slices)
    if len(steps) == 0 or np.ptp(steps) <= 0.01:
        return []
    if len(wide) == 0:
        return [f"slices are unevenly spaced, {steps.min():.3f} to {steps.max():.3f} mm"]
    k = int(wide[0])
    return [
        f"{len(wide)} gap(s) between slices: {steps[k]:.3f} mm between slices {k + 1} and {k + 2}, "
        f"usually {usual:.3f} mm; slices may be missing"
    ]


def _steps(slices: Sequence[Slice]) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
    """The distances between slices in mm, which of them are gaps, and the usual one."""
    steps = np.diff(heights_mm(slices))
    usual = float(np.sort(steps)[(len(steps) - 1) // 2]) if len(steps) else 0.0
    wide = np.flatnonzero((steps > 1.5 * usual) & (steps - usual > 0.01))
    return steps, wide, usual
