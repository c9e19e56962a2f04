"""Evaluation: the scores of a run, their means over patients, and what is kept to look at."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqdm.evaluate import calibration
from medqdm.evaluate.failures import Failure
from medqdm.evaluate.intervals import Interval, interval
from medqdm.evaluate.texture import Spectrum
from medqdm.evaluate.tissue import INSIDE, SHOWN
from medqdm.evaluate.truth import FLAT, FLAT_SHOWN, WHOLE, Score, Truth
from medqdm.metrics import TISSUES
from medqdm.window import Window

Image = NDArray[np.float32]
REFERENCE = "reference"  # the truth itself, where it is not perfect by definition
# regions that differ so in size that slices weigh by it
BY_PIXELS = (*TISSUES, *INSIDE, *SHOWN, *calibration.STATED, FLAT, FLAT_SHOWN)
METRICS = (
    "psnr_db",
    "ssim",
    "mae_hu",
    "bias_hu",
    "lr_consistency_hu",
    "lpips",
    "share_refined",
    "windows",
    "tokens",
    "seconds",
    "edge_rise_mm",
    "shown_rise_mm",
    "sd_hu",
    "power_low_hu2",
    "power_high_hu2",
    "flat_squares",
    "seam_pixel",
    "seam_cell",
    "seam_window",
    "seam_tile",
    *calibration.MEASURED,
)


@dataclass(frozen=True, eq=False)
class Example:
    """A slice to look at.

    Args:
        lr_hu: ``(y, x)`` input in HU.
        hr_hu: ``(y * s, x * s)`` reference in HU.
        outputs: method to ``(y * s, x * s)`` in HU.
    """

    lr_hu: Image
    hr_hu: Image
    outputs: dict[str, Image]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All scores of a run, and the statistics over patients.

    Args:
        settings: versions, model and task, as JSON.
        window: of the task.
        scores: one for each slice, method and region that is not empty.
        examples: one slice each of the first patients, drawn by lot.
        spectra: region, method and patient to the summed power spectrum of all slices.
        failures: patient and kind to the worst place.
    """

    settings: dict[str, Any]
    window: Window
    scores: list[Score] = field(default_factory=list)
    examples: dict[str, Example] = field(default_factory=dict)
    spectra: dict[tuple[str, str, str], Spectrum] = field(default_factory=dict)
    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)

    def add(
        self,
        truth: Truth,
        method: str,
        hu: Image,
        known: dict[str, float],
        deviation_hu: Image | None = None,
    ) -> None:
        """Score an image on a slice.

        Args:
            truth: of the slice.
            method: whose output; ``REFERENCE``: the truth itself.
            hu: ``(y, x)`` in HU.
            known: values of the whole slice that are known already.
            deviation_hu: ``(y, x)`` that the method gave with it, if any.
        """
        spectra = truth.spectra(hu)
        if method == REFERENCE:
            self.scores.extend(truth.reference_scores(method, spectra))
        else:
            self.scores.extend(truth.scores(method, hu, spectra, known, deviation_hu))
        for region, found in spectra.items():
            key = (region, method, truth.pair["patient"])
            self.spectra[key] = self.spectra[key] + found if key in self.spectra else found

    @property
    def methods(self) -> list[str]:
        """Names of the methods, the first that was added first, without the reference."""
        found = dict.fromkeys(score.method for score in self.scores)
        return [name for name in found if name != REFERENCE]

    @property
    def ours(self) -> str:
        """The first method, with which the others are compared."""
        return self.methods[0]

    @property
    def regions(self) -> list[str]:
        """Regions that were found, in the order of the scores."""
        return list(dict.fromkeys(score.region for score in self.scores))

    @property
    def slices(self) -> dict[str, int]:
        """Patient to number of slices."""
        counted: dict[str, int] = {}
        ours = self.ours
        for score in self.scores:
            if (score.method, score.region) == (ours, WHOLE):
                counted[score.patient] = counted.get(score.patient, 0) + 1
        return counted

    def patient_means(self, metric: str, method: str, region: str = WHOLE) -> dict[str, float]:
        """Patient to mean over the patient's slices; patients without a value are absent.

        Slices weigh alike; in tissues and flat patches they weigh by their pixels there.
        """
        values: dict[str, list[tuple[float, int]]] = {}
        for score in self.scores:
            if (score.method, score.region) == (method, region) and metric in score.values:
                weight = score.num_pixels if region in BY_PIXELS else 1
                values.setdefault(score.patient, []).append((score.values[metric], weight))
        return {
            patient: sum(value * weight for value, weight in found) / sum(w for _, w in found)
            for patient, found in values.items()
        }

    def share(self, method: str, region: str) -> float:
        """Share of all pixels that lie in a region, 0 if the method has none there."""
        counted = {
            name: sum(
                score.num_pixels
                for score in self.scores
                if (score.method, score.region) == (method, name)
                and calibration.ERROR in score.values
            )
            for name in (region, WHOLE)
        }
        return counted[region] / counted[WHOLE] if counted[WHOLE] else 0.0

    def mean(self, metric: str, method: str, region: str = WHOLE) -> Interval | None:
        """Mean over patients with its interval; None if nothing was measured."""
        means = self.patient_means(metric, method, region)
        return interval(list(means.values())) if means else None

    def difference(
        self, metric: str, other: str, region: str = WHOLE, *, ours: str | None = None
    ) -> Interval | None:
        """Mean over patients of a method minus another, patient by patient, with its interval.

        Args:
            metric: which.
            other: name of the method that is subtracted.
            region: which.
            ours: name of the method that it is subtracted from; None: the first.
        """
        mine = self.patient_means(metric, ours or self.ours, region)
        theirs = self.patient_means(metric, other, region)
        # equal first: two perfect scores, infinite dB both, do not differ
        values = [0.0 if mine[p] == theirs[p] else mine[p] - theirs[p] for p in mine if p in theirs]
        return interval(values) if values else None

    def patient_ratios(self, metric: str, method: str, region: str = WHOLE) -> dict[str, float]:
        """Patient to a method's mean over the truth's own; patients without both are absent."""
        theirs = self.patient_means(metric, method, region)
        truths = self.patient_means(metric, REFERENCE, region)
        return {p: theirs[p] / truths[p] for p in theirs if truths.get(p)}

    def ratio(self, metric: str, method: str, region: str = WHOLE) -> Interval | None:
        """Geometric mean over patients of a method's value over the truth's own, with its interval.

        Geometric, because twice and half as much are equally far from the truth.
        """
        ratios = self.patient_ratios(metric, method, region).values()
        if not ratios:
            return None
        found = interval([math.log(ratio) if ratio > 0 else -math.inf for ratio in ratios])
        low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
        return replace(found, mean=math.exp(found.mean), low=low, high=high)
