"""Report of lesions: what comes back of each kind of disc, at each threshold, and the verdict."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage

from medqdm import picture
from medqdm.evaluate.document import COLOURS, MARKERS, cell, heading, table, write_document
from medqdm.window import Window
from studies.detectability import discs, lesions
from studies.detectability.discs import CONTRASTS_HU, DIAMETERS_MM, KINDS, Kind
from studies.detectability.lesions import BY_THE_DISCS, Lesions
from studies.thresholds.sweep import row_name

NAME = "lesions"
DENSE = row_name(0.0)
_SOFT = Window(center_hu=40, width_hu=400)
_DIFFERENCES = Window(center_hu=0, width_hu=200)


def write_lesions(
    found: Lesions, out: Path, *, about: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write ``lesions.json``, ``lesions.md`` and pictures into a folder, whole or not.

    Args:
        found: what ``measure_lesions`` found.
        out: the folder to appear.
        about: what the data were, as JSON; no paths.
        overwrite: whether a folder with files in it may be replaced.

    Raises:
        MedQDMError: something is there that may not be replaced.
    """
    write_document(
        out,
        NAME,
        data=to_json(found, about),
        text=markdown(found, about),
        figures={"lesions.png": plot(found), "discs.png": picture_of_discs(found)},
        overwrite=overwrite,
    )


def to_json(found: Lesions, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "settings": found.settings,
        "data": dict(about),
        "default": found.default,
        "kinds": [
            {
                "contrast_hu": kind[0],
                "diameter_mm": kind[1],
                "discs": found.count(kind),
                "shown_by_bicubic": found.count(kind, only_shown=True),
                "recovered": {method: found.mean(method, kind) for method in found.methods},
                "visibility": {m: found.mean(m, kind, value="visibility") for m in found.methods},
                "over_bicubic": {m: found.against_bicubic(m, kind) for m in found.methods},
            }
            for kind in KINDS
        ],
        "erased": {method: found.erased(method) for method in found.methods},
        "erased_share_of_discs": {m: found.erased_share(m) for m in found.methods},
        "rows": [asdict(recovery) for recovery in found.recoveries],
    }


def markdown(found: Lesions, about: Mapping[str, Any]) -> str:
    """The verdict, then a table for each method."""
    task = found.settings["task"]
    slices = {(r.patient, r.slice) for r in found.recoveries}
    patients = {r.patient for r in found.recoveries}
    lines = [
        f"# Low-contrast discs in {task['name']}, x{task['upscale']} in plane",
        "",
        heading(found.settings, len(slices), len(patients)),
        "",
        *(f"- {key}: {cell(value)}" for key, value in about.items()),
        "",
        "## Does the threshold erase what bicubic shows?",
        "",
        *verdicts(found),
        "",
        "## How it was measured",
        "",
        *_explanation(),
    ]
    for method in found.methods:
        lines += ["", f"## {method}: recovered contrast", "", *_kinds(found, method)]
    for method in (lesions.BICUBIC, found.default):
        lines += ["", f"## {method}: visibility", "", *_visibility(found, method)]
    lines += ["", "## Number of discs that bicubic shows", "", *_counts(found)]
    return "\n".join(lines) + "\n"


def verdicts(found: Lesions) -> Iterator[str]:
    """A line for each method but bicubic: what it erases, and whether the threshold is to blame."""
    judged, dense = found.judged(), set(found.erased(DENSE))
    if not judged:
        yield (
            f"- No verdict: of no kind does bicubic show {lesions.LEAST_SHOWN} discs above its own "
            "noise; take more slices, or --degradation clean."
        )
        return
    for method in found.methods:
        if method == lesions.BICUBIC:
            continue
        lost, share = found.erased(method), found.erased_share(method)
        parts = [f"erases {len(lost) or 'none'} of {len(judged)} kinds of disc that bicubic shows"]
        if lost and DENSE in found.methods and method != DENSE:
            parts.append(f"{len(dense & set(lost))} of them at s = 0 too, with no threshold")
        if share is not None:
            parts.append(f"of the single discs {_percent(share)}")
        is_default = " (the default)" if method == found.default else ""
        yield f"- {method}{is_default}: {'; '.join(parts)}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _explanation() -> Iterator[str]:
    low, high = discs.RING_LR_PX
    yield (
        "Discs are put into flat soft tissue of the HR slices before these are degraded, far from "
        "each other, all kinds as evenly as there is room. Each method runs with and without them "
        "under the same degradation and noise (Gaussian, which does not depend on the image), and "
        "the difference is read: mean of the disc's core minus mean of a ring "
        f"{low} to {high} input pixels beyond its edge, over the same of the truth. 100 %: all of "
        "the contrast. Means over a patient's discs, then over patients."
    )
    yield ""
    yield (
        f"Bicubic shows a disc if its contrast there is {lesions.SHOWN_AT:g} times the noise of "
        "areas of the disc's size in its own output. Kinds with fewer than "
        f"{lesions.LEAST_SHOWN} such discs are not judged; their cells, in brackets, are means "
        "over all discs, the others' over those that bicubic shows. Erased: less than "
        f"{_percent(lesions.ERASED_SHARE)} of what bicubic recovers. Visibility is the contrast "
        "over the method's own noise of areas of that size: a method that smooths noise and discs "
        "alike keeps visibility and erases all the same. The noise is read close to the disc, "
        "where smoothed noise hardly differs, so compare visibility within a method. Nobody has "
        "looked at these discs; a table of them is no reader study."
    )


def _kinds(found: Lesions, method: str) -> list[str]:
    lost, judged = found.erased(method), found.judged()

    def shown(kind: Kind) -> str:
        mean = found.mean(method, kind, only_shown=kind in judged)
        if mean is None:
            return "-"
        text = _percent(mean.mean)
        if kind not in judged:
            return f"({text})"
        return f"**{text}** erased" if kind in lost else text

    return _grid(shown)


def _visibility(found: Lesions, method: str) -> list[str]:
    def shown(kind: Kind) -> str:
        mean = found.mean(method, kind, value="visibility")
        return "-" if mean is None else f"{mean.mean:.1f}"

    return _grid(shown)


def _counts(found: Lesions) -> list[str]:
    return _grid(lambda kind: f"{found.count(kind, only_shown=True)} of {found.count(kind)}")


def _grid(shown: Callable[[Kind], str]) -> list[str]:
    """A table of contrasts and diameters."""
    head = ["contrast", *(f"{d:g} mm" for d in DIAMETERS_MM)]
    rows = [[f"{c:+g} HU", *(shown((c, d)) for d in DIAMETERS_MM)] for c in CONTRASTS_HU]
    return table(head, rows)


def plot(found: Lesions) -> Figure:
    """Recovered contrast over diameter, a panel for each contrast, a line for each method."""
    rows, columns = 2, len(CONTRASTS_HU) // 2
    figure = Figure(figsize=(15, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True)
    negative = [c for c in reversed(CONTRASTS_HU) if c < 0]
    positive = [c for c in CONTRASTS_HU if c > 0]
    for axis, contrast in zip(axes.flat, [*positive, *negative], strict=True):
        for k, method in enumerate(found.methods):
            points = [
                (diameter, 100 * mean.mean)
                for diameter in DIAMETERS_MM
                if (mean := found.mean(method, (contrast, diameter))) is not None
            ]
            axis.plot(
                [x for x, _ in points], [y for _, y in points], label=method,
                color=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)], markersize=5,
                linestyle="--" if method == lesions.BICUBIC else "-",
            )  # fmt: skip
        axis.axhline(100, color="#555555", linewidth=0.8)
        axis.axhline(0, color="#555555", linewidth=0.8)
        axis.set_title(f"{contrast:+g} HU", loc="left")
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("diameter [mm]")
        axis.set_xticks(DIAMETERS_MM)
    for axis in axes[:, 0]:
        axis.set_ylabel("recovered contrast [%]")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    task = found.settings["task"]
    figure.suptitle(
        f"{task['name']}, x{task['upscale']}: what comes back of a disc in soft tissue, all discs. "
        f"Default: {found.default}"
    )
    return figure


def picture_of_discs(found: Lesions) -> Figure:
    """The slice with the most discs, what they change in two outputs, and a close-up."""
    changed = np.abs(next(hu for name, hu in found.example.items() if BY_THE_DISCS in name))
    side = max(32, min(changed.shape) // 4)
    most = ndimage.uniform_filter(changed, side, mode="constant").argmax()
    y, x = (
        min(max(0, int(k) - side // 2), length - side)
        for k, length in zip(np.unravel_index(most, changed.shape), changed.shape, strict=True)
    )
    panels = {
        name: picture.to_grey(hu, _DIFFERENCES if BY_THE_DISCS in name else _SOFT)
        for name, hu in found.example.items()
    }
    close_up = {name: image[y : y + side, x : x + side] for name, image in panels.items()}
    return picture.grid(
        [panels, close_up],
        title=f"discs of 10 to 100 HU; images {_SOFT.low_hu:g} to {_SOFT.high_hu:g} HU, "
        f"differences {_DIFFERENCES.low_hu:g} to {_DIFFERENCES.high_hu:g} HU. "
        "Synthetic; not for diagnostic use",
    )
