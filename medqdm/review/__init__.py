"""Review: an enhanced series beside its source, in the browser, and what a reader says of it."""

from medqdm.picture import DIFFERENCE_COLORS, PRESETS, orientation_letters, scale_bar_mm
from medqdm.review.drawing import View, render, render_swipe, to_png
from medqdm.review.layers import Layers
from medqdm.review.rating import Rating, read_ratings, save_rating
from medqdm.review.series import Review, ReviewSlice, load_review
from medqdm.review.study import (
    StudyServer,
    analyse_study,
    is_study,
    make_study,
    tables_of,
    write_results,
)
from medqdm.review.viewer import Viewer

__all__ = [
    "DIFFERENCE_COLORS",
    "PRESETS",
    "Layers",
    "Rating",
    "Review",
    "ReviewSlice",
    "StudyServer",
    "View",
    "Viewer",
    "analyse_study",
    "is_study",
    "load_review",
    "make_study",
    "orientation_letters",
    "read_ratings",
    "render",
    "render_swipe",
    "save_rating",
    "scale_bar_mm",
    "tables_of",
    "to_png",
    "write_results",
]
