"""Evaluate: how far enhanced slices are from their references, beside plain interpolation."""

from medqdm.evaluate.api import compare_samplers, evaluate_weights
from medqdm.evaluate.blocks import Block, open_blocks
from medqdm.evaluate.intervals import Interval, interval
from medqdm.evaluate.methods import BASELINES, upsample_lanczos
from medqdm.evaluate.regions import RoiFolder, body_mask
from medqdm.evaluate.report import write_report
from medqdm.evaluate.rows import Row, default_rows, parse_rows
from medqdm.evaluate.run import Evaluation, Example, Score, evaluate, open_pairs
from medqdm.evaluate.samplers import Comparison, Measured, Trial, compare
from medqdm.evaluate.samplers_report import write_samplers

__all__ = [
    "BASELINES",
    "Block",
    "Comparison",
    "Evaluation",
    "Example",
    "Interval",
    "Measured",
    "RoiFolder",
    "Row",
    "Score",
    "Trial",
    "body_mask",
    "compare",
    "compare_samplers",
    "default_rows",
    "evaluate",
    "evaluate_weights",
    "interval",
    "open_blocks",
    "open_pairs",
    "parse_rows",
    "upsample_lanczos",
    "write_report",
    "write_samplers",
]
