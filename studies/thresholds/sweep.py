"""Knob: the quadtree's threshold s, what it saves and what it costs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate.document import (
    COLOURS,
    UNITS_ARE_PATIENTS,
    cell,
    heading,
    number,
    table,
    with_interval,
    write_document,
)
from medqdm.evaluate.evaluation import Evaluation
from medqdm.evaluate.methods import BASELINES, Model
from medqdm.evaluate.report import results
from medqdm.evaluate.truth import BODY, FLAT, WHOLE
from medqdm.volume import Volume
from studies.samplers.samplers import Watch

Image = NDArray[np.float32]
NAME = "thresholds"
DEFAULT_THRESHOLDS = (0.0, 0.03, 0.06, 0.09, 0.15, 0.3)
_COLUMNS = (
    ("refined", "share_refined", WHOLE, ".3f"),
    ("windows", "windows", WHOLE, ".1f"),
    ("tokens", "tokens", WHOLE, ".0f"),
    ("s/slice", "seconds", WHOLE, ".3f"),
    ("PSNR [dB]", "psnr_db", WHOLE, ".2f"),
    ("SSIM", "ssim", WHOLE, ".4f"),
    ("MAE [HU]", "mae_hu", WHOLE, ".2f"),
    ("body PSNR [dB]", "psnr_db", BODY, ".2f"),
    ("LR rms [HU]", "lr_consistency_hu", WHOLE, ".2f"),
)
_RATIOS = (
    ("edge rise", "edge_rise_mm", WHOLE),
    ("flat SD", "sd_hu", FLAT),
    ("flat power above", "power_high_hu2", FLAT),
    ("body power above", "power_high_hu2", BODY),
)


class CountedModel(Model):
    """A model at a threshold, with the windows and tokens that its downstream ran.

    Args:
        enhancer: the model, its task at the threshold.
    """

    def __init__(self, enhancer: Enhancer) -> None:
        super().__init__(enhancer, row_name(enhancer.task.quadtree.threshold))
        self._watch = Watch(enhancer.engine, None)

    def enhance(self, volume: Volume) -> Iterator[Image]:
        """The slices, enhanced one at a time."""
        slices = super().enhance(volume)
        for _ in range(len(volume.hu)):
            with self._watch:
                hu = next(slices)
            cost = self._watch.cost(1)
            steps = max(cost["evaluations"], 1.0)
            self.known |= {"windows": cost["regions"], "tokens": cost["token_steps"] / steps}
            yield hu


def row_name(threshold: float) -> str:
    """What a threshold is called in tables.

    >>> row_name(0.15)
    's = 0.15'
    """
    return f"s = {threshold:g}"


def parse_thresholds(text: str) -> list[float]:
    """Thresholds from ``0,0.03,0.15``, without doubles, rising.

    Raises:
        MedQDMError: something in it is no threshold.

    >>> parse_thresholds("0.15, 0")
    [0.0, 0.15]
    """
    found = set()
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 2:
            raise MedQDMError(
                f"--thresholds: must be numbers from 0 to 2 separated by commas, got {part!r}; "
                "for example 0,0.03,0.15"
            )
        found.add(value)
    return sorted(found)


def write_thresholds(
    found: Evaluation,
    thresholds: Mapping[str, float],
    out: Path,
    *,
    about: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write ``thresholds.json``, ``thresholds.md`` and ``thresholds.png`` into a folder.

    Args:
        found: with a row for each threshold, the default's first, and the baselines.
        thresholds: name of a row to its threshold.
        out: the folder to appear, whole or not.
        about: what the data were, as JSON; no paths.
        overwrite: whether a folder with files in it may be replaced.

    Raises:
        MedQDMError: something is there that may not be replaced.
    """
    hu = {name: s * found.window.hu_per_unit for name, s in thresholds.items()}
    write_document(
        out,
        NAME,
        data={"threshold_hu": hu, **results(found, about)},
        text=markdown(found, thresholds, about),
        figures={"thresholds.png": plot(found, thresholds)},
        overwrite=overwrite,
    )


def markdown(found: Evaluation, thresholds: Mapping[str, float], about: Mapping[str, Any]) -> str:
    """The table over all patients, then patient by patient."""
    task = found.settings["task"]
    rows = [name for name in thresholds if name in found.methods]
    lines = [
        f"# The threshold s of {task['name']}, x{task['upscale']} in plane",
        "",
        heading(found.settings, sum(found.slices.values()), len(found.slices)),
        "",
        *(f"- {key}: {cell(value)}" for key, value in about.items()),
        "",
        "A cell of 2 x 2 input pixels is refined where the input's range exceeds s: in HU, s times "
        f"{found.window.hu_per_unit:g}. Windows and tokens: what the downstream ran, a slice. "
        "Seconds: end to end, the thresholds in turn on each slice. Edge rise, SD and power above "
        "the input's Nyquist limit: over the truth's own (as in `medqdm evaluate`).",
        "",
        UNITS_ARE_PATIENTS,
        "",
        *_overall(found, thresholds, rows),
        "",
        f"PSNR minus the default's ({found.ours}), patient by patient:",
        "",
        *_differences(found, rows),
        "",
        "## Patient by patient",
        "",
        *_by_patient(found, rows),
    ]
    return "\n".join(lines) + "\n"


def _overall(found: Evaluation, thresholds: Mapping[str, float], rows: Sequence[str]) -> list[str]:
    head = ["s", "s [HU]", *(title for title, *_ in _COLUMNS), *(title for title, *_ in _RATIOS)]
    lines = []
    for name in (*rows, *(b for b in BASELINES if b in found.methods)):
        hu = f"{thresholds[name] * found.window.hu_per_unit:g}" if name in thresholds else "-"
        cells = [with_interval(found.mean(m, name, r), style) for _, m, r, style in _COLUMNS]
        cells += [with_interval(found.ratio(m, name, r), ".3f") for _, m, r in _RATIOS]
        lines.append([f"**{name}**" if name == found.ours else name, hu, *cells])
    return table(head, lines)


def _differences(found: Evaluation, rows: Sequence[str]) -> list[str]:
    head = ["s", "PSNR [dB]", "SSIM", "body PSNR [dB]"]
    wanted = (("psnr_db", WHOLE, "+.3f"), ("ssim", WHOLE, "+.4f"), ("psnr_db", BODY, "+.3f"))
    return table(
        head,
        [
            [
                name,
                *(
                    with_interval(found.difference(m, found.ours, r, ours=name), style)
                    for m, r, style in wanted
                ),
            ]
            for name in rows
            if name != found.ours
        ],
    )


def _by_patient(found: Evaluation, rows: Sequence[str]) -> list[str]:
    means = {
        (metric, region, name): found.patient_means(metric, name, region)
        for _, metric, region, _ in _COLUMNS
        for name in rows
    }
    return table(
        ["patient", "s", *(title for title, *_ in _COLUMNS)],
        [
            [patient, name, *(number(means[m, r, name].get(patient), f) for _, m, r, f in _COLUMNS)]
            for patient in found.slices
            for name in rows
        ],
    )


def plot(found: Evaluation, thresholds: Mapping[str, float]) -> Figure:
    """PSNR, SSIM, tokens and seconds over s; each patient in grey, their mean in colour."""
    figure = Figure(figsize=(15, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    # the last: the least that an axis spans, so that nothing looks large that is not
    panels = (
        ("PSNR [dB]", "psnr_db", 1.0),
        ("SSIM", "ssim", 0.02),
        ("tokens a slice", "tokens", 0.0),
        ("seconds a slice", "seconds", 0.0),
    )
    rows = [name for name in thresholds if name in found.methods]
    at = range(len(rows))
    hu = [f"{thresholds[n]:g}\n{thresholds[n] * found.window.hu_per_unit:g} HU" for n in rows]
    for axes, (title, metric, span) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        by_row = [found.patient_means(metric, name) for name in rows]
        for patient in found.slices:
            axes.plot(at, [values.get(patient, np.nan) for values in by_row], color="#BBBBBB")
        means = [sum(values.values()) / max(1, len(values)) for values in by_row]
        axes.plot(at, means, color=COLOURS[0], marker="o", linewidth=2)
        if found.ours in rows:
            best = rows.index(found.ours)
            axes.plot(
                best, means[best], "o", markersize=14, markerfacecolor="none",
                markeredgecolor="black",
            )  # fmt: skip
        axes.set_title(title, loc="left")
        axes.set_xticks(at, hu)
        axes.set_xlabel("s")
        axes.grid(alpha=0.3)
        low, high = axes.get_ylim()
        rest = max(0.0, span - (high - low)) / 2
        axes.set_ylim(low - rest if span else 0.0, high + rest)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    task = found.settings["task"]
    figure.suptitle(
        f"{task['name']}, x{task['upscale']}: blue the mean over patients, grey each of them, "
        "ringed the default"
    )
    return figure
