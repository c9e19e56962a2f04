"""Run: methods on pairs of known slices, scored on every region, and the means over patients."""

import math
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqdm.config import Task
from medqdm.data import (
    Pair,
    find_patients,
    is_prepared,
    iterate_pairs,
    load_prepared,
    load_slices,
    read_manifest,
)
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate import calibration, failures
from medqdm.evaluate.failures import Failure
from medqdm.evaluate.intervals import Interval, interval
from medqdm.evaluate.methods import BASELINES, Interpolation, Method, Model, enhance_one
from medqdm.evaluate.regions import RoiFolder
from medqdm.evaluate.texture import Spectrum
from medqdm.evaluate.tissue import INSIDE, SHOWN
from medqdm.evaluate.truth import FLAT, WHOLE, Score, Truth, perceptual_distance
from medqdm.metrics import TISSUES
from medqdm.models.perceptual import PerceptualDistance
from medqdm.version import __version__
from medqdm.window import Window

Image = NDArray[np.float32]
REFERENCE = "reference"  # the truth itself, where it is not perfect by definition
# regions that differ so in size that slices weigh by it
BY_PIXELS = (*TISSUES, *INSIDE, *SHOWN, *calibration.STATED, FLAT)
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
    "seam_pixel",
    "seam_cell",
    "seam_window",
    "seam_tile",
    *calibration.MEASURED,
)
_LIBRARIES = ("torch", "monai", "numpy", "scipy", "scikit-image", "pillow")
_EXAMPLE_SEED = 0


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


def open_pairs(
    task: Task, data: Path, *, limit: int | None = None, seed: int = 0
) -> tuple[Iterator[Pair], int]:
    """The pairs of a folder of volumes or of a prepared set, and how many there will be.

    Args:
        task: sizes, window and, for volumes, ``test_degradation``.
        data: folder of volumes or one that ``prepare`` wrote.
        limit: slices at the most, spread evenly; None: all.
        seed: of the degradations of volumes; a prepared set has its own.

    Raises:
        MedQDMError: no volumes there, or a set for another kind of task.
    """
    if is_prepared(data):
        count = len(read_manifest(data, task)["slices"])
        kept = min(count, limit or count)
        chosen = {int((k + 0.5) * count / kept) for k in range(kept)}
        return (pair for k, pair in enumerate(load_prepared(data, task)) if k in chosen), kept
    count = sum(len(load_slices(patient, task.slice_px).hu) for patient in find_patients(data))
    return iterate_pairs(task, data, limit=limit, seed=seed), min(count, limit or count)


def evaluate(
    enhancer: Enhancer,
    pairs: Iterable[Pair],
    *,
    others: Sequence[Method] = (),
    rois: RoiFolder | None = None,
    lpips: PerceptualDistance | None = None,
    num_examples: int = 3,
) -> Evaluation:
    """Score medqdm, bicubic, Lanczos and any other methods on pairs of LR and HR slices.

    PSNR, SSIM and LPIPS look at the window; HU errors at the values as they are.

    Args:
        enhancer: the loaded model.
        pairs: see ``open_pairs``; wrap them to show progress.
        others: methods to stand beside it, of the same factor.
        rois: masks of the region ``roi``.
        lpips: perceptual distance; it is moved to the enhancer's device.
        num_examples: patients of whom one slice is kept to look at; with any, the worst places of
            all are kept too.

    Raises:
        MedQDMError: no pairs, a pair that does not fit the task's factor, a mask is missing, two
            methods of one name, or an output of another size than the reference.
    """
    task = enhancer.task
    methods = [Model(enhancer), *baselines(task.upscale), *others]
    found = Evaluation(describe(enhancer), task.hu_window)
    if lpips is not None:
        lpips = lpips.to(enhancer.device)
    measure(found, methods, pairs, task, rois=rois, lpips=lpips, num_examples=num_examples)
    return found


def measure(
    found: Evaluation,
    methods: Sequence[Method],
    pairs: Iterable[Pair],
    task: Task,
    *,
    rois: RoiFolder | None = None,
    lpips: PerceptualDistance | None = None,
    num_examples: int = 0,
) -> None:
    """Run methods on pairs, all on one pair before the next, and add their scores.

    Args:
        found: where the scores go.
        methods: the first is compared with the others.
        pairs: LR and HR slices.
        task: factor, window and sizes of all methods.
        rois: see ``evaluate``, as for the next two.
        lpips: on the device where it is to run.
        num_examples: the same.

    Raises:
        MedQDMError: see ``evaluate``.
    """
    check_names([method.name for method in methods])
    lot = _Lot(found, num_examples)
    for pair in pairs:
        check_pair(pair, task)
        if not found.scores:
            for method in methods:  # memory and kernels are planned before the clock runs
                enhance_one(method, pair["lr_hu"], pair["slice"])
        roi = rois.mask(pair["patient"], pair["slice"]) if rois is not None else None
        truth = Truth(pair, task, roi)
        outputs, known = _run(methods, truth, lpips)
        for method in methods:
            name = method.name
            found.add(truth, name, outputs[name], known[name], _deviation_hu(method, methods))
        found.add(truth, REFERENCE, pair["hr_hu"], {})
        lot.offer(truth, outputs)
    if not found.scores:
        raise MedQDMError(
            "evaluate: must get one pair of slices or more, got none; give volumes with slices"
        )


def _run(
    methods: Sequence[Method], truth: Truth, lpips: PerceptualDistance | None
) -> tuple[dict[str, Image], dict[str, dict[str, float]]]:
    """What each method makes of a slice, and what is known of it before it is scored."""
    pair = truth.pair
    outputs: dict[str, Image] = {}
    known: dict[str, dict[str, float]] = {}
    for method in methods:
        sr_hu, seconds = enhance_one(method, pair["lr_hu"], pair["slice"])
        check_output(sr_hu, pair, method.name)
        outputs[method.name], known[method.name] = sr_hu, {"seconds": seconds}
        if isinstance(method, Model):
            known[method.name] |= method.known
        if lpips is not None:
            known[method.name]["lpips"] = perceptual_distance(truth, sr_hu, lpips)
    return outputs, known


def _deviation_hu(method: Method, methods: Sequence[Method]) -> Image | None:
    """What is said of an output: by its own draws, or of a best guess by those of the same model.

    The latter is what ``medqdm enhance --uncertainty`` writes beside the guess.
    """
    if not isinstance(method, Model) or method.deviation_hu is not None:
        return getattr(method, "deviation_hu", None)
    same = (m for m in methods if isinstance(m, Model) and m.enhancer.task == method.enhancer.task)
    drawn = (m.deviation_hu for m in same if m.enhancer.sha256 == method.enhancer.sha256)
    return next((found for found in drawn if found is not None), None)


def baselines(factor: int) -> list[Method]:
    """The plain interpolations.

    Args:
        factor: output pixels per input pixel.
    """
    return [Interpolation(name, upsample, factor) for name, upsample in BASELINES.items()]


def check_names(names: Sequence[str]) -> None:
    """Refuse two methods of one name; the truth has one too.

    Args:
        names: of the methods.

    Raises:
        MedQDMError: a name is there twice.
    """
    names = [REFERENCE, *names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MedQDMError(
            f"evaluate: methods must have different names, got {', '.join(twice)} twice; rename one"
        )


def check_output(sr_hu: Image, pair: Pair, name: str) -> None:
    """Refuse an output that cannot be compared with its reference.

    Args:
        sr_hu: the output.
        pair: the slice.
        name: of the method.

    Raises:
        MedQDMError: another shape, or values that are not finite.
    """
    if sr_hu.shape != pair["hr_hu"].shape or not np.isfinite(sr_hu).all():
        raise MedQDMError(
            f"{name}: must give finite slices of {' x '.join(map(str, pair['hr_hu'].shape))} "
            f"pixels, got {' x '.join(map(str, sr_hu.shape))}"
            f"{'' if np.isfinite(sr_hu).all() else ' with NaN or infinity'}; "
            "compare methods of one factor"
        )


class _Lot:
    """Keeps what is to be looked at: slices of the first patients, and the worst places of all.

    One slice of a patient is drawn by lot, all of a patient's are equally likely.
    """

    def __init__(self, found: Evaluation, num_patients: int) -> None:
        self._found = found
        self._num_patients = num_patients
        self._seen: dict[str, int] = {}
        self._random = np.random.default_rng(_EXAMPLE_SEED)

    def offer(self, truth: Truth, outputs: dict[str, Image]) -> None:
        """Keep the k-th slice of a patient, instead of the one before, with chance 1 / k."""
        pair = truth.pair
        patient = pair["patient"]
        if self._num_patients and failures.BASELINE in outputs:
            worst = failures.find(pair, outputs, truth.body)
            failures.keep_worst(self._found.failures, worst)
        if patient not in self._seen and len(self._seen) >= self._num_patients:
            return
        self._seen[patient] = self._seen.get(patient, 0) + 1
        if self._random.random() < 1 / self._seen[patient]:
            self._found.examples[patient] = Example(pair["lr_hu"], pair["hr_hu"], outputs)


def check_pair(pair: Pair, task: Task) -> None:
    """Refuse a pair that does not fit a task's factor.

    Args:
        pair: the slice.
        task: whose.

    Raises:
        MedQDMError: the reference is not ``upscale`` times as large.
    """
    height, width = pair["lr_hu"].shape
    expected = (height * task.upscale, width * task.upscale)
    if pair["hr_hu"].shape != expected:
        raise MedQDMError(
            f"evaluate: the reference must be {expected[0]} x {expected[1]} pixels for upscale "
            f"{task.upscale}, got {' x '.join(map(str, pair['hr_hu'].shape))}; "
            "use pairs and weights of one task"
        )


def describe(enhancer: Enhancer) -> dict[str, Any]:
    """Versions, model and settings of an evaluation; no paths."""
    return {
        "medqdm": __version__,
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "device": str(enhancer.device),
        "precision": enhancer.precision,
        "seed": enhancer.seed,
        "weights_sha256": enhancer.sha256,
        "threshold_hu": enhancer.task.threshold_hu,
        "task": enhancer.task.model_dump(mode="json", exclude={"training"}),
    }
