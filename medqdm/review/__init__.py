"""Review: what the notebooks show of an enhanced series, and what a reader says about it."""

from medqdm.review.drawing import PRESETS, View, render, render_swipe, to_png
from medqdm.review.marks import orientation_letters, scale_bar_mm
from medqdm.review.rating import Rating, read_ratings, save_rating
from medqdm.review.series import Review, ReviewSlice, load_review
from medqdm.review.widget import ReviewWidget, show

__all__ = [
    "PRESETS",
    "Rating",
    "Review",
    "ReviewSlice",
    "ReviewWidget",
    "View",
    "load_review",
    "orientation_letters",
    "read_ratings",
    "render",
    "render_swipe",
    "save_rating",
    "scale_bar_mm",
    "show",
    "to_png",
]
