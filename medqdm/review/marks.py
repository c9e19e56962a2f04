"""Marks: what a picture needs to be read: sides, scale, refined regions, and what is synthetic."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from medqdm.picture import REFINED_RGB, SYNTHETIC, orientation_letters, scale_bar_mm
from medqdm.review.series import CELL_LR_PX, Review

INK = "#e8e8e8"
_OUTLINE = [withStroke(linewidth=2, foreground="black")]
_TINT = 0.16


def _cells_mm(review: Review) -> tuple[float, float]:
    y, x = review.before.spacing_mm
    return CELL_LR_PX * y, CELL_LR_PX * x


def tint_refined(axes: Axes, review: Review, refined: NDArray[np.bool_]) -> Any:
    """Colour the refined cells, but so thinly that the grey below can be read; give the layer."""
    y, x = _cells_mm(review)
    tint = np.zeros((*refined.shape, 4), dtype=np.float32)
    tint[..., :3], tint[..., 3] = REFINED_RGB, _TINT * refined
    extent = (0, refined.shape[1] * x, refined.shape[0] * y, 0)
    return axes.imshow(tint, extent=extent, aspect="equal", interpolation="nearest")


def outline_refined(
    axes: Axes, review: Review, refined: NDArray[np.bool_], color: Any = "#b0b0b0"
) -> Any:
    """Draw lines between refined cells and the others, and give them."""
    y, x = _cells_mm(review)
    row, column = np.nonzero(refined[1:] != refined[:-1])
    across = np.stack([column, row + 1, column + 1, row + 1], axis=1)
    row, column = np.nonzero(refined[:, 1:] != refined[:, :-1])
    down = np.stack([column + 1, row, column + 1, row + 1], axis=1)
    ends = np.concatenate([across, down]).reshape(-1, 2, 2) * (x, y)
    lines = LineCollection(list(ends), colors=color, linewidths=0.5, alpha=0.7)
    return axes.add_collection(lines, autolim=False)


def mark_synthetic(axes: Axes) -> None:
    """Say on the picture itself, where no crop loses it, that its detail was made."""
    axes.text(
        0.98, 0.98, SYNTHETIC, transform=axes.transAxes, ha="right", va="top",
        color="#ffd24a", fontsize=9, fontweight="bold", path_effects=_OUTLINE,
    )  # fmt: skip


def draw_letters(axes: Axes, review: Review) -> None:
    """The sides of the patient, on the four sides of a panel."""
    left, right = orientation_letters(review.before.x_step_mm)
    top, bottom = orientation_letters(review.before.y_step_mm)
    places = (
        (0.02, 0.5, left, "left", "center"),
        (0.98, 0.5, right, "right", "center"),
        (0.5, 0.98, top, "center", "top"),
        (0.5, 0.02, bottom, "center", "bottom"),
    )
    for x, y, letters, ha, va in places:
        axes.text(
            x, y, letters, transform=axes.transAxes, ha=ha, va=va, color=INK, fontsize=10,
            path_effects=_OUTLINE,
        )  # fmt: skip


def draw_scale_bar(axes: Axes, left: float, right: float, top: float, bottom: float) -> None:
    """A bar of a round length, lower left in a panel whose limits are in mm."""
    length, unit = scale_bar_mm(right - left), (bottom - top) / 100
    start, base = left + (right - left) * 0.03, bottom - 3 * unit
    axes.add_patch(
        Rectangle((start, base - unit), length, unit, facecolor=INK, edgecolor="black",
                  linewidth=0.5, zorder=3, label="scale bar")
    )  # fmt: skip
    axes.text(
        start, base - 1.8 * unit, f"{length:g} mm", color=INK, fontsize=9, va="bottom",
        path_effects=_OUTLINE,
    )  # fmt: skip


def draw_color_bar(figure: Figure, beside: Axes, colours: Any, limit: float) -> None:
    """A bar below a panel that says which colour is how many HU."""
    box, (_, height) = beside.get_position(), figure.get_size_inches()
    inset = 0.08 * box.width  # room for the outer labels
    axes = figure.add_axes((box.x0 + inset, 0.5 / height, box.width - 2 * inset, 0.13 / height))
    bar = figure.colorbar(colours, cax=axes, orientation="horizontal")
    bar.set_ticks([-limit, -limit / 2, 0, limit / 2, limit])
    bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:+g} HU" if value else "0 HU")
    bar.ax.tick_params(colors=INK, labelsize=8.5, length=2)
    bar.outline.set_edgecolor(INK)
