"""Failures: where an output is furthest from the truth, and where interpolation is nearer to it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from medqdm import picture
from medqdm.data import Pair
from medqdm.evaluate.document import table
from medqdm.window import Window

Image = NDArray[np.float32]
SIDE_PX = 64  # of the squares that are looked at
BASELINE = "bicubic"
LARGEST, WORSE = "largest error", f"worse than {BASELINE}"
MOST_SHOWN = 8  # rows of the picture
WHITE_HU_SHARE = 0.1  # of the window: where a difference is shown white


@dataclass(frozen=True, eq=False)
class Failure:
    """A square of a slice.

    Args:
        patient: folder or file name of the patient.
        slice: number of the slice among the patient's, from 0.
        kind: ``largest error`` or ``worse than bicubic``.
        row: of its first pixel.
        column: of its first pixel.
        error_hu: mean absolute error of the output there.
        baseline_error_hu: that of the baseline.
        panels: input (its pixels repeated), baseline, output and reference, ``(side, side)`` HU.
    """

    patient: str
    slice: int
    kind: str
    row: int
    column: int
    error_hu: float
    baseline_error_hu: float
    panels: dict[str, Image]

    @property
    def badness_hu(self) -> float:
        """What its kind is about."""
        baseline = self.baseline_error_hu if self.kind == WORSE else 0.0
        return self.error_hu - baseline


def find(pair: Pair, outputs: Mapping[str, Image], body: NDArray[np.bool_]) -> list[Failure]:
    """The worst square of each kind in a slice; those whose middle lies in the body count.

    Args:
        pair: the slice.
        outputs: method to ``(y, x)`` in HU; the first is looked at, ``bicubic`` must be there.
        body: ``(y, x)`` mask.
    """
    ours = next(iter(outputs))
    hr_hu = pair["hr_hu"]
    side = min(SIDE_PX, *hr_hu.shape)
    errors = {
        name: ndimage.uniform_filter(np.abs(outputs[name] - hr_hu), side)
        for name in (ours, BASELINE)
    }
    half = side // 2
    inside = np.zeros_like(body)
    height, width = (length - side for length in body.shape)
    middles = slice(half, half + height + 1), slice(half, half + width + 1)
    inside[middles] = body[middles]
    if not inside.any():
        return []
    factor = hr_hu.shape[1] // pair["lr_hu"].shape[1]
    shown = {
        "input": pair["lr_hu"].repeat(factor, axis=0).repeat(factor, axis=1),
        BASELINE: outputs[BASELINE],
        ours: outputs[ours],
        "reference": hr_hu,
    }
    found = []
    for kind, badness in ((LARGEST, errors[ours]), (WORSE, errors[ours] - errors[BASELINE])):
        y, x = np.unravel_index(np.where(inside, badness, -np.inf).argmax(), badness.shape)
        row, column = int(y) - half, int(x) - half
        area = slice(row, row + side), slice(column, column + side)
        found.append(
            Failure(
                pair["patient"],
                pair["slice"],
                kind,
                row,
                column,
                float(errors[ours][y, x]),
                float(errors[BASELINE][y, x]),
                {name: image[area].copy() for name, image in shown.items()},
            )
        )
    return found


def keep_worst(kept: dict[tuple[str, str], Failure], found: Sequence[Failure]) -> None:
    """Keep the worst of each patient and kind.

    Args:
        kept: patient and kind to the worst so far; changed.
        found: of one more slice.
    """
    for failure in found:
        key = (failure.patient, failure.kind)
        if key not in kept or failure.badness_hu > kept[key].badness_hu:
            kept[key] = failure


def lines(failures: Sequence[Failure]) -> Iterator[str]:
    """The section on failures."""
    yield "## Where it fails"
    yield ""
    yield (
        f"Squares of {SIDE_PX} pixels inside the body, the worst of each patient: where the mean "
        f"absolute error is largest, and where it exceeds that of {BASELINE} most (a negative "
        f"difference: {BASELINE} is nowhere nearer to the truth). failures.png shows the worst of "
        "them, half of each kind."
    )
    yield ""
    yield from table(
        ["patient", "slice", "what", "first row", "first column", "error [HU]", f"{BASELINE} [HU]"],
        [
            [
                failure.patient,
                str(failure.slice),
                failure.kind,
                str(failure.row),
                str(failure.column),
                f"{failure.error_hu:.1f}",
                f"{failure.baseline_error_hu:.1f}",
            ]
            for failure in failures
        ],
    )


def plot(failures: Sequence[Failure], window: Window, name: str) -> Figure:
    """The worst, a row each: input, baseline, output, reference, and both differences.

    Args:
        failures: one or more.
        window: for the grey values.
        name: of the task.
    """
    white = WHITE_HU_SHARE * window.width_hu
    by_kind = [[f for f in failures if f.kind == kind] for kind in (LARGEST, WORSE)]
    worst = [sorted(found, key=lambda f: -f.badness_hu)[: MOST_SHOWN // 2] for found in by_kind]
    rows = []
    for failure in (f for found in worst for f in found):
        row = {title: picture.to_grey(hu, window) for title, hu in failure.panels.items()}
        for title in list(failure.panels)[1:3]:
            difference = np.abs(failure.panels[title] - failure.panels["reference"]) / white
            row[f"|{title} - reference|"] = difference.clip(0, 1).astype(np.float32)
        rows.append(row)
    return picture.grid(
        rows,
        title=f"{name}, where it fails, not for diagnostic use; "
        f"differences are white from {white:g} HU",
    )
