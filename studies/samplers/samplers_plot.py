"""Samplers plot: quality against cost, a line for each family of step counts."""

import itertools
import math
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from studies.samplers.samplers import AS_GOOD_DB, CHEAP_SHARE, Comparison

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
