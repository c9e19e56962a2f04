"""Split: the slices of one series on one grid as acquisitions, by place and by tags."""

import math
import re
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from medqdm.errors import MedQDMError
from medqdm.io.dicom_frames import Slice
from medqdm.io.dicom_grid import central, wobble_mm

POSITION_TOLERANCE_MM = 1e-3
_EVEN = 0.05  # of the usual distance, by which distances of evenly spaced slices may differ
_NUMBER = re.compile(r"-?\d{1,16}(\.\d*)?")
FRAME = "FrameOfReferenceUID"
# What tells acquisitions and reconstructions of one place apart, the surest first. Exposure is not
# among them: it varies within a scan.
_DISTINCTIONS = (
    "AcquisitionNumber", FRAME, "ConvolutionKernel", "ImageType", "TemporalPositionIdentifier",
    "ContentTime", "AcquisitionTime", "TriggerTime", "NominalPercentageOfCardiacPhase",
    "ReconstructionDiameter", "SliceThickness",
)  # fmt: skip
Groups = dict[tuple[str, ...], list[int]]


def split(
    slices: list[Slice], heights: NDArray[np.float64], label: str
) -> list[tuple[str, list[Slice]]]:
    """One named part for each acquisition, if several lie at the same places.

    A series is not split without need: a head scanned step by step has many acquisition numbers.

    Args:
        slices: in spatial order.
        heights: of each in mm along the normal.
        label: what messages call the series.

    Raises:
        MedQDMError: slices share a place and nothing in their headers tells them apart.
    """
    places = np.concatenate([[0], np.cumsum(np.diff(heights) >= POSITION_TOLERANCE_MM)])
    layers = int(np.bincount(places).max())
    if layers == 1:
        return _split_passes(slices, heights)
    for count in (1, 2):
        for keywords in combinations(_DISTINCTIONS, count):
            groups = grouped(slices, keywords)
            if _tells_apart(groups, places, layers):
                return _named(slices, keywords, groups)
    shared = f"got {len(slices) - int(places[-1]) - 1} that share one"
    if len({_number(s, "SliceLocation") for s in slices} - {None}) == len(slices):
        raise MedQDMError(
            f"{label}: every slice must have a position of its own, {shared}, though SliceLocation "
            "tells them apart; positions seem to be rounded, export the series with exact ones"
        )
    numbers = Counter(str(s.header.get("AcquisitionNumber", "none")) for s in slices)
    listing = ", ".join(f"{name}: {count}" for name, count in sorted(numbers.items()))
    rounded = "; or its positions are rounded, export it with exact ones"
    rounded *= _may_be_rounded(slices, heights)
    raise MedQDMError(
        f"{label}: every slice must have a position of its own, {shared} "
        f"(slices by AcquisitionNumber: {listing}); the series holds several acquisitions or "
        "reconstructions that no tag tells apart, give a folder with the files of one" + rounded
    )


def _may_be_rounded(slices: list[Slice], heights: NDArray[np.float64]) -> bool:
    """Whether places are whole millimetres, or one way in the order of InstanceNumber."""
    numbers = [_number(s, "InstanceNumber") for s in slices]
    if np.abs(heights - heights.round()).max() < POSITION_TOLERANCE_MM:
        return True
    if None in numbers or len(set(numbers)) < len(numbers):
        return False
    steps = np.diff(heights[np.argsort(np.array(numbers, dtype=np.float64))])
    return bool((steps > -POSITION_TOLERANCE_MM).all() or (steps < POSITION_TOLERANCE_MM).all())


def _number(item: Slice, keyword: str) -> float | None:
    try:
        return float(item.header.get(keyword))
    except (TypeError, ValueError):
        return None


def _split_passes(
    slices: list[Slice], heights: NDArray[np.float64]
) -> list[tuple[str, list[Slice]]]:
    """Acquisitions at other places: each is evenly spaced, all together are not.

    They have equal distances and lie between each other's slices, or have frames of reference of
    their own. Anything else is one scan with gaps, or with parts of other distances.
    """
    slack = 2 * wobble_mm(slices, central(slices))
    if _is_even(np.diff(heights), slack):
        return [("", slices)]
    for keyword in _DISTINCTIONS:
        groups = grouped(slices, (keyword,))
        steps = [np.diff(heights[group]) for group in groups.values()]
        if len(groups) < 2 or not all(len(s) and _is_even(s, slack) for s in steps):
            continue
        usual = np.array([np.median(s) for s in steps])
        if keyword == FRAME or (_is_even(usual, slack) and overlap(heights, groups)):
            return _named(slices, (keyword,), groups)
    return [("", slices)]


def _is_even(steps: NDArray[np.float64], slack: float) -> bool:
    if len(steps) == 0:
        return True
    return bool(np.ptp(steps) <= max(0.01, _EVEN * float(np.median(steps))) + slack)


def grouped(slices: list[Slice], keywords: tuple[str, ...]) -> Groups:
    """Indices of the slices by their values of some tags."""
    groups: Groups = defaultdict(list)
    for k, item in enumerate(slices):
        groups[tuple(str(item.header.get(key)) for key in keywords)].append(k)
    return groups


def overlap(heights: NDArray[np.float64], groups: Groups) -> bool:
    """Whether a group begins before another ends."""
    ends = sorted((heights[group[0]], heights[group[-1]]) for group in groups.values())
    return any(later[0] < max(end for _, end in ends[: k + 1]) for k, later in enumerate(ends[1:]))


def _named(
    slices: list[Slice], keywords: tuple[str, ...], groups: Groups
) -> list[tuple[str, list[Slice]]]:
    return [
        (_name(keywords, values, n), [slices[k] for k in groups[values]])
        for n, values in enumerate(sorted(groups, key=_in_order))
    ]


def _tells_apart(groups: Groups, places: NDArray[np.int64], layers: int) -> bool:
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
