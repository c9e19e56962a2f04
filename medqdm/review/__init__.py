"""Review: an enhanced series beside its source, in the browser, and what a reader says of it."""

from medqdm.picture import DIFFERENCE_COLORS, PRESETS, orientation_letters, scale_bar_mm
from medqdm.review.drawing import View, render, render_swipe, to_png
from medqdm.review.layers import Layers
from medqdm.review.rating import Rating, read_ratings, save_rating
from medqdm.review.series import Review, ReviewSlice, load_review
from medqdm.review.viewer import Viewer

__all__ = [
    "DIFFERENCE_COLORS",
    "PRESETS",
    "Layers",
    "Rating",
    "Review",
    "ReviewSlice",
    "View",
    "Viewer",
    "load_review",
    "orientation_letters",
    "read_ratings",
    "render",
    "render_swipe",
    "save_rating",
    "scale_bar_mm",
    "to_png",
]
