"""Thresholds: what the quadtree's threshold saves and what it costs."""

from studies.thresholds.study import study_thresholds
from studies.thresholds.sweep import parse_thresholds

__all__ = [
    "parse_thresholds",
    "study_thresholds",
]
