"""Drawing: source, enhanced and their difference, true to scale, and labelled as synthetic."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from medqdm.errors import MedQDMError
from medqdm.picture import DIFFERENCE_COLORS, REFINED_RGB
from medqdm.review.marks import (
    INK,
    draw_color_bar,
    draw_letters,
    draw_scale_bar,
    mark_synthetic,
    outline_refined,
    tint_refined,
)
from medqdm.review.series import Review, ReviewSlice
from medqdm.window import Window

Image = NDArray[np.float32]

_BACKGROUND = "#101010"
_PANEL_INCHES, _GAP_INCHES = 4.2, 0.12
_HEAD_INCHES, _FOOT_INCHES = 0.62, 0.78


@dataclass(frozen=True)
class View:
    """The part of a slice that is looked at; it never leaves the slice.

    Args:
        zoom: 1 shows the whole slice, 2 half of its width and height.
        x: centre as a share of the width, 0 to 1.
        y: centre as a share of the height, 0 to 1.

    Raises:
        MedQDMError: zoom is below 1, or the centre outside of the slice.
    """

    zoom: float = 1.0
    x: float = 0.5
    y: float = 0.5

    def __post_init__(self) -> None:
        if not self.zoom >= 1:
            raise MedQDMError(f"view: zoom must be 1 or more, got {self.zoom:g}")
        if not (0 <= self.x <= 1 and 0 <= self.y <= 1):
            raise MedQDMError(
                f"view: x and y must be shares from 0 to 1, got {self.x:g} and {self.y:g}"
            )

    def limits_mm(self, size_mm: tuple[float, float]) -> tuple[float, float, float, float]:
        """Left, right, top and bottom in mm from the slice's upper left corner.

        Args:
            size_mm: height and width of the slice.
        """
        spans = []
        for centre, size in ((self.x, size_mm[1]), (self.y, size_mm[0])):
            span = size / self.zoom
            start = min(max(centre * size - span / 2, 0.0), size - span)
            spans += [start, start + span]
        return spans[0], spans[1], spans[2], spans[3]


WHOLE = View()


def render(
    review: Review,
    z: int,
    *,
    window: Window | None = None,
    view: View = WHOLE,
    overlay: bool = True,
    difference_hu: float | None = None,
) -> Figure:
    """One slice as three panels: bicubic source, enhanced, their difference in HU.

    Args:
        review: the two series.
        z: index of the slice from 0.
        window: for the grey values; None: the model's.
        view: the part of the slice.
        overlay: tint the refined cells on the enhanced panel, outline them on the difference.
        difference_hu: where the colours of the difference end; None: see ``difference_limit_hu``.
    """
    window = window or review.model_window
    content = review.at(z)
    limit = difference_hu or difference_limit_hu(content)
    figure, panels = _figure(review, z, window, view, content, columns=3)
    titles = (f"source, bicubic x{review.upscale}", "enhanced", "enhanced minus bicubic")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, color=INK, fontsize=11)
    _draw(panels[0], review, view, content.bicubic_hu, **_grey(window))
    _draw(panels[1], review, view, content.enhanced_hu, **_grey(window))
    colours = _draw(
        panels[2], review, view, content.difference_hu,
        cmap=DIFFERENCE_COLORS, vmin=-limit, vmax=limit,
    )  # fmt: skip
    mark_synthetic(panels[1])
    if overlay:
        tint_refined(panels[1], review, content.refined)
        outline_refined(panels[1], review, content.refined, REFINED_RGB)
        outline_refined(panels[2], review, content.refined)
    draw_color_bar(figure, panels[2], colours, limit)
    return figure


def render_swipe(
    review: Review,
    z: int,
    *,
    split: float = 0.5,
    window: Window | None = None,
    view: View = WHOLE,
    overlay: bool = False,
) -> Figure:
    """One slice as one panel, bicubic source left of a line and enhanced right of it.

    Args:
        review: the two series.
        z: index of the slice from 0.
        split: where the line stands, as a share of the view's width: 0 is all enhanced, 1 all
            bicubic; going from one to the other makes the two blink.
        window: for the grey values; None: the model's.
        view: the part of the slice.
        overlay: tint the refined cells of the enhanced side.

    Raises:
        MedQDMError: the split is outside of 0 to 1.
    """
    if not 0 <= split <= 1:
        raise MedQDMError(f"swipe: split must be a share from 0 to 1, got {split:g}")
    window = window or review.model_window
    content = review.at(z)
    figure, (axes,) = _figure(review, z, window, view, content, columns=1)
    left, right, top, bottom = view.limits_mm(review.size_mm)
    line = left + split * (right - left)
    axes.set_title(
        {0.0: "enhanced", 1.0: "source, bicubic"}.get(split, "source, bicubic | enhanced"),
        color=INK,
        fontsize=11,
    )
    _draw(axes, review, view, content.bicubic_hu, **_grey(window))
    side = Rectangle((line, top), right - line, bottom - top, transform=axes.transData)
    if split < 1:
        _draw(axes, review, view, content.enhanced_hu, **_grey(window)).set_clip_path(side)
        mark_synthetic(axes)
        if overlay:
            tint_refined(axes, review, content.refined).set_clip_path(side)
            outline_refined(axes, review, content.refined, REFINED_RGB).set_clip_path(side)
    if 0 < split < 1:
        axes.axvline(line, color=INK, linewidth=1)
    return figure


def to_png(figure: Figure) -> bytes:
    """A figure as PNG, without metadata."""
    stream = io.BytesIO()
    figure.savefig(
        stream, format="png", metadata={"Software": None}, facecolor=figure.get_facecolor()
    )
    return stream.getvalue()


def difference_limit_hu(content: ReviewSlice) -> float:
    """A round limit, 10 HU or more, that 99.5 % of a slice's differences stay below."""
    return max(10.0, _round_up(float(np.quantile(np.abs(content.difference_hu), 0.995))))


def _round_up(value: float) -> float:
    if value <= 0:
        return 0.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(min(step for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value) * power)


def _grey(window: Window) -> dict[str, Any]:
    return {"cmap": "gray", "vmin": window.low_hu, "vmax": window.high_hu}


def _figure(
    review: Review, z: int, window: Window, view: View, content: ReviewSlice, *, columns: int
) -> tuple[Figure, Sequence[Axes]]:
    """A dark figure whose panels have exactly the view's shape, in mm."""
    left, right, top, bottom = view.limits_mm(review.size_mm)
    unit = _PANEL_INCHES / max(right - left, bottom - top)
    panel_w, panel_h = (right - left) * unit, (bottom - top) * unit
    width = max(columns * (panel_w + _GAP_INCHES) + _GAP_INCHES, 5.5)
    height = panel_h + _HEAD_INCHES + _FOOT_INCHES
    figure = Figure(figsize=(width, height), dpi=110, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    start = (width - columns * panel_w - (columns - 1) * _GAP_INCHES) / 2
    panels = [
        figure.add_axes((
            (start + k * (panel_w + _GAP_INCHES)) / width, _FOOT_INCHES / height,
            panel_w / width, panel_h / height,
        ))
        for k in range(columns)
    ]  # fmt: skip
    before, after = review.before.spacing_mm, review.enhanced.spacing_mm
    figure.text(
        0.5, 1 - 0.1 / height,
        f"slice {z + 1} of {review.num_slices}   W {window.width_hu:g}  L {window.center_hu:g} HU",
        color=INK, fontsize=11, ha="center", va="top",
    )  # fmt: skip
    figure.text(
        _GAP_INCHES / width, 0.12 / height,
        f"pixels {before[0]:.3g} x {before[1]:.3g} mm -> {after[0]:.3g} x {after[1]:.3g} mm\n"
        f"refined: {content.refined.mean():.0%} of the slice; averaged back to the input's pixels "
        f"it differs by {content.lr_consistency_hu:.1f} HU rms\n"
        "detail is synthetic: research use, not for diagnosis",
        color=INK, fontsize=8.5, va="bottom", linespacing=1.4,
    )  # fmt: skip
    for axes in panels:
        axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], autoscale_on=False)
        axes.set_facecolor("black")
        draw_letters(axes, review)
        draw_scale_bar(axes, left, right, top, bottom)
    return figure, panels


def _draw(axes: Axes, review: Review, view: View, image: Image, **style: Any) -> Any:
    """Draw the pixels that the view touches where they are, in mm."""
    (height, width), (rows, columns) = review.size_mm, image.shape
    left, right, top, bottom = view.limits_mm(review.size_mm)
    y, x = height / rows, width / columns
    first_row, last_row = int(top / y), min(rows, int(np.ceil(bottom / y)))
    first, last = int(left / x), min(columns, int(np.ceil(right / x)))
    return axes.imshow(
        image[first_row:last_row, first:last],
        extent=(first * x, last * x, last_row * y, first_row * y),
        aspect="equal",
        **style,
    )
