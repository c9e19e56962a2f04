"""Evaluate: how far enhanced slices are from their references, beside plain interpolation."""

from medqdm.evaluate.api import compare_samplers, evaluate_degradations, evaluate_weights
from medqdm.evaluate.blocks import Block, open_blocks
from medqdm.evaluate.budget import measure_budget
from medqdm.evaluate.discs import Disc
from medqdm.evaluate.evaluation import Evaluation, Example
from medqdm.evaluate.intervals import Interval, interval
from medqdm.evaluate.knob import parse_thresholds
from medqdm.evaluate.lesions import Lesions, measure_lesions, open_cases
from medqdm.evaluate.methods import BASELINES, Interpolation, Method, Model, upsample_lanczos
from medqdm.evaluate.regions import RoiFolder, body_mask
from medqdm.evaluate.report import write_report
from medqdm.evaluate.rows import Row, default_rows, parse_rows
from medqdm.evaluate.run import evaluate, open_pairs
from medqdm.evaluate.samplers import Comparison, Measured, Trial, compare
from medqdm.evaluate.samplers_report import write_samplers
from medqdm.evaluate.seams import Borders, borders_of, seam_ratio
from medqdm.evaluate.studies import study_budget, study_lesions, study_thresholds
from medqdm.evaluate.texture import Spectrum, flat_patches, patches_in, spectrum
from medqdm.evaluate.tissue import tissue_masks
from medqdm.evaluate.truth import Score, Truth
from medqdm.metrics import TISSUES

__all__ = [
    "BASELINES",
    "TISSUES",
    "Block",
    "Borders",
    "Comparison",
    "Disc",
    "Evaluation",
    "Example",
    "Interpolation",
    "Interval",
    "Lesions",
    "Measured",
    "Method",
    "Model",
    "RoiFolder",
    "Row",
    "Score",
    "Spectrum",
    "Trial",
    "Truth",
    "body_mask",
    "borders_of",
    "compare",
    "compare_samplers",
    "default_rows",
    "evaluate",
    "evaluate_degradations",
    "evaluate_weights",
    "flat_patches",
    "interval",
    "measure_budget",
    "measure_lesions",
    "open_blocks",
    "open_cases",
    "open_pairs",
    "parse_rows",
    "parse_thresholds",
    "patches_in",
    "seam_ratio",
    "spectrum",
    "study_budget",
    "study_lesions",
    "study_thresholds",
    "tissue_masks",
    "upsample_lanczos",
    "write_report",
    "write_samplers",
]
