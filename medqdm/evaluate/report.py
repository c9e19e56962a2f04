"""Report: an evaluation as JSON with every row, as Markdown tables and as a grid of pictures."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medqdm import picture
from medqdm.evaluate.intervals import MIN_BOOTSTRAP, Interval
from medqdm.evaluate.methods import BASELINES
from medqdm.evaluate.regions import BODY_HU
from medqdm.evaluate.run import METHODS, METRICS, OURS, REFERENCE, WHOLE, Evaluation
from medqdm.io.whole import whole_folder

_COLUMNS = {
    "psnr_db": ("PSNR [dB]", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "mae_hu": ("MAE [HU]", ".2f"),
    "bias_hu": ("bias [HU]", "+.2f"),
    "lr_consistency_hu": ("LR rms [HU]", ".2f"),
    "lpips": ("LPIPS", ".4f"),
    "share_refined": ("share refined", ".3f"),
    "seconds": ("s/slice", ".2f"),
}
_TITLES = {
    WHOLE: "Whole slice",
    "body": f"Body mask (largest part above {BODY_HU:g} HU, holes filled)",
    "roi": "ROI mask",
}
_WHITE_HU_SHARE = 0.1  # of the window: where a difference is shown white


def write_report(
    evaluation: Evaluation,
    out: Path,
    *,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``results.json``, ``results.md`` and ``pictures.png`` into a folder, whole or not.

    ``results.json`` holds no NaN and no Infinity: an infinite value (the PSNR of a perfect slice)
    is the string ``"inf"``.

    Args:
        evaluation: what ``evaluate`` found.
        out: the folder to appear.
        about: what the data were (degradation, seed, limit), as JSON; no paths.
        overwrite: whether a folder with files in it may be replaced.

    Raises:
        MedQDMError: something is there that may not be replaced.
    """
    with whole_folder(out, overwrite=overwrite, marker="results.json") as folder:
        text = json.dumps(plain_json(results(evaluation, about or {})), indent=1, allow_nan=False)
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        (folder / "results.md").write_text(markdown(evaluation, about or {}), encoding="utf-8")
        if evaluation.examples:
            picture.save(pictures(evaluation), folder / "pictures.png")


def results(evaluation: Evaluation, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything: settings, for each region means and differences, and all rows."""
    return {
        "settings": evaluation.settings,
        "data": {**about, "slices": evaluation.slices},
        "regions": {region: _region(evaluation, region) for region in evaluation.regions},
        "rows": [asdict(score) for score in evaluation.scores],
    }


def _region(evaluation: Evaluation, region: str) -> dict[str, Any]:
    """Means over patients, means of each patient, and medqdm minus each baseline."""
    mean: dict[str, Any] = {}
    patients: dict[str, Any] = {}
    minus: dict[str, Any] = {}
    for metric in METRICS:
        for method in (*METHODS, REFERENCE):
            by_patient = evaluation.patient_means(metric, method, region)
            if by_patient:
                patients.setdefault(method, {})[metric] = by_patient
                mean.setdefault(method, {})[metric] = evaluation.mean(metric, method, region)
        for baseline in BASELINES:
            found = evaluation.difference(metric, baseline, region)
            if found is not None:
                minus.setdefault(baseline, {})[metric] = found
    return {"mean": mean, "medqdm_minus": minus, "patients": patients}


def plain_json(value: Any) -> Any:
    """Plain JSON values; infinities become strings, NaN null, intervals their fields."""
    if isinstance(value, Interval):
        return plain_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def markdown(evaluation: Evaluation, about: Mapping[str, Any]) -> str:
    """Tables for each region: over all patients with intervals, then patient by patient."""
    task, counts = evaluation.settings["task"], evaluation.slices
    lines = [
        f"# Evaluation of {task['name']}, x{task['upscale']} in plane",
        "",
        f"{sum(counts.values())} slices of {len(counts)} patients; weights sha256 "
        f"`{evaluation.settings['weights_sha256'][:12]}`, medqdm {evaluation.settings['medqdm']}, "
        f"seed {evaluation.settings['seed']}, {evaluation.settings['device']} "
        f"{evaluation.settings['precision']}, s = {task['quadtree']['threshold']:g} "
        f"({evaluation.settings['threshold_hu']:g} HU). Research use: not a medical device.",
        "",
        *(f"- {key}: {_cell(value)}" for key, value in about.items()),
        *([""] if about else []),
        *_explanation(evaluation),
    ]
    for region in evaluation.regions:
        lines += ["", f"## {_TITLES[region]}", "", *_overall(evaluation, region)]
        lines += ["", *_by_patient(evaluation, region)]
    return "\n".join(lines) + "\n"


def _explanation(evaluation: Evaluation) -> Iterator[str]:
    window = evaluation.window
    yield (
        "Values are means over a patient's slices, then over patients, who are the independent "
        "units. In brackets: 95 % intervals over patients, by bootstrap (percentiles) with "
        f"{MIN_BOOTSTRAP} patients or more, by Student's t, wide and rough, with fewer; one "
        "patient alone has none."
    )
    yield ""
    yield (
        f"PSNR, SSIM and LPIPS look at the window {window.low_hu:g} to {window.high_hu:g} HU, "
        "HU errors at the values as they are. LR rms compares the output, reduced by area, with "
        f"the input; the row '{REFERENCE}' is what the truth itself reaches there, since the "
        "input is blurred and noisy."
    )


def _overall(evaluation: Evaluation, region: str) -> list[str]:
    columns = _measured(evaluation, region)
    rows = [
        [method, *(_with_interval(evaluation.mean(c, method, region), c) for c in columns)]
        for method in (*METHODS, REFERENCE)
        if any(evaluation.mean(c, method, region) for c in columns)
    ]
    rows += [
        [
            f"medqdm - {baseline}",
            *(_with_interval(evaluation.difference(c, baseline, region), c) for c in columns),
        ]
        for baseline in BASELINES
    ]
    return table(["mean over patients", *(_COLUMNS[c][0] for c in columns)], rows)


def _by_patient(evaluation: Evaluation, region: str) -> list[str]:
    columns = _measured(evaluation, region)
    means = {
        (c, method): evaluation.patient_means(c, method, region)
        for c in columns
        for method in METHODS
    }
    rows = [
        [
            patient,
            str(count),
            method,
            *(_number(means[c, method].get(patient), _COLUMNS[c][1]) for c in columns),
        ]
        for patient, count in evaluation.slices.items()
        for method in METHODS
        if patient in means[columns[0], method]
    ]
    return table(["patient", "slices", "method", *(_COLUMNS[c][0] for c in columns)], rows)


def _measured(evaluation: Evaluation, region: str) -> list[str]:
    return [c for c in METRICS if evaluation.patient_means(c, OURS, region)]


def _with_interval(found: Interval | None, column: str) -> str:
    if found is None:
        return "-"
    style = _COLUMNS[column][1]
    text = _number(found.mean, style)
    if found.low is None or found.high is None:
        return text
    return f"{text} [{found.low:{style}}, {found.high:{style}}]"


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else f"{value:{style}}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, its first column left-aligned, the others right-aligned."""
    ruler = ["---"] + ["---:"] * (len(head) - 1)
    return ["| " + " | ".join(map(_cell, row)) + " |" for row in (head, ruler, *rows)]


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def pictures(evaluation: Evaluation) -> Figure:
    """A figure with two rows a patient: a slice drawn by lot, and a close-up of it."""
    window = evaluation.window
    rows = []
    for example in evaluation.examples.values():
        factor = example.hr_hu.shape[1] // example.lr_hu.shape[1]
        nearest = example.lr_hu.repeat(factor, axis=0).repeat(factor, axis=1)
        panels = {"input": picture.to_grey(nearest, window)}
        for method in (*BASELINES, OURS):
            panels[method] = picture.to_grey(example.outputs[method], window)
        panels["reference"] = picture.to_grey(example.hr_hu, window)
        for method in ("bicubic", OURS):
            panels[f"|{method} - reference|"] = _difference(
                example.outputs[method], example.hr_hu, _WHITE_HU_SHARE * window.width_hu
            )
        side = max(32, min(example.hr_hu.shape) // 4)
        close_up = picture.busiest_area(example.hr_hu, side)
        rows += [panels, {name: image[close_up] for name, image in panels.items()}]
    white = _WHITE_HU_SHARE * window.width_hu
    name = evaluation.settings["task"]["name"]
    return picture.grid(
        rows,
        title=f"{name}, not for diagnostic use. Slices drawn by lot, with close-ups; "
        f"differences are white from {white:g} HU",
    )


def _difference(
    sr_hu: NDArray[np.float32], hr_hu: NDArray[np.float32], white_hu: float
) -> NDArray[np.float32]:
    shown: NDArray[np.float32] = (np.abs(sr_hu - hr_hu) / white_hu).clip(0, 1).astype(np.float32)
    return shown
