"""Samplers report: the comparison as Markdown, as JSON and as a plot of quality against cost."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medqdm import metrics, picture
from medqdm.evaluate.document import plain_json, table
from medqdm.evaluate.intervals import MIN_BOOTSTRAP, Interval, interval
from medqdm.evaluate.rows import REFERENCE
from medqdm.evaluate.samplers import AS_GOOD_DB, CHEAP_SHARE, Comparison, Measured, Trial
from medqdm.io.whole import whole_folder

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
# Okabe and Ito's palette, told apart by all eyes, and shapes beside it
_STYLES = {
    "uniform g1": ("#0072B2", "o", "-"),
    "uniform g0": ("#56B4E9", "s", "-"),
    "tss g1": ("#D55E00", "^", "--"),
    "tss g0": ("#E69F00", "^", "--"),
    "gain g1": ("#009E73", "D", ""),
    "gain g0": ("#009E73", "d", ""),
    "groups g1": ("#CC79A7", "P", ""),
    "groups g0": ("#CC79A7", "X", ""),
    "student": ("#000000", "*", ":"),
    "enhance": ("#000000", "+", ""),
    "random regions": ("#999999", "x", ""),
    "upstream alone": ("#999999", "v", ""),
}
_PALE, _GREY = "#F0E442", "#555555"
_OTHERS = tuple((_PALE, marker) for marker in "hp<>8H")


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


def plot(found: Comparison) -> Figure:
    """PSNR against region-steps, PSNR against seconds, and edge rise against region-steps.

    Families share a colour and a shape; the numbers beside the points are steps. A ring marks the
    best row; the green corner holds what is as good as the reference at a quarter of its cost.
    """
    figure = Figure(figsize=(16, 6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _draw(left, found, _share, "psnr_db")
    _draw(middle, found, _seconds, "psnr_db")
    _draw(right, found, _share, "edge_rise_ratio")
    for axes in (left, middle):
        axes.set_ylabel("PSNR [dB], higher is better")
        _note_below(axes, found)
    _mark_goal(left, found)
    for axes in (left, right):
        axes.set_xlabel(f"region-steps, as a share of {found.reference}'s")
    middle.set_xlabel("seconds a slice, end to end")
    right.set_ylabel("edge rise over the truth's, 1: as sharp as the truth")
    handles, labels = left.get_legend_handles_labels()
    columns = min(8, max(1, len(handles)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    task = found.settings["task"]
    figure.suptitle(
        f"{task['name']}, x{task['upscale']}: quality against cost. Best (ringed): {found.best()}"
    )
    return figure


Cost = Callable[[Comparison, str], float | None]


def _share(found: Comparison, name: str) -> float | None:
    return found.share(name)


def _seconds(found: Comparison, name: str) -> float | None:
    return found.results[name].mean("seconds")


def _draw(axes: Axes, found: Comparison, cost: Cost, quality: str) -> None:
    """All rows with a network, a line for each family of step counts."""
    families: dict[str, list[tuple[float, float, str]]] = {}
    for name, measured in found.results.items():
        x, y = cost(found, name), measured.mean(quality)
        if measured.kind != "baseline" and x is not None and y is not None and math.isfinite(y):
            families.setdefault(measured.row.family, []).append((x, y, name))
    others = iter(itertools.cycle(_OTHERS))
    for family, points in families.items():
        colour, marker, line = _STYLES.get(family) or (*next(others), "")
        xs, ys, names = zip(*sorted(points), strict=True)
        axes.plot(
            xs, ys, linestyle=line or "none", linewidth=1.2, color=colour, marker=marker,
            markersize=7, label=family,
            markeredgecolor=_GREY if colour == _PALE else colour,
        )  # fmt: skip
        for x, y, name in zip(xs, ys, names, strict=True) if line else ():
            steps = found.results[name].about["diffusion"]["sampling_steps"]
            place = {"o": (0, 6), "s": (0, -14)}.get(marker, (9, -3))
            axes.annotate(
                str(steps), (x, y), place, textcoords="offset points", ha="center",
                fontsize=8, color=colour,
            )  # fmt: skip
        if found.best() in names:
            best = names.index(found.best())
            axes.plot(
                xs[best], ys[best], "o", markersize=17, markerfacecolor="none",
                markeredgecolor="black", markeredgewidth=1.6,
            )  # fmt: skip
    axes.set_xlim(left=-0.03 * axes.get_xlim()[1])
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _note_below(axes: Axes, found: Comparison) -> None:
    """Zoom to the rows that could be a default; what lies below is named instead of drawn."""
    psnr = {name: row.mean("psnr_db") for name, row in found.results.items()}
    known = {name: y for name, y in psnr.items() if y is not None and math.isfinite(y)}
    usable = [known[name] for name in found.usable() if name in known]
    if not usable:
        return
    low, high = min(usable), max(usable)
    margin = max(0.12 * (high - low), 0.02)
    axes.set_ylim(low - 2 * margin, high + margin)
    below = [f"{name} {y:.2f} dB" for name, y in known.items() if y < low - 2 * margin]
    if below:
        axes.text(
            0.98, 0.02, "below: " + "\n".join(below), transform=axes.transAxes, fontsize=8,
            color=_GREY, ha="right", va="bottom",
        )  # fmt: skip


def _mark_goal(axes: Axes, found: Comparison) -> None:
    """The corner of what is as good as the reference at a quarter of its cost."""
    reference = found.results[found.reference].mean("psnr_db")
    if reference is None or not math.isfinite(reference):
        return
    limits = axes.get_ylim()
    axes.axhline(reference, color=_GREY, linewidth=0.8, linestyle=":")
    goal = reference - AS_GOOD_DB
    axes.fill_between([0, CHEAP_SHARE], goal, max(limits[1], goal), color="#009E73", alpha=0.12)
    axes.set_ylim(limits)
