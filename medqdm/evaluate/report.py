"""Report: an evaluation as JSON with every row, as Markdown tables and as pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medqdm import picture
from medqdm.evaluate import detail, failures
from medqdm.evaluate.calibration import STATED
from medqdm.evaluate.document import (
    UNITS_ARE_PATIENTS,
    cell,
    heading,
    number,
    table,
    with_interval,
    write_document,
)
from medqdm.evaluate.evaluation import METRICS, REFERENCE, Evaluation
from medqdm.evaluate.regions import BODY_HU
from medqdm.evaluate.tissue import SHOWN
from medqdm.evaluate.truth import BODY, FLAT, FLAT_SHOWN, ROI, WHOLE

NAME = "results"
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
    BODY: f"Body mask (largest part above {BODY_HU:g} HU, holes filled)",
    ROI: "ROI mask",
}


def write_report(
    evaluation: Evaluation,
    out: Path,
    *,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``results.json``, ``results.md`` and pictures into a folder, whole or not.

    ``detail.png`` shows errors by tissue, spectra and what else has the truth as its measure,
    ``pictures.png`` slices, ``failures.png`` the worst places. ``results.json`` holds no NaN and no
    Infinity: an infinite value (the PSNR of a perfect slice) is the string ``"inf"``.

    Args:
        evaluation: what ``evaluate`` found.
        out: the folder to appear.
        about: what the data were (degradation, seed, limit), as JSON; no paths.
        overwrite: whether a folder with files in it may be replaced.

    Raises:
        MedQDMError: something is there that may not be replaced.
    """
    figures = {"detail.png": detail.plot(evaluation)}
    if evaluation.examples:
        figures["pictures.png"] = pictures(evaluation)
    worst = list(evaluation.failures.values())
    if worst:
        name = evaluation.settings["task"]["name"]
        figures["failures.png"] = failures.plot(worst, evaluation.window, name)
    write_document(
        out,
        NAME,
        data=results(evaluation, about or {}),
        text=markdown(evaluation, about or {}),
        figures=figures,
        overwrite=overwrite,
    )


def summary_lines(found: Mapping[str, Evaluation]) -> list[str]:
    """One table over several degradations of the same slices.

    Args:
        found: name of a degradation to what was measured under it.
    """
    first = next(iter(found.values()))
    task, counts = first.settings["task"], first.slices
    head = ["degradation", "method", "PSNR [dB]", "SSIM", "MAE [HU]", "body PSNR [dB]"]
    head += ["edge rise / truth", "flat SD / truth"]
    rows = [
        [
            name,
            method,
            with_interval(one.mean("psnr_db", method), ".2f"),
            with_interval(one.mean("ssim", method), ".4f"),
            with_interval(one.mean("mae_hu", method), ".2f"),
            with_interval(one.mean("psnr_db", method, BODY), ".2f"),
            with_interval(one.ratio("edge_rise_mm", method), ".3f"),
            with_interval(one.ratio("sd_hu", method, FLAT), ".3f"),
        ]
        for name, one in found.items()
        for method in one.methods
    ]
    return [
        f"# Evaluation of {task['name']}, x{task['upscale']} in plane, under {len(found)} "
        "degradations",
        "",
        heading(first.settings, sum(counts.values()), len(counts)),
        "",
        UNITS_ARE_PATIENTS,
        "",
        *table(head, rows),
        "",
        "The folders beside this file have the whole report of each.",
        "",
    ]


def results(evaluation: Evaluation, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything: settings, for each region means and differences, spectra, and all rows."""
    spectra = [
        {
            "region": region,
            "method": method,
            "patient": patient,
            "power_hu2": list(found.radial()[1]),
        }
        for (region, method, patient), found in evaluation.spectra.items()
    ]
    return {
        "settings": evaluation.settings,
        "data": {**about, "slices": evaluation.slices},
        "failures": [
            {k: v for k, v in vars(failure).items() if k != "panels"}
            for failure in evaluation.failures.values()
        ],
        "regions": {region: _region(evaluation, region) for region in evaluation.regions},
        "over_the_truths_own": detail.ratios(evaluation),
        "spectra": spectra,
        "rows": [asdict(score) for score in evaluation.scores],
    }


def _region(evaluation: Evaluation, region: str) -> dict[str, Any]:
    """Means over patients, means of each patient, and the first method minus the others."""
    mean: dict[str, Any] = {}
    patients: dict[str, Any] = {}
    minus: dict[str, Any] = {}
    for metric in METRICS:
        for method in (*evaluation.methods, REFERENCE):
            by_patient = evaluation.patient_means(metric, method, region)
            if by_patient:
                patients.setdefault(method, {})[metric] = by_patient
                mean.setdefault(method, {})[metric] = evaluation.mean(metric, method, region)
        for baseline in () if region in (*SHOWN, FLAT_SHOWN, *STATED) else evaluation.methods[1:]:
            found = evaluation.difference(metric, baseline, region)
            if found is not None:
                minus.setdefault(baseline, {})[metric] = found
    return {"mean": mean, f"{evaluation.ours}_minus": minus, "patients": patients}


def markdown(evaluation: Evaluation, about: Mapping[str, Any]) -> str:
    """Tables for each region: over all patients with intervals, then patient by patient."""
    task, counts = evaluation.settings["task"], evaluation.slices
    lines = [
        f"# Evaluation of {task['name']}, x{task['upscale']} in plane",
        "",
        heading(evaluation.settings, sum(counts.values()), len(counts)),
        "",
        *(f"- {key}: {cell(value)}" for key, value in about.items()),
        *([""] if about else []),
        *_explanation(evaluation),
    ]
    for region, title in _TITLES.items():
        if region in evaluation.regions:
            lines += ["", f"## {title}", "", *_overall(evaluation, region)]
            lines += ["", *_by_patient(evaluation, region)]
    lines += ["", *detail.tissue_lines(evaluation), "", *detail.detail_lines(evaluation)]
    lines += ["", *detail.calibration_lines(evaluation)]
    if evaluation.failures:
        lines += ["", *failures.lines(list(evaluation.failures.values()))]
    return "\n".join(lines) + "\n"


def _explanation(evaluation: Evaluation) -> Iterator[str]:
    window = evaluation.window
    yield UNITS_ARE_PATIENTS
    yield ""
    yield (
        f"PSNR, SSIM and LPIPS look at the window {window.low_hu:g} to {window.high_hu:g} HU, "
        "HU errors at the output's values and a truth clipped to it. LR rms compares the output, "
        f"reduced by area, with the input; the row '{REFERENCE}' is what the truth itself "
        "reaches there, since the input is blurred and noisy."
    )


def _overall(evaluation: Evaluation, region: str) -> list[str]:
    columns = _measured(evaluation, region)
    rows = [
        [name, *(with_interval(evaluation.mean(c, name, region), _COLUMNS[c][1]) for c in columns)]
        for name in (*evaluation.methods, REFERENCE)
        if any(evaluation.mean(c, name, region) for c in columns)
    ]
    rows += [
        [
            f"{evaluation.ours} - {other}",
            *(
                with_interval(evaluation.difference(c, other, region), _COLUMNS[c][1])
                for c in columns
            ),
        ]
        for other in evaluation.methods[1:]
    ]
    return table(["mean over patients", *(_COLUMNS[c][0] for c in columns)], rows)


def _by_patient(evaluation: Evaluation, region: str) -> list[str]:
    columns = _measured(evaluation, region)
    means = {
        (c, method): evaluation.patient_means(c, method, region)
        for c in columns
        for method in evaluation.methods
    }
    rows = [
        [
            patient,
            str(count),
            method,
            *(number(means[c, method].get(patient), _COLUMNS[c][1]) for c in columns),
        ]
        for patient, count in evaluation.slices.items()
        for method in evaluation.methods
        if patient in means[columns[0], method]
    ]
    return table(["patient", "slices", "method", *(_COLUMNS[c][0] for c in columns)], rows)


def _measured(evaluation: Evaluation, region: str) -> list[str]:
    return [
        c for c in METRICS if c in _COLUMNS and evaluation.patient_means(c, evaluation.ours, region)
    ]


def pictures(evaluation: Evaluation) -> Figure:
    """A figure with two rows a patient: a slice drawn by lot, and a close-up of it."""
    window = evaluation.window
    rows = []
    for example in evaluation.examples.values():
        factor = example.hr_hu.shape[1] // example.lr_hu.shape[1]
        nearest = example.lr_hu.repeat(factor, axis=0).repeat(factor, axis=1)
        panels = {"input": picture.to_grey(nearest, window)}
        for method in (*evaluation.methods[1:], evaluation.ours):
            panels[method] = picture.to_grey(example.outputs[method], window)
        panels["reference"] = picture.to_grey(example.hr_hu, window)
        for method in (*evaluation.methods[1:2], evaluation.ours):
            panels[f"|{method} - reference|"] = _difference(
                example.outputs[method], example.hr_hu, failures.WHITE_HU_SHARE * window.width_hu
            )
        side = max(32, min(example.hr_hu.shape) // 4)
        close_up = picture.busiest_area(example.hr_hu, side)
        rows += [panels, {name: image[close_up] for name, image in panels.items()}]
    white = failures.WHITE_HU_SHARE * window.width_hu
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
