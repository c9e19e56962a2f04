"""Facts: what the page knows of a series: sizes, windows, layers and colours; no patient."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import colormaps

from medqdm.picture import (
    DIFFERENCE_COLORS,
    PRESETS,
    REFINED_RGB,
    SYNTHETIC,
    orientation_letters,
)
from medqdm.review.layers import Layers
from medqdm.review.series import Review
from medqdm.version import __version__

NOTICE = "Synthetic detail: research use, not for diagnosis"
OVERLAYS = {
    "refined": "refined regions",
    "levels": "quadtree levels",
    "uncertainty": "uncertainty",
    "residual": "LR-consistency residual",
}
_MOST_LEVELS = 4  # where the settings are not known


def facts_of(review: Review, layers: Layers) -> dict[str, Any]:
    """All that the page is told, in the types of JSON.

    Lengths are in mm, ranges in HU; a view has ``size_mm`` (height, width) edge to edge.
    """
    model = review.model_window
    windows = {"model": model, **PRESETS}
    levels = review.quadtree.num_levels if review.quadtree else _MOST_LEVELS
    return {
        "label": review.label,
        "version": __version__,
        "notice": NOTICE,
        "mark": SYNTHETIC,
        "upscale": review.upscale,
        "spacing_mm": list(review.enhanced.spacing_mm),
        "slice_px": list(review.enhanced.shape[1:]),
        "share_refined": float(review.refined.mean()),
        "windows": {name: [w.center_hu, w.width_hu] for name, w in windows.items()},
        "layers": {name: layers.cell_px(name) for name in layers.names},
        "overlays": {name: text for name, text in OVERLAYS.items() if name in layers.names},
        "num_levels": levels,
        "views": _views(review, layers),
        "colors": colors(levels),
    }


def colors(num_levels: int) -> dict[str, list[list[int]]]:
    """Palettes of RGB in 0 to 255, told apart by eyes of every kind.

    ``refined`` and ``levels`` have one colour per value from 1 on; ``uncertainty`` runs from 0 to
    its limit in 256 steps, ``residual`` and ``difference`` from minus to plus theirs.

    Args:
        num_levels: of the quadtree.
    """
    cividis = colormaps["cividis"]
    return {
        "refined": [[round(255 * c) for c in REFINED_RGB]],
        "levels": _rgb(cividis, np.linspace(0, 1, num_levels)),
        "uncertainty": _rgb(cividis, np.linspace(0, 1, 256)),
        "residual": _rgb(DIFFERENCE_COLORS, np.linspace(0, 1, 256)),
        "difference": _rgb(DIFFERENCE_COLORS, np.linspace(0, 1, 256)),
    }


def _rgb(palette: Callable[..., Any], places: Any) -> list[list[int]]:
    rgb: list[list[int]] = np.rint(255 * palette(places)[:, :3]).astype(int).tolist()
    return rgb


def _views(review: Review, layers: Layers) -> dict[str, Any]:
    left, right = orientation_letters(review.enhanced.x_step_mm)
    top, bottom = orientation_letters(review.enhanced.y_step_mm)
    views = {
        "axial": {
            "count": review.num_slices,
            "size_mm": list(review.size_mm),
            "pixel_mm": list(review.enhanced.spacing_mm),
            "letters": [left, right, top, bottom],
        }
    }
    for axis, plane in layers.planes.items():
        views[axis] = {
            "count": plane.count,
            "size_mm": [len(plane.slices) * plane.height_mm, plane.columns * plane.width_mm],
            "pixel_mm": [plane.height_mm, plane.width_mm],
            "letters": list(plane.letters),
        }
    return views
