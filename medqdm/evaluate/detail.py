"""Detail: tables and figure of errors by tissue, sharpness, texture, seams and deviations."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medqdm.evaluate.calibration import ERROR, VARIANCE, WITHIN
from medqdm.evaluate.document import COLOURS, MARKERS, number, table, with_interval
from medqdm.evaluate.evaluation import REFERENCE, Evaluation
from medqdm.evaluate.intervals import Interval
from medqdm.evaluate.tissue import as_shown, deep_in
from medqdm.evaluate.truth import BODY, FLAT, FLAT_SHOWN, WHOLE
from medqdm.metrics import TISSUES

# (title, metric, region) of what is shown as a multiple of the truth's own
RATIOS = (
    ("edge rise", "edge_rise_mm", WHOLE),
    ("edges as shown", "shown_rise_mm", WHOLE),
    ("flat: SD", "sd_hu", FLAT),
    ("flat: power below", "power_low_hu2", FLAT),
    ("flat: power above", "power_high_hu2", FLAT),
    ("flat as shown: SD", "sd_hu", FLAT_SHOWN),
    ("flat as shown: power below", "power_low_hu2", FLAT_SHOWN),
    ("flat as shown: power above", "power_high_hu2", FLAT_SHOWN),
    ("flat as shown: squares", "flat_squares", WHOLE),
    ("body: power below", "power_low_hu2", BODY),
    ("body: power above", "power_high_hu2", BODY),
    ("seams: input pixels", "seam_pixel", WHOLE),
    ("seams: cells", "seam_cell", WHOLE),
    ("seams: windows", "seam_window", WHOLE),
    ("seams: tiles", "seam_tile", WHOLE),
)
_UNITS = {"_mm": " mm", "_hu": " HU", "_hu2": " HU^2"}


def ratios(evaluation: Evaluation) -> dict[str, Any]:
    """For each method all that is shown as a multiple of the truth's own, with intervals."""
    return {
        method: {
            f"{region}.{metric}": found
            for _, metric, region in RATIOS
            if (found := evaluation.ratio(metric, method, region)) is not None
        }
        for method in evaluation.methods
    }


def tissue_lines(evaluation: Evaluation) -> Iterator[str]:
    """The section on tissues."""
    yield "## By tissue"
    yield ""
    yield (
        "Mean signed and mean absolute error in HU. A tissue is where the truth's median over 5 x "
        "5 pixels lies in its range, eroded by a pixel: "
        + "; ".join(f"{name} {_range(*bounds)}" for name, bounds in TISSUES.items())
        + "; all but air inside the body. Slices weigh by their pixels of the tissue. Where the "
        "truth is an extreme even the best estimate leans to the middle, since the input leaves "
        "open how extreme it is; inside: where the border is farther than an input pixel, so that "
        "the input shows the tissue alone. Bias as shown: where the output itself is the tissue; 0 "
        "for an estimate that can be taken at its word."
    )
    yield ""
    found = [name for name in TISSUES if name in evaluation.regions]
    head = ["tissue", "method", "bias [HU]", "bias inside [HU]", "MAE [HU]"]
    head += ["bias as shown [HU]"]
    rows = [
        [
            tissue,
            method,
            with_interval(evaluation.mean("bias_hu", method, tissue), "+.2f"),
            with_interval(evaluation.mean("bias_hu", method, deep_in(tissue)), "+.2f"),
            with_interval(evaluation.mean("mae_hu", method, tissue), ".2f"),
            with_interval(evaluation.mean("bias_hu", method, as_shown(tissue)), "+.2f"),
        ]
        for tissue in found
        for method in evaluation.methods
    ]
    yield from table(head, rows)
    yield ""
    yield "Bias [HU] patient by patient:"
    yield ""
    yield from table(["patient", "method", *found], _tissue_rows(evaluation, found))


def _range(low: float, high: float) -> str:
    if np.isinf(low):
        return f"below {high:g} HU"
    return f"from {low:g} HU" if np.isinf(high) else f"{low:g} to {high:g} HU"


def _tissue_rows(evaluation: Evaluation, tissues: Sequence[str]) -> list[list[str]]:
    return [
        [
            patient,
            method,
            *(
                number(evaluation.patient_means("bias_hu", method, tissue).get(patient), "+.2f")
                for tissue in tissues
            ),
        ]
        for patient in evaluation.slices
        for method in evaluation.methods
    ]


def detail_lines(evaluation: Evaluation) -> Iterator[str]:
    """The section on sharpness, texture and seams."""
    factor = evaluation.settings["task"]["upscale"]
    yield "## Sharpness, texture, seams: as multiples of the truth's own"
    yield ""
    yield (
        "1 is the truth; means over patients are geometric. Edge rise: median from 10 to 90 % at "
        "the truth's strong edges (steps of 300 HU or more); above 1 is softer. Edges as shown: "
        "the same at the strong edges of the output, wherever they are: a sample of the truth may "
        "have them elsewhere, but as sharp. Flat: squares of "
        "32 pixels of soft tissue without "
        "structure, by the truth; as shown: by the output, and how many it has (where the truth "
        "turned out flat, a sample of it may well not be); body: squares anywhere in the body. SD: "
        "standard deviation there. Power: "
        f"variance at frequencies below and above the input's Nyquist limit, 1/{2 * factor} cycles "
        "per pixel: what the input could show, and what a method must make up. Seams: mean step "
        "across the borders of cells, windows and tiles over the mean step an input pixel beside "
        "them, and across the borders of input pixels over that at their middles, inside the body; "
        "above 1 shows a grid that the truth does not have."
    )
    yield ""
    shown = [r for r in RATIOS if any(evaluation.ratio(r[1], m, r[2]) for m in evaluation.methods)]
    rows = [
        [method, *(with_interval(evaluation.ratio(m, method, r), ".3f") for _, m, r in shown)]
        for method in evaluation.methods
    ]
    rows.append(
        ["the truth's own", *(_own(evaluation, metric, region) for _, metric, region in shown)]
    )
    yield from table(["method", *(title for title, _, _ in shown)], rows)
    yield ""
    yield "Patient by patient:"
    yield ""
    by_patient = {
        (metric, method, region): evaluation.patient_ratios(metric, method, region)
        for _, metric, region in shown
        for method in evaluation.methods
    }
    rows = [
        [
            patient,
            method,
            *(number(by_patient[m, method, r].get(patient), ".3f") for _, m, r in shown),
        ]
        for patient in evaluation.slices
        for method in evaluation.methods
    ]
    yield from table(["patient", "method", *(title for title, _, _ in shown)], rows)


def _own(evaluation: Evaluation, metric: str, region: str) -> str:
    found = evaluation.mean(metric, REFERENCE, region)
    unit = next((unit for end, unit in _UNITS.items() if metric.endswith(end)), "")
    return "-" if found is None else f"{found.mean:.3g}{unit}"


def calibration_lines(evaluation: Evaluation) -> Iterator[str]:
    """The section on deviations; nothing if no method gave any."""
    methods = [m for m in evaluation.methods if evaluation.mean(ERROR, m) is not None]
    if not methods:
        return
    yield "## Deviation over draws: is the error as large?"
    yield ""
    yield (
        "Root mean squares in HU of a method's errors and of the deviations that it gave with "
        "them; if draws vary as the truth does, they are equal. Within: share of pixels whose error"
        " is at most two deviations; of an ideal model 91 % (if 8 draws tell all of it) to 95 %. "
        "A tissue of the truth is where it turned "
        "out to be that, bone brighter than the input foretold; whether the deviation can be taken "
        "at its word is seen where the output shows a tissue, and range by range. Slices weigh by "
        "their pixels."
    )
    yield ""
    head = ["method", "pixels", "share", "error [HU]", "deviation [HU]", "error / deviation"]
    rows = []
    for method in methods:
        for region in evaluation.regions:
            error = evaluation.mean(ERROR, method, region)
            variance = evaluation.mean(VARIANCE, method, region)
            if error is None or variance is None:
                continue
            rows.append([
                method,
                region,
                f"{evaluation.share(method, region):.1%}",
                f"{error.mean**0.5:.1f}",
                f"{variance.mean**0.5:.1f}",
                f"{(error.mean / max(variance.mean, 1e-12)) ** 0.5:.2f}",
                with_interval(evaluation.mean(WITHIN, method, region), ".3f"),
            ])  # fmt: skip
    yield from table([*head, "within"], rows)


def plot(evaluation: Evaluation) -> Figure:
    """Bias by tissue, the spectra of flat soft tissue and of the body, and the other ratios."""
    figure = Figure(figsize=(14, 9.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    tissues = [name for name in TISSUES if name in evaluation.regions]
    by_tissue: dict[str, Mapping[str, Interval | None]] = {
        method: {name: evaluation.mean("bias_hu", method, name) for name in tissues}
        for method in evaluation.methods
    }
    _points(axes[0, 0], by_tissue, level=0.0)
    axes[0, 0].set_title("bias by tissue", loc="left")
    axes[0, 0].set_ylabel("mean signed error [HU]")
    kept = [r for r in RATIOS if "power" not in r[1]]
    by_ratio: dict[str, Mapping[str, Interval | None]] = {
        method: {title: evaluation.ratio(m, method, r) for title, m, r in kept}
        for method in evaluation.methods
    }
    _points(axes[0, 1], by_ratio, level=1.0)
    axes[0, 1].set_title("edges, noise, seams: over the truth's own", loc="left")
    axes[0, 1].set_ylabel("1 = as the truth")
    _spectra(axes[1, 0], evaluation, FLAT)
    axes[1, 0].set_title("power in flat soft tissue", loc="left")
    _spectra(axes[1, 1], evaluation, BODY)
    axes[1, 1].set_title("power in the body", loc="left")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    task = evaluation.settings["task"]
    figure.suptitle(
        f"{task['name']}, x{task['upscale']}: means over patients, 95 % intervals where there are "
        "some. Not for diagnostic use."
    )
    return figure


def _points(axes: Axes, values: Mapping[str, Mapping[str, Interval | None]], level: float) -> None:
    """A group of points for each column, one for each method, with intervals as bars."""
    columns = [c for c in next(iter(values.values())) if any(row[c] for row in values.values())]
    axes.axhline(level, color="#555555", linewidth=0.8)
    for k, (method, row) in enumerate(values.items()):
        shift = (k - (len(values) - 1) / 2) * 0.6 / max(1, len(values) - 1)
        found = [(x, interval) for x, c in enumerate(columns) if (interval := row[c]) is not None]
        axes.plot(
            [x + shift for x, _ in found], [i.mean for _, i in found], linestyle="none",
            marker=MARKERS[k % len(MARKERS)], color=COLOURS[k % len(COLOURS)], label=method,
        )  # fmt: skip
    low, high = axes.get_ylim()
    for k, row in enumerate(values.values()):
        shift = (k - (len(values) - 1) / 2) * 0.6 / max(1, len(values) - 1)
        for x, c in enumerate(columns):
            found_one = row[c]
            if found_one is not None and found_one.low is not None and found_one.high is not None:
                axes.plot(
                    [x + shift] * 2, [found_one.low, found_one.high],
                    color=COLOURS[k % len(COLOURS)], linewidth=1.2, alpha=0.6,
                )  # fmt: skip
    margin = 0.4 * (high - low)  # intervals of two or three patients would dwarf the means
    axes.set_ylim(low - margin if level == 0 else 0.0, high + margin)
    axes.set_xticks(range(len(columns)), columns)
    axes.grid(axis="y", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _spectra(axes: Axes, evaluation: Evaluation, region: str) -> None:
    """Each method's power over the truth's, ring by ring, mean over patients (of the logarithm)."""
    factor = evaluation.settings["task"]["upscale"]
    axes.axhline(1, color="#555555", linewidth=0.8)
    axes.axvline(0.5 / factor, color="#555555", linewidth=0.8, linestyle=":")
    for k, method in enumerate(evaluation.methods):
        found = [
            (spectrum.radial(), evaluation.spectra[region, REFERENCE, patient].radial())
            for (where, name, patient), spectrum in evaluation.spectra.items()
            if (where, name) == (region, method)
        ]
        if found:
            logs = [
                np.log(np.maximum(ours, 1e-12) / np.maximum(own, 1e-12))
                for (_, ours), (_, own) in found
            ]
            axes.plot(
                found[0][0][0], np.exp(np.mean(logs, axis=0)), color=COLOURS[k % len(COLOURS)],
                marker=MARKERS[k % len(MARKERS)], markersize=4, label=method,
            )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(1e-3, 30)
    axes.set_xlabel("frequency [cycles per pixel]; dotted: the most that the input can hold")
    axes.set_ylabel("power over the truth's")
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
