"""Evaluate: how far enhanced slices are from their references, beside plain interpolation."""

from medqdm.evaluate.api import evaluate_weights
from medqdm.evaluate.intervals import Interval, interval
from medqdm.evaluate.methods import BASELINES, upsample_lanczos
from medqdm.evaluate.regions import RoiFolder, body_mask
from medqdm.evaluate.report import write_report
from medqdm.evaluate.run import Evaluation, Example, Score, evaluate, open_pairs

__all__ = [
    "BASELINES",
    "Evaluation",
    "Example",
    "Interval",
    "RoiFolder",
    "Score",
    "body_mask",
    "evaluate",
    "evaluate_weights",
    "interval",
    "open_pairs",
    "upsample_lanczos",
    "write_report",
]
