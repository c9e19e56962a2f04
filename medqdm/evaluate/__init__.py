"""Evaluate: how far enhanced slices are from their references, beside plain interpolation."""

from medqdm.evaluate.api import evaluate_degradations, evaluate_weights
from medqdm.evaluate.evaluation import Evaluation, Example
from medqdm.evaluate.intervals import Interval, interval
from medqdm.evaluate.methods import BASELINES, Interpolation, Method, Model, upsample_lanczos
from medqdm.evaluate.regions import RoiFolder, body_mask
from medqdm.evaluate.report import write_report
from medqdm.evaluate.run import evaluate, open_pairs
from medqdm.evaluate.seams import Borders, borders_of, seam_ratio
from medqdm.evaluate.texture import Spectrum, flat_patches, patches_in, spectrum
from medqdm.evaluate.tissue import tissue_masks
from medqdm.evaluate.truth import Score, Truth
from medqdm.metrics import TISSUES

__all__ = [
    "BASELINES",
    "TISSUES",
    "Borders",
    "Evaluation",
    "Example",
    "Interpolation",
    "Interval",
    "Method",
    "Model",
    "RoiFolder",
    "Score",
    "Spectrum",
    "Truth",
    "body_mask",
    "borders_of",
    "evaluate",
    "evaluate_degradations",
    "evaluate_weights",
    "flat_patches",
    "interval",
    "open_pairs",
    "patches_in",
    "seam_ratio",
    "spectrum",
    "tissue_masks",
    "upsample_lanczos",
    "write_report",
]
