"""Report: a benchmark as tables, JSON and a plot."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medqdm import picture
from medqdm.benchmark.growth import Growth
from medqdm.benchmark.run import STAGES, Benchmark, Measured
from medqdm.io.whole import whole_file, whole_folder

# Okabe and Ito's palette, told apart by all eyes
_STAGE_COLOURS = dict(
    zip(STAGES, ("#999999", "#56B4E9", "#0072B2", "#E69F00", "#CCCCCC"), strict=True)
)
_PACKING_COLOURS = {"windows": "#D55E00", "tokens": "#009E73"}
_GREY = "#555555"
_MARKER = "results.json"


class Table(NamedTuple):
    """A table of text.

    Args:
        title: one line above it.
        head: names of its columns.
        rows: as many cells each.
    """

    title: str
    head: list[str]
    rows: list[list[str]]


def write_report(found: Benchmark, out: Path, *, overwrite: bool = False) -> None:
    """Write ``results.json``, ``results.md`` and ``benchmark.png`` into a folder, whole or not.

    Args:
        found: what was measured.
        out: the folder to appear.
        overwrite: whether a folder with files in it may be replaced.

    Raises:
        MedQDMError: something is there that may not be replaced.
    """
    with whole_folder(out, overwrite=overwrite, marker=_MARKER) as folder:
        (folder / _MARKER).write_text(_json(found), encoding="utf-8")
        (folder / "results.md").write_text(markdown(found), encoding="utf-8")
        picture.save(plot(found), folder / "benchmark.png")


def write_json(found: Benchmark, path: Path) -> None:
    """Write everything as one JSON file; a file of this name is replaced."""
    with whole_file(path, overwrite=True) as partial:
        partial.write_text(_json(found), encoding="utf-8")


def _json(found: Benchmark) -> str:
    return json.dumps(_plain(asdict(found)), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Plain JSON values; what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary(found: Benchmark) -> list[str]:
    """What was measured, where and with what: a few lines of text."""
    about, task = found.about, found.about["task"]
    weights = (
        f"weights sha256 {about['weights_sha256'][:12]}"
        if about["weights_sha256"]
        else "random weights: times are right, pictures and HU shifts mean nothing"
    )
    rates = ", ".join(f"{p} {r / 1e9:.0f} GFLOP/s" for p, r in found.matrix_flops.items())
    load = about["load_at_start"]
    return [
        f"{task['name']} (x{task['upscale']}, QDM {about['qdm_parameters'] / 1e6:.1f} M and "
        f"autoencoder {about['autoencoder_parameters'] / 1e6:.1f} M parameters), {weights}",
        f"{about['batch']} x {about['slices']}; {100 * about['share_refined']:.1f} % of the cells "
        f"refined at s = {task['quadtree']['threshold']:g}",
        f"{about['processor']}, {about['device']}, {about['threads']} threads, "
        f"torch {about['torch']}"
        + ("" if load is None else f"; load {load:.1f} at the start")
        + ("" if about["has_bf16"] else "; no bf16 in hardware, so none was run"),
        f"matrix products: {rates}; medians of {about['repeats']} rounds",
    ]


def tables(found: Benchmark) -> list[Table]:
    """Everything in tables: time, work, and growth if it was measured."""
    variants = found.variants
    time = Table(
        "Seconds a slice, from DICOM to DICOM",
        ["variant", "steps", *STAGES, "total", "faster", "memory"],
        [
            [*_name(m), *(f"{m.seconds[s]:.3f}" for s in STAGES), f"{m.total:.3f}",
             f"{m.speedup:.2f}x", _gigabytes(m.peak_bytes)]
            for m in variants
        ],
    )  # fmt: skip
    work = Table(
        "Work of the denoiser a slice, its share of the matrix rate, and how far results differ",
        ["variant", "steps", "windows", "tokens", "MACs", "GFLOP/s", "of rate", "to fp32",
         "to dense"],
        [
            [*_name(m), f"{m.windows:.0f}", f"{m.tokens:.0f}", f"{m.multiply_adds / 1e12:.3f} T",
             f"{m.flops / 1e9:.0f}", f"{100 * m.matrix_share:.0f} %", _hu(m.shift_hu),
             "-" if m.dense_difference is None else f"{m.dense_difference:.1e}"]
            for m in variants
        ],
    )  # fmt: skip
    return [time, work, *(_growth_tables(found.growth) if found.growth else [])]


def _growth_tables(grown: Growth) -> list[Table]:
    density = Table(
        "Denoiser against refined cells",
        ["refined", "packing", "windows", "tokens", "seconds a slice"],
        [
            [f"{100 * p.share:.0f} %", p.packing, f"{p.windows:.0f}", f"{p.tokens:.0f}",
             f"{p.seconds:.3f}"]
            for p in grown.density
        ],
    )  # fmt: skip
    fits = Table(
        "Denoiser's seconds as a + b * tokens",
        ["packing", "a", "b", "R^2", "a of dense time"],
        [
            [f.packing, f"{f.line.a:.3f} s", f"{1e6 * f.line.b:.2f} us", f"{f.line.r_squared:.4f}",
             f"{100 * f.a_over_dense:.0f} %"]
            for f in grown.fits
        ],
    )  # fmt: skip
    batches = Table(
        "Encode, denoise and decode against slices in a batch"
        + (f" ({grown.batches_end})" if grown.batches_end else ""),
        ["slices", "seconds a slice", "peak memory"],
        [[str(p.slices), f"{p.seconds:.3f}", _gigabytes(p.peak_bytes)] for p in grown.batches],
    )
    sides = Table(
        "A whole slice against its size, tile by tile",
        ["output", "seconds", "s a megapixel", "peak memory"],
        [
            [f"{p.side_px} x {p.side_px}", f"{p.seconds:.3f}",
             f"{1e6 * p.seconds / p.side_px**2:.2f}", _gigabytes(p.peak_bytes)]
            for p in grown.sides
        ],
    )  # fmt: skip
    return [density, fits, batches, sides]


def markdown(found: Benchmark) -> str:
    """The summary and all tables."""
    lines = ["# Benchmark", "", *(f"- {line}" for line in summary(found))]
    for table in tables(found):
        ruler = ["---"] + ["---:"] * (len(table.head) - 1)
        rows = [table.head, ruler, *table.rows]
        lines += ["", f"## {table.title}", "", *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines) + "\n"


def _name(measured: Measured) -> tuple[str, str]:
    variant = measured.variant
    paper = "KL-VAE " if variant["autoencoder"] == "paper" else ""
    return f"{paper}{variant['packing']} {variant['precision']}", str(variant["steps"])


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _hu(shift: float | None) -> str:
    return "-" if shift is None else f"{shift:.2f} HU"


def plot(found: Benchmark) -> Figure:
    """Time split of all variants; below it, if measured, how cost grows."""
    grown = found.growth
    bars = 0.42 * len(found.variants) + 1.4
    heights = [bars, 3.6] if grown else [bars]
    figure = Figure(figsize=(11, sum(heights) + 0.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_variants(parts[0].subplots(), found)
    if grown:
        density, batches, sides = parts[1].subplots(1, 3)
        _draw_density(density, grown)
        _draw_batches(batches, grown)
        _draw_sides(sides, grown)
    task = found.about["task"]
    figure.suptitle(
        f"{task['name']}, x{task['upscale']}, {100 * found.about['share_refined']:.0f} % of the "
        f"cells refined, on {found.about['processor']} ({found.about['threads']} threads)",
        fontsize=11,
    )
    return figure


def _draw_variants(axis: Axes, found: Benchmark) -> None:
    names = [m.name for m in found.variants]
    left = [0.0] * len(names)
    for stage in STAGES:
        widths = [m.seconds[stage] for m in found.variants]
        axis.barh(names, widths, left=left, color=_STAGE_COLOURS[stage], label=stage, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, m in enumerate(found.variants):
        axis.text(
            m.total, row, f"  {m.total:.2f} s, {m.speedup:.1f}x, {_gigabytes(m.peak_bytes)}",
            va="center", fontsize=8,
        )  # fmt: skip
    axis.invert_yaxis()
    axis.set_xlim(0, 1.22 * max(m.total for m in found.variants))
    axis.set_xlabel("seconds a slice, from DICOM to DICOM")
    axis.legend(loc="lower right", fontsize=8, frameon=False)
    _tidy(axis)


def _draw_density(axis: Axes, grown: Growth) -> None:
    for fitted in grown.fits:
        own = [p for p in grown.density if p.packing == fitted.packing]
        colour, line = _PACKING_COLOURS[fitted.packing], fitted.line
        shares = [100 * p.share for p in own]
        axis.plot(shares, [p.seconds for p in own], "o", color=colour, ms=5, mfc="white")
        axis.plot(
            shares, [line.a + line.b * p.tokens for p in own], "-", color=colour, lw=1,
            label=f"{fitted.packing}: {line.a:.2f} s + {1e6 * line.b:.0f} µs a token, "
            f"R² {line.r_squared:.3f}",
        )  # fmt: skip
    axis.set_xlabel("cells refined [%]")
    axis.set_ylabel("denoiser, seconds a slice")
    axis.set_ylim(bottom=0)
    axis.legend(loc="lower right", fontsize=7, frameon=False)
    axis.set_title("against refined cells: lines are a + b * tokens", fontsize=10)
    _tidy(axis)


def _draw_batches(axis: Axes, grown: Growth) -> None:
    _draw_points(
        axis, [p.slices for p in grown.batches], [p.seconds for p in grown.batches],
        [p.peak_bytes for p in grown.batches],
    )  # fmt: skip
    axis.set_ylim(0, 1.3 * max(p.seconds for p in grown.batches))
    axis.set_xlabel("slices in a batch")
    axis.set_ylabel("seconds a slice")
    axis.set_title("against slices in a batch, with peak memory", fontsize=10)


def _draw_sides(axis: Axes, grown: Growth) -> None:
    _draw_points(
        axis, [p.side_px for p in grown.sides], [p.seconds for p in grown.sides],
        [p.peak_bytes for p in grown.sides],
    )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(0.6 * grown.sides[0].seconds, 2.5 * max(p.seconds for p in grown.sides))
    axis.set_xlabel("side of the output slice [pixels]")
    axis.set_ylabel("seconds a slice")
    axis.set_title("against size, with peak memory", fontsize=10)


def _draw_points(
    axis: Axes, x: Sequence[int], seconds: Sequence[float], peaks: Sequence[int]
) -> None:
    axis.plot(x, seconds, "o-", color=_STAGE_COLOURS["denoise"], ms=4, lw=1)
    axis.set_xscale("log", base=2)
    axis.set_xticks(x, [str(value) for value in x], minor=False)
    for place, value, peak in zip(x, seconds, peaks, strict=True):
        axis.annotate(
            f"{peak / 1e9:.2g} GB", (place, value), (0, 6), textcoords="offset points",
            ha="center", fontsize=7, rotation=45, color=_GREY,
        )  # fmt: skip
    axis.margins(x=0.12)
    _tidy(axis)


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
