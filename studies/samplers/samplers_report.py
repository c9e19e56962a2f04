"""Samplers report: the comparison as Markdown and as JSON, its plot beside them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medqdm import metrics, picture
from medqdm.evaluate.document import plain_json, table
from medqdm.evaluate.intervals import MIN_BOOTSTRAP, Interval, interval
from medqdm.io.whole import whole_folder
from studies.samplers.rows import REFERENCE
from studies.samplers.samplers import AS_GOOD_DB, CHEAP_SHARE, Comparison, Measured, Trial
from studies.samplers.samplers_plot import plot

MARKER = "samplers.json"
_COLUMNS = {
    "psnr_db": ("PSNR [dB]", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "mae_hu": ("MAE [HU]", ".2f"),
    "lr_consistency_hu": ("LR rms [HU]", ".2f"),
    "edge_rise_mm": ("edge rise [mm]", ".2f"),
    "edge_rise_ratio": ("edge / truth", ".2f"),
    "coronal_psnr_db": ("coronal [dB]", ".2f"),
    "sagittal_psnr_db": ("sagittal [dB]", ".2f"),
    "flicker_hu": ("flicker [HU]", ".2f"),
    "flicker_ratio": ("flicker / truth", ".3f"),
    "evaluations": ("network calls", ".1f"),
    "region_steps": ("region-steps", ".1f"),
    "seconds": ("s/slice", ".3f"),
}
_CONTROLS = {"uniform": "uniform", "random": "random regions", "upstream": "upstream alone"}


def write_samplers(
    found: Comparison, out: Path, *, about: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write ``samplers.json``, ``samplers.md`` and ``samplers.png`` into a folder, whole or not.

    Args:
        found: what ``compare`` measured.
        out: the folder to appear.
        about: what the data were, as JSON; no paths.
        overwrite: whether a folder with files in it may be replaced.

    Raises:
        MedQDMError: something is there that may not be replaced.
    """
    with whole_folder(out, overwrite=overwrite, marker=MARKER) as folder:
        text = json.dumps(plain_json(to_json(found, about)), indent=1, allow_nan=False)
        (folder / MARKER).write_text(text + "\n", encoding="utf-8")
        (folder / "samplers.md").write_text(markdown(found, about), encoding="utf-8")
        picture.save(plot(found), folder / "samplers.png")


def to_json(found: Comparison, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "settings": found.settings,
        "data": {**about, "patients": found.patients},
        "reference": found.reference,
        "best": found.best(),
        "cheap_and_good": found.cheap_and_good(),
        "rows": {name: _row_json(found, row) for name, row in found.results.items()},
        "trials": [
            {**asdict(trial), "psnr_db_minus": _against(found, trial)} for trial in found.trials
        ],
    }


def _row_json(found: Comparison, measured: Measured) -> dict[str, Any]:
    named = dict.fromkeys(m for values in measured.values.values() for m in values)
    name = measured.row.name
    difference = found.difference("psnr_db", name, {found.reference: 1.0})
    return {
        "kind": measured.kind,
        "family": measured.row.family,
        "settings": list(measured.row.settings),
        **measured.about,
        "mean": {m: interval(list(measured.by_patient(m).values())) for m in named},
        "psnr_db_minus_reference": difference,
        "share_of_region_steps": found.share(name),
        "patients": measured.values,
    }


def markdown(found: Comparison, about: Mapping[str, Any]) -> str:
    """What was found in a few lines, the table, the controls, and what each row sets."""
    task, settings = found.settings["task"], found.settings
    slices = sum(1 + last - first for first, last in (p["slices"] for p in found.patients.values()))
    lines = [
        f"# Samplers of {task['name']}, x{task['upscale']} in plane",
        "",
        f"{slices} slices of {len(found.patients)} patient(s), neighbours in each; weights sha256 "
        f"`{settings['weights_sha256'][:12]}`, medqdm {settings['medqdm']}, seed "
        f"{settings['seed']}, {settings['device']} {settings['precision']}, s = "
        f"{task['quadtree']['threshold']:g}. Research use: not a medical device.",
        "",
        *(f"- {key}: {v}" for key, v in about.items() if not isinstance(v, Mapping)),
        "",
        *_findings(found),
        "",
        "## All rows",
        "",
        *_all_rows(found),
        "",
        *_explanation(),
    ]
    lines += ["", "## Slices", "", *_slices(found)]
    if found.trials:
        lines += ["", "## Adaptive policies against their controls", "", *_trials(found)]
    lines += ["", "## What the rows set", "", *_settings(found)]
    return "\n".join(lines) + "\n"


def _findings(found: Comparison) -> Iterator[str]:
    best = found.best()
    yield (
        f"- Best: **{best}**, the fewest region-steps among the rows within {AS_GOOD_DB:g} dB of "
        f"the highest PSNR ({_cell(found.results[best].mean('psnr_db'), '.2f')} dB)."
    )
    cheap = [name for name in found.cheap_and_good() if name != found.reference]
    yield (
        f"- Within {AS_GOOD_DB:g} dB of {found.reference} at {CHEAP_SHARE:g} of its region-steps "
        f"or less: {', '.join(cheap) or 'none'}."
    )
    for trial in found.trials:
        against = _against(found, trial)
        lost = [_CONTROLS[name] for name, d in against.items() if d is None or d.mean <= 0]
        verdict = f"does not beat {', '.join(lost)}" if lost else "beats its controls"
        yield f"- {trial.policy} {verdict} in mean PSNR."


def _all_rows(found: Comparison) -> list[str]:
    head = ["row", f"PSNR - {found.reference} [dB]", *(title for title, _ in _COLUMNS.values())]
    rows = []
    for name, measured in found.results.items():
        difference = found.difference("psnr_db", name, {found.reference: 1.0})
        shown = f"**{name}**" if name == found.best() else name
        cells = [_cell(measured.mean(m), style) for m, (_, style) in _COLUMNS.items()]
        rows.append([shown, _signed(difference), *cells])
    return table(head, rows)


def _explanation() -> Iterator[str]:
    yield (
        "Means over a patient's slices, then over patients; in brackets 95 % intervals over "
        f"patients (Student's t below {MIN_BOOTSTRAP} of them). All rows see the same slices, one "
        "degradation a patient and the same seed."
    )
    yield ""
    yield (
        "Edge rise: 10 to 90 % at the strong edges of the truth "
        f"(steps of {metrics.EDGE_STEP_HU:g} HU or more), median. Coronal, sagittal: mean PSNR of "
        "the planes that cut the body. Flicker: mean difference of neighbouring slices. Network "
        "calls: each runs the upstream everywhere. Region-steps: windows in which the downstream "
        "ran, over all steps. s/slice: from LR to SR in memory, autoencoder included. The row "
        f"'{REFERENCE}' is the truth itself."
    )


def _trials(found: Comparison) -> list[str]:
    head = [
        "policy",
        "region-steps",
        "uniform at as many",
        *(f"PSNR - {name} [dB]" for name in _CONTROLS.values()),
    ]
    rows = []
    for trial in found.trials:
        against = _against(found, trial)
        mix = " + ".join(f"{weight:.2f} {name}" for name, weight in trial.uniform.items())
        cost = _cell(found.results[trial.policy].mean("region_steps"), ".1f")
        shown = [_signed(against.get(name)) for name in _CONTROLS]
        rows.append([trial.policy, cost, mix, *shown])
    return table(head, rows)


def _against(found: Comparison, trial: Trial) -> dict[str, Interval | None]:
    """PSNR of a policy minus each of its controls'."""
    others = {
        "uniform": trial.uniform,
        "random": {trial.random: 1.0} if trial.random else None,
        "upstream": {trial.upstream: 1.0} if trial.upstream else None,
    }
    return {
        name: found.difference("psnr_db", trial.policy, other)
        for name, other in others.items()
        if other is not None
    }


def _settings(found: Comparison) -> Iterator[str]:
    drawn = {trial.random for trial in found.trials}
    for name, measured in found.results.items():
        if measured.kind != "baseline":
            other = measured.about["weights_sha256"] != found.settings["weights_sha256"]
            own = f" (weights `{measured.about['weights_sha256'][:12]}`)" if other else ""
            last = {key: value for key, _, value in map(_split, measured.row.settings)}
            text = " ".join(f"{key}={value}" for key, value in last.items())
            lot = " with regions drawn by lot" if name in drawn else ""
            yield f"- {name}{own}: {f'`{text}`' if text else 'as the weights carry'}{lot}"


def _split(setting: str) -> tuple[str, str, str]:
    return setting.partition("=")


def _slices(found: Comparison) -> list[str]:
    """Which slices, and what was drawn for them."""
    head = ["patient", "slices", "blur", "resized by", "noise", "JPEG quality"]
    rows = []
    for patient, about in found.patients.items():
        drawn = about["degradation"]
        sigma = " x ".join(f"{s:.2f}" for s in dict.fromkeys(drawn["sigma_px"]))
        blur = f"{drawn['kernel']} {sigma} px" if any(drawn["sigma_px"]) else drawn["kernel"]
        noise = f"{drawn['noise']} {drawn['noise_strength']:.3f}"
        scale = f"{drawn['resize_scale']:.2f} {drawn['resize_mode']}"
        slices = "{} to {}".format(*about["slices"])
        rows.append([patient, slices, blur, scale, noise, str(drawn["jpeg_quality"] or "none")])
    return table(head, rows)


def _cell(value: float | None, style: str) -> str:
    return "-" if value is None else f"{value:{style}}"


def _signed(found: Interval | None) -> str:
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.mean:+.3f}"
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
