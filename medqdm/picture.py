"""Picture: slices before and after, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn import functional

from medqdm.window import Window

Image = NDArray[np.float32]
REFINED_RGB = (0.90, 0.62, 0.0)  # orange of Okabe and Ito's palette, told apart by all eyes
SYNTHETIC = "SYNTHETIC DETAIL"  # on every picture that shows enhanced pixels
PANEL_INCHES = 3.2
PRESETS = {
    "lung": Window(-600, 1500),
    "soft tissue": Window(40, 400),
    "bone": Window(400, 1800),
    "brain": Window(40, 80),
    "subdural": Window(75, 215),
}
# Dark in the middle, as the eye compares with a dark CT; blue against yellow is told apart by all.
DIFFERENCE_COLORS = LinearSegmentedColormap.from_list(
    "difference", ["#b8e2ff", "#3d9be0", "#0b3a63", "#101010", "#6b4a00", "#e0a020", "#fff0b0"]
)
_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))  # towards smaller and larger LPS coordinates
_OBLIQUE = 0.25  # a direction gets a second letter from 14 degrees on


def orientation_letters(step_mm: NDArray[np.float64]) -> tuple[str, str]:
    """Which side of the patient lies against and along a step.

    Args:
        step_mm: LPS vector, such as ``Volume.x_step_mm``.

    Returns:
        Letters of R, L, A, P, F (feet), H (head); two or three where the step is oblique.

    >>> orientation_letters(np.array([0.7, 0.0, 0.0]))
    ('R', 'L')
    >>> orientation_letters(np.array([0.0, -0.3, 0.6]))
    ('FP', 'HA')
    """
    direction = step_mm / np.linalg.norm(step_mm)
    order = [k for k in np.argsort(-np.abs(direction)) if abs(direction[k]) >= _OBLIQUE]
    along = "".join(_LETTERS[k][int(direction[k] > 0)] for k in order)
    against = "".join(_LETTERS[k][int(direction[k] < 0)] for k in order)
    return against, along


def scale_bar_mm(width_mm: float) -> float:
    """A round length, at most a quarter of the width: 1, 2 or 5 times a power of ten."""
    return _round_down(width_mm / 4)


def _round_down(value: float) -> float:
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(step for step in (1, 2, 5) if step * power <= value) * power)


def upsample_bicubic(lr_hu: Image, factor: int) -> Image:
    """Bicubic enlargement of a slice, its outer edges kept (pixel-area convention).

    Args:
        lr_hu: ``(y, x)`` in HU.
        factor: output pixels per input pixel.
    """
    image = torch.from_numpy(np.ascontiguousarray(lr_hu))[None, None]
    out = functional.interpolate(image, scale_factor=factor, mode="bicubic", align_corners=False)
    enlarged: Image = out[0, 0].numpy()
    return enlarged


def to_grey(hu: Image, window: Window) -> Image:
    """HU to [0, 1] for display."""
    return np.asarray(window.normalize(hu) / 2 + 0.5, dtype=np.float32)


def overlay_refined(
    hu: Image,
    refined: NDArray[np.bool_],
    window: Window,
    *,
    cell_px: int,
    strength: float = 0.35,
) -> NDArray[np.float32]:
    """A slice with its refined cells tinted.

    Args:
        hu: ``(y, x)`` in HU.
        refined: ``(rows, columns)`` cells over the same area (the last may be cut).
        window: for the grey values.
        cell_px: side of a cell in pixels of the slice: twice the upscale factor.
        strength: share of the tint, 0 to 1.

    Returns:
        ``(y, x, 3)`` RGB in [0, 1].
    """
    grey = np.repeat(to_grey(hu, window)[..., None], 3, axis=2)
    marked = refined.repeat(cell_px, axis=0).repeat(cell_px, axis=1)
    marked = marked[: hu.shape[0], : hu.shape[1], None]
    tint = np.asarray(REFINED_RGB, dtype=np.float32)
    tinted: NDArray[np.float32] = np.where(marked, (1 - strength) * grey + strength * tint, grey)
    return tinted


def busiest_area(hu: Image, side: int) -> tuple[slice, slice]:
    """The square of a slice with the most detail, for a close-up.

    Args:
        hu: ``(y, x)`` in HU.
        side: of the square in pixels; cut to the slice.
    """
    side = min(side, *hu.shape)
    gradient = np.abs(np.diff(hu, axis=0))[:, :-1] + np.abs(np.diff(hu, axis=1))[:-1]
    step = max(1, side // 4)
    best, corner = -1.0, (0, 0)
    for y in range(0, hu.shape[0] - side + 1, step):
        for x in range(0, hu.shape[1] - side + 1, step):
            # the median asks for detail everywhere rather than for one bright edge
            detail = float(np.median(gradient[y : y + side, x : x + side]))
            if detail > best:
                best, corner = detail, (y, x)
    return slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side)


def compare(
    lr_hu: Image,
    sr_hu: Image,
    refined: NDArray[np.bool_],
    window: Window,
    *,
    reference_hu: Image | None = None,
    title: str = "",
) -> Figure:
    """LR, bicubic, enhanced, (reference,) refined regions: the whole slice above, a close-up below.

    Args:
        lr_hu: ``(y, x)`` in HU.
        sr_hu: ``(y * s, x * s)`` in HU.
        refined: cells of 2 x 2 LR pixels.
        window: for the grey values.
        reference_hu: ``(y * s, x * s)`` in HU, if there is one.
        title: one line above all; nothing of the patient.
    """
    factor = sr_hu.shape[1] // lr_hu.shape[1]
    nearest = lr_hu.repeat(factor, axis=0).repeat(factor, axis=1)
    share = 100 * float(refined.mean())
    panels: dict[str, NDArray[np.float32]] = {
        "input": to_grey(nearest, window),
        "bicubic": to_grey(upsample_bicubic(lr_hu, factor), window),
        "enhanced (synthetic)": to_grey(sr_hu, window),
    }
    if reference_hu is not None:
        panels["reference"] = to_grey(reference_hu, window)
    panels[f"refined regions ({share:.0f} %)"] = overlay_refined(
        sr_hu, refined, window, cell_px=2 * factor
    )
    close_up = busiest_area(sr_hu, max(32, min(sr_hu.shape) // 4))
    rows = [panels, {name: image[close_up] for name, image in panels.items()}]
    return grid(rows, title=title)


def grid(rows: Sequence[Mapping[str, NDArray[np.float32]]], *, title: str = "") -> Figure:
    """Rows of named pictures; names stand above the first row.

    Args:
        rows: name to ``(y, x)`` grey or ``(y, x, 3)`` RGB in [0, 1].
        title: one line above all.
    """
    columns = max(len(row) for row in rows)
    size = (PANEL_INCHES * columns, PANEL_INCHES * len(rows) + 0.5)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for y, row in enumerate(rows):
        for x, (name, image) in enumerate(row.items()):
            axes[y, x].imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if y == 0:
                axes[y, x].set_title(name, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, without metadata."""
    figure.savefig(path, metadata={"Software": None})
    return path
