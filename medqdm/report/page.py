"""Page: a report as one HTML file that needs nothing else, and names no patient."""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from numpy.typing import NDArray

from medqdm.config import DiffusionSection
from medqdm.metrics import TISSUES
from medqdm.picture import DIFFERENCE_COLORS
from medqdm.report.charts import along_slices, histogram, lr_consistency_hu
from medqdm.report.panels import (
    UNCERTAINTY_COLORS,
    Limits,
    Panel,
    SlicePair,
    gradient,
    limits_of,
    make_panels,
)
from medqdm.report.tally import quantile_hu
from medqdm.volume import Volume

NUM_SLICES = 6
NOTICE = (
    "Research use only. Not a medical device. Detail in the enhanced images is synthetic: it is "
    "what the model finds plausible, not what was measured. Do not diagnose from it."
)


@dataclass(frozen=True, eq=False)
class ReportContent:
    """All that a report tells.

    Args:
        record: of the run, as in run.json; nothing of the patient.
        volume: the input.
        tallies: ``(z,)`` of ``TALLY``.
        pair: index of a slice -> it, before and after; only the slices that are shown are asked
            for, one after another.
    """

    record: Mapping[str, Any]
    volume: Volume
    tallies: NDArray[Any]
    pair: Callable[[int], SlicePair]


def render_report(content: ReportContent) -> str:
    """The report as HTML, pictures and all; it asks nothing of a network.

    Args:
        content: what it tells.
    """
    pairs = [content.pair(z) for z in chosen_slices(content.tallies)]
    limits = limits_of(pairs)
    record = content.record
    style = (files("medqdm.report") / "style.css").read_text(encoding="utf-8")
    sections = [
        _glance(content),
        _warnings(record["warnings"]),
        _slices(content, pairs, limits),
        _figures(content.tallies),
        _settings(record),
        _reading(),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>CT super-resolution report</title>\n<style>\n{style}</style></head>\n<body>"
        f'<header><h1>CT super-resolution report</h1><p class="made">medqdm '
        f"{escape(str(record['medqdm']))}</p></header>\n"
        f'<p class="notice" role="note"><strong>Synthetic detail.</strong> {escape(NOTICE)}</p>\n'
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def chosen_slices(tallies: NDArray[Any]) -> list[int]:
    """Which slices are shown: evenly spread ones, and the one least like its source.

    Args:
        tallies: ``(z,)`` of ``TALLY``.

    Returns:
        Indices, six at the most, ascending.
    """
    count = len(tallies)
    if count <= NUM_SLICES:
        return list(range(count))
    worst = int(lr_consistency_hu(tallies).argmax())
    spread = [int((k + 0.5) * count / (NUM_SLICES - 1)) for k in range(NUM_SLICES - 1)]
    if worst in spread:
        spread = [int((k + 0.5) * count / NUM_SLICES) for k in range(NUM_SLICES)]
    return sorted({*spread, worst})[:NUM_SLICES]


def _glance(content: ReportContent) -> str:
    record, volume, tallies = content.record, content.volume, content.tallies
    slices, height, width = volume.shape
    factor = int(record["output"]["upscale"])
    (y, x), figures = volume.spacing_mm, record["summary"]
    shift = figures["flat_shift_hu"]
    cards = [
        (f"x{factor}", "in plane", f"{width} x {height} to {width * factor} x {height * factor} "
         f"pixels of {x / factor:.3g} x {y / factor:.3g} mm, {slices} slices"),
        (f"{100 * figures['share_refined']:.1f} %", "refined", "of the area: detail resolved "
         "there, cells of 2 x 2 input pixels"),
        (f"{figures['lr_consistency_hu']:.1f} HU", "LR consistency", "rms of the output, averaged "
         "to the input's pixels, minus the input"),
        ("none" if shift is None else f"{shift:+.1f} HU", "largest shift of a flat area",
         f"{figures['flat_shift_place']} of the input; the output's mean minus the input's"),
    ]  # fmt: skip
    inside = tallies["deviation"].sum(axis=0)[1]
    if inside.any():
        cards.append((
            f"{quantile_hu(inside, 0.5):.0f} HU", "uncertainty", "median deviation over "
            f"{record['draws']} draws in refined regions; 95 % are below "
            f"{quantile_hu(inside, 0.95):.0f} HU",
        ))  # fmt: skip
    items = "".join(
        f'<li><span class="value">{escape(value)}</span><span class="name">{escape(name)}</span>'
        f'<span class="text">{escape(text)}</span></li>'
        for value, name, text in cards
    )
    return f'<section><h2>At a glance</h2><ul class="cards">{items}</ul></section>'


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return '<section><h2>Warnings</h2><p class="none">None.</p></section>'
    items = "".join(f"<li>{escape(_sentence(str(warning)))}</li>" for warning in warnings)
    return f'<section><h2>Warnings</h2><ul class="warnings">{items}</ul></section>'


def _slices(content: ReportContent, pairs: Sequence[SlicePair], limits: Limits) -> str:
    tallies, total = content.tallies, len(content.tallies)
    worst = int(lr_consistency_hu(tallies).argmax())
    articles = []
    for pair in pairs:
        name, window = pair.window()
        of_slice = lr_consistency_hu(tallies[pair.z : pair.z + 1])[0]
        note = ""
        if pair.z == worst and total > 1:
            note = '<span class="worst">least like its source</span>'
        facts = (
            f"{name} window, W {window.width_hu:g} L {window.center_hu:g}; "
            f"{100 * pair.refined.mean():.0f} % refined; LR consistency {of_slice:.1f} HU"
        )
        panels = make_panels(pair, content.volume, limits)
        figures = "".join(_panel(panel, pair.z) for panel in panels)
        articles.append(
            f"<article><h3>Slice {pair.z + 1} of {total}{note}"
            f'<span class="facts">{escape(facts)}</span></h3>'
            f'<div class="panels of{len(panels)}">{figures}</div></article>'
        )
    which = "All slices."
    if len(pairs) < total:
        which = (
            f"{len(pairs)} of {total}: evenly spread, and the one that is least like its source."
        )
    bars = [_color_bar("enhanced minus source", gradient(DIFFERENCE_COLORS),
                       -limits.difference_hu, limits.difference_hu)]  # fmt: skip
    if any(pair.deviation_hu is not None for pair in pairs):
        colors = gradient(UNCERTAINTY_COLORS)
        bars.append(_color_bar("uncertainty", colors, 0, limits.deviation_hu))
    bars.append('<span class="bar"><i class="tint"></i> refined regions</span>')
    return (
        f"<section><h2>Slices</h2><p>{which} Below each, the part of the body with the most "
        f'drawn detail (white square), pixel for pixel.</p><p class="bars">{"".join(bars)}</p>'
        f"{''.join(articles)}</section>"
    )


def _panel(panel: Panel, z: int) -> str:
    what = f"{panel.title}, slice {z + 1}"
    return (
        f"<figure><figcaption>{escape(panel.title)}</figcaption>"
        f'<img src="{_data(panel.whole, "image/jpeg")}" alt="{escape(what)}">'
        f'<img class="close" src="{_data(panel.close_up, "image/png")}" '
        f'alt="{escape(what)}, close-up"></figure>'
    )


def _color_bar(name: str, colors: str, low: float, high: float) -> str:
    sign = "+" if low < 0 else ""
    return (
        f'<span class="bar">{escape(name)} {low:g} HU <i style="background:{colors}"></i> '
        f"{sign}{high:g} HU</span>"
    )


def _figures(tallies: NDArray[Any]) -> str:
    sums = tallies["tissue"].sum(axis=0)
    total = max(1.0, float(tallies["lr_pixels"].sum()))
    rows = []
    for (name, (low, high)), (pixels, shift, squares) in zip(TISSUES.items(), sums, strict=True):
        if pixels:
            mean = shift / pixels
            deviation = math.sqrt(max(0.0, squares / pixels - mean**2))
            cells = [f"{100 * pixels / total:.1f} %", f"{mean:+.1f} HU", f"{deviation:.1f} HU"]
        else:
            cells = ["0 %", "-", "-"]
        values = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{name}</th><td>{_range(low, high)}</td>{values}</tr>')
    charts = [(
        histogram(tallies), "Shares of pixels by HU before and after",
        "Pixels by HU, before and after (logarithmic). Grey: the tissues of the table.",
    )]  # fmt: skip
    if len(tallies) > 1:
        charts.append((
            along_slices(tallies), "LR consistency and refined share of each slice",
            "Slice by slice: how far the output, averaged, is from the input, and how much of it "
            "was refined.",
        ))  # fmt: skip
    pictures = "".join(
        f'<figure><img src="{_data(svg, "image/svg+xml")}" alt="{escape(alt)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for svg, alt, text in charts
    )
    return (
        f'<section><h2>Hounsfield units</h2><div class="charts">{pictures}</div>'
        "<table><caption>Shift by tissue, on the input's pixels: output averaged to them, minus "
        "input</caption><thead><tr><th>tissue</th><th>range in the input</th>"
        "<th>share of pixels</th><th>mean shift</th><th>SD</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _settings(record: Mapping[str, Any]) -> str:
    task = record["task"]
    diffusion, window = task["diffusion"], task["window"]
    precision, output = record["precision"], record["output"]
    draws, has_spread = record["draws"], record["spread"]
    section = DiffusionSection.model_validate(diffusion)
    is_guess = section.gives_guess
    has_draws = draws > 1 or not is_guess
    taken = section.told(mean=record["mean"], has_noise=has_spread)
    if is_guess and draws > 1 and not record["mean"]:
        taken += "; draws take 4"
    written = "mean" if record["mean"] else "best guess" if is_guess else "first"
    rows = [
        ("model", task["name"]),
        ("weights (SHA-256)", record["weights_sha256"]),
        ("model's window", f"W {window['width_hu']:g} L {window['center_hu']:g}; what lies "
         "outside passes by the model"),
        ("refined from", f"a range of {record['threshold_hu']:g} HU in 2 x 2 input pixels "
         f"(s = {task['quadtree']['threshold']:g})"),
        ("sampler", f"{diffusion['sampler']['name']}, {taken}"),
        ("draws", str(draws) if draws == 1 else f"{draws}; the {written} is written"),
        ("spread of the model's errors", "in the draws" if has_spread and has_draws else "no"),
        ("drawn nearer to the input", "yes" if diffusion["consistency"] else "no"),
        ("seed", record["seed"]),
        ("device", f"{record['device']}, {precision['used']}, batches of {record['batch_size']}"),
        ("voxels clipped", record["summary"]["clipped_voxels"]),
        ("input", record["input"]["kind"]),
        ("output", ", ".join([output["format"], *output.get("overlays", ())])),
        ("versions", f"medqdm {record['medqdm']}, torch {record['torch']}, "
         f"Python {record['python']}"),
    ]  # fmt: skip
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in rows)
    return f"<section><h2>What was done</h2><dl>{items}</dl></section>"


def _reading() -> str:
    notes = (
        "Refined regions are where the model drew detail: there it can be wrong and look right. "
        "Outside of them the decoder sharpens what the input shows.",
        "LR consistency near the noise of the input says that nothing was moved or made up on the "
        "scale of an input pixel; it does not judge what is finer.",
        "Uncertainty is what differs from draw to draw. With the spread of the model's errors "
        "(above) it says how far the output may be off, as far as the model knows; without, only "
        "what chance did. What all draws agree on can be wrong.",
        "A shift by tissue says whether HU can still be measured there; SD is what single input "
        "pixels differ by, their noise included. Bone includes metal and dense contrast agent.",
        "Interpret with the original series beside it.",
    )
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<section><h2>How to read this</h2><ul>{items}</ul></section>"


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _range(low: float, high: float) -> str:
    if math.isinf(low):
        return f"below {high:g} HU"
    return f"{low:g} HU and more" if math.isinf(high) else f"{low:g} to {high:g} HU"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
