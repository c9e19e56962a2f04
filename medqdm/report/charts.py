"""Charts of a report, as SVG: how many pixels have which HU, and how slices differ."""

import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from medqdm.metrics import TISSUES
from medqdm.report.tally import bin_centres_hu

# Okabe and Ito's blue and vermilion, told apart by all eyes, and in print by their dashes.
_BEFORE: dict[str, Any] = {"color": "#0072b2", "linestyle": (0, (4, 2)), "linewidth": 1.4}
_AFTER: dict[str, Any] = {"color": "#d55e00", "linewidth": 1.4}
_INK, _GRID = "#33393f", "#d9dee3"
_SHOWN_HU = (-1100.0, 1600.0)
_SIZE_INCHES, _PLACE = (6.4, 2.9), (0.095, 0.16, 0.815, 0.8)


def histogram(tallies: NDArray[Any]) -> bytes:
    """Shares of pixels by HU, input and output.

    Args:
        tallies: ``(z,)`` of ``TALLY``.
    """
    figure, axes = _figure()
    centres = bin_centres_hu()
    for low, high in TISSUES.values():
        axes.axvspan(max(low, _SHOWN_HU[0]), min(high, _SHOWN_HU[1]), color="#f1f4f6", zorder=0)
    for name, style, label in (("before", _BEFORE, "source"), ("after", _AFTER, "enhanced")):
        counts = tallies[name].sum(axis=0)
        shares = 100 * counts / max(1, counts.sum())
        axes.step(centres, np.where(shares > 0, shares, np.nan), where="mid", label=label, **style)
    axes.set(xlim=_SHOWN_HU, yscale="log", xlabel="HU", ylabel="% of pixels per 10 HU")
    top = axes.get_ylim()[1]
    axes.set_ylim(top=top * 4)
    for name, (low, high) in TISSUES.items():
        middle = (max(low, _SHOWN_HU[0]) + min(high, _SHOWN_HU[1])) / 2
        axes.text(middle, top * 2, name.replace(" ", "\n"), ha="center", va="center",
                  fontsize=7.5, color=_INK, linespacing=0.9)  # fmt: skip
    axes.legend(loc="center right", frameon=False, fontsize=9)
    return _svg(figure)


def along_slices(tallies: NDArray[Any]) -> bytes:
    """LR consistency and the refined share of each slice.

    Args:
        tallies: ``(z,)`` of ``TALLY``.
    """
    figure, axes = _figure()
    z = np.arange(1, len(tallies) + 1)
    mark = "o" if len(tallies) < 40 else None
    apart = lr_consistency_hu(tallies)
    (left,) = axes.plot(z, apart, marker=mark, markersize=3.5, **_AFTER)
    axes.set(xlabel="slice", ylabel="LR consistency [HU]")
    axes.set_ylim(0, max(1.0, 1.15 * float(apart.max())))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    other = axes.twinx()
    shares = 100 * tallies["share_refined"]
    (right,) = other.plot(z, shares, marker=mark and "s", markersize=3, **_BEFORE)
    other.set_ylim(0, max(10.0, 1.15 * float(shares.max())))
    _tidy(other)
    other.set_ylabel("refined [%]")
    axes.legend(
        [left, right], ["LR consistency (left)", "share refined (right)"],
        loc="lower center", frameon=False, fontsize=9, ncols=2,
    )  # fmt: skip
    return _svg(figure)


def lr_consistency_hu(tallies: NDArray[Any]) -> NDArray[np.float64]:
    """``(z,)`` root mean square of output minus input on the input's pixels, in HU."""
    squares: NDArray[np.float64] = tallies["lr_square_sum"] / np.maximum(1, tallies["lr_pixels"])
    return np.sqrt(squares)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE_INCHES)
    FigureCanvasSVG(figure)
    axes = figure.add_axes(_PLACE)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    _tidy(axes)
    return figure, axes


def _tidy(axes: Axes) -> None:
    axes.spines["top"].set_visible(False)
    for side in ("left", "right", "bottom"):
        axes.spines[side].set_color(_GRID)
    axes.tick_params(colors=_INK, labelsize=8.5)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=_INK, fontsize=9)


def _svg(figure: Figure) -> bytes:
    """The same figure, the same bytes."""
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "medqdm"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
