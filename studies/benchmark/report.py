"""Report: a benchmark as tables, JSON and a plot."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medqdm import picture
from medqdm.io.whole import whole_file, whole_folder
from studies.benchmark.run import STAGES, Benchmark, Measured

# Okabe and Ito's palette, told apart by all eyes
_STAGE_COLOURS = dict(
    zip(STAGES, ("#999999", "#56B4E9", "#0072B2", "#E69F00", "#CCCCCC"), strict=True)
)
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
    """Everything in tables: time and work."""
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
    return [time, work]


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
    """Time split of all variants."""
    height = 0.42 * len(found.variants) + 2.0
    figure = Figure(figsize=(11, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    _draw_variants(figure.subplots(), found)
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


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
