"""Run: enhance pairs of known slices and score every method on every region."""

import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medqdm import metrics
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
from medqdm.evaluate.intervals import Interval, interval
from medqdm.evaluate.methods import BASELINES
from medqdm.evaluate.regions import RoiFolder, body_mask
from medqdm.models.perceptual import PerceptualDistance
from medqdm.version import __version__
from medqdm.window import Window

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
OURS = "medqdm"
REFERENCE = "reference"  # scored by its LR consistency alone: what the truth itself reaches
METHODS = (OURS, *BASELINES)
WHOLE = "whole"
METRICS = (
    "psnr_db",
    "ssim",
    "mae_hu",
    "bias_hu",
    "lr_consistency_hu",
    "lpips",
    "share_refined",
    "seconds",
)
_LIBRARIES = ("torch", "monai", "numpy", "scipy", "scikit-image", "pillow")
_EXAMPLE_SEED = 0


@dataclass(frozen=True)
class Score:
    """How one method did on one region of one slice.

    Args:
        patient: folder or file name of the patient.
        slice: number of the slice among the patient's, from 0.
        method: one of ``METHODS``, or ``REFERENCE``.
        region: ``whole``, ``body`` or ``roi``.
        num_pixels: HR pixels of the region.
        values: metric to value; what makes no sense for the method or region is absent.
    """

    patient: str
    slice: int
    method: str
    region: str
    num_pixels: int
    values: dict[str, float]


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
    """

    settings: dict[str, Any]
    window: Window
    scores: list[Score] = field(default_factory=list)
    examples: dict[str, Example] = field(default_factory=dict)

    @property
    def regions(self) -> list[str]:
        """Regions that were found, in the order of the scores."""
        return list(dict.fromkeys(score.region for score in self.scores))

    @property
    def slices(self) -> dict[str, int]:
        """Patient to number of slices."""
        counted: dict[str, int] = {}
        for score in self.scores:
            if (score.method, score.region) == (OURS, WHOLE):
                counted[score.patient] = counted.get(score.patient, 0) + 1
        return counted

    def patient_means(self, metric: str, method: str, region: str = WHOLE) -> dict[str, float]:
        """Patient to mean over the patient's slices; patients without a value are absent."""
        values: dict[str, list[float]] = {}
        for score in self.scores:
            if (score.method, score.region) == (method, region) and metric in score.values:
                values.setdefault(score.patient, []).append(score.values[metric])
        return {patient: sum(found) / len(found) for patient, found in values.items()}

    def mean(self, metric: str, method: str, region: str = WHOLE) -> Interval | None:
        """Mean over patients with its interval; None if nothing was measured."""
        means = self.patient_means(metric, method, region)
        return interval(list(means.values())) if means else None

    def difference(self, metric: str, baseline: str, region: str = WHOLE) -> Interval | None:
        """Mean over patients of medqdm minus a baseline, patient by patient, with its interval."""
        ours = self.patient_means(metric, OURS, region)
        theirs = self.patient_means(metric, baseline, region)
        # equal first: two perfect scores, infinite dB both, do not differ
        values = [0.0 if ours[p] == theirs[p] else ours[p] - theirs[p] for p in ours if p in theirs]
        return interval(values) if values else None


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
    rois: RoiFolder | None = None,
    lpips: PerceptualDistance | None = None,
    num_examples: int = 3,
) -> Evaluation:
    """Score medqdm, bicubic and Lanczos interpolation on pairs of LR and HR slices.

    PSNR, SSIM and LPIPS look at the window; HU errors at the values as they are.

    Args:
        enhancer: the loaded model.
        pairs: see ``open_pairs``; wrap them to show progress.
        rois: masks of the region ``roi``.
        lpips: perceptual distance; it is moved to the enhancer's device.
        num_examples: patients of whom one slice is kept to look at.

    Raises:
        MedQDMError: no pairs, a pair that does not fit the task's factor, or a mask is missing.
    """
    task = enhancer.task
    found = Evaluation(describe(enhancer), task.hu_window)
    lot = _Lot(found.examples, num_examples)
    if lpips is not None:
        lpips = lpips.to(enhancer.device)
    for pair in pairs:
        _check(pair, task)
        done = enhancer.enhance_slice(pair["lr_hu"], pair["slice"])
        outputs = {OURS: done.hu}
        outputs |= {name: up(pair["lr_hu"], task.upscale) for name, up in BASELINES.items()}
        regions = _regions(pair, task.hu_window, rois)
        for method, sr_hu in outputs.items():
            whole = _whole_slice_values(sr_hu, pair, task.hu_window, lpips)
            if method == OURS:
                whole |= {"share_refined": float(done.refined.mean()), "seconds": done.seconds}
            found.scores.extend(_score_regions(method, sr_hu, pair, task.hu_window, regions, whole))
        found.scores.append(_score_reference(pair))
        lot.offer(pair, outputs)
    if not found.scores:
        raise MedQDMError(
            "evaluate: must get one pair of slices or more, got none; give volumes with slices"
        )
    return found


class _Lot:
    """Draws one slice of each of the first patients, all of a patient's equally likely."""

    def __init__(self, examples: dict[str, Example], num_patients: int) -> None:
        self._examples = examples
        self._num_patients = num_patients
        self._seen: dict[str, int] = {}
        self._random = np.random.default_rng(_EXAMPLE_SEED)

    def offer(self, pair: Pair, outputs: dict[str, Image]) -> None:
        """Keep the k-th slice of a patient, instead of the one before, with chance 1 / k."""
        patient = pair["patient"]
        if patient not in self._seen and len(self._seen) >= self._num_patients:
            return
        self._seen[patient] = self._seen.get(patient, 0) + 1
        if self._random.random() < 1 / self._seen[patient]:
            self._examples[patient] = Example(pair["lr_hu"], pair["hr_hu"], outputs)


def _check(pair: Pair, task: Task) -> None:
    height, width = pair["lr_hu"].shape
    expected = (height * task.upscale, width * task.upscale)
    if pair["hr_hu"].shape != expected:
        raise MedQDMError(
            f"evaluate: the reference must be {expected[0]} x {expected[1]} pixels for upscale "
            f"{task.upscale}, got {' x '.join(map(str, pair['hr_hu'].shape))}; "
            "use pairs and weights of one task"
        )


def _whole_slice_values(
    sr_hu: Image, pair: Pair, window: Window, lpips: PerceptualDistance | None
) -> dict[str, float]:
    """What makes no sense on a part of a slice."""
    values = {"lr_consistency_hu": metrics.lr_consistency_hu(sr_hu, pair["lr_hu"])}
    if lpips is not None:
        sr, hr = (
            torch.from_numpy(np.asarray(window.normalize(hu), dtype=np.float32))[None, None]
            for hu in (sr_hu, pair["hr_hu"])
        )
        device = lpips.shift.device
        with torch.no_grad():
            values["lpips"] = float(lpips(sr.to(device), hr.to(device)))
    return values


def _regions(pair: Pair, window: Window, rois: RoiFolder | None) -> dict[str, Mask | None]:
    regions: dict[str, Mask | None] = {WHOLE: None, "body": body_mask(pair["hr_hu"], window)}
    if rois is not None:
        regions["roi"] = rois.mask(pair["patient"], pair["slice"])
    return regions


def _score_reference(pair: Pair) -> Score:
    consistency = metrics.lr_consistency_hu(pair["hr_hu"], pair["lr_hu"])
    return Score(
        patient=pair["patient"],
        slice=pair["slice"],
        method=REFERENCE,
        region=WHOLE,
        num_pixels=pair["hr_hu"].size,
        values={"lr_consistency_hu": consistency},
    )


def _score_regions(
    method: str,
    sr_hu: Image,
    pair: Pair,
    window: Window,
    regions: dict[str, Mask | None],
    whole: dict[str, float],
) -> Iterator[Score]:
    hr_hu = pair["hr_hu"]
    similarity = metrics.ssim_map(sr_hu, hr_hu, window)
    for region, mask in regions.items():
        num_pixels = hr_hu.size if mask is None else int(mask.sum())
        if num_pixels == 0:
            continue
        values = {
            "psnr_db": metrics.psnr_db(sr_hu, hr_hu, window, mask),
            "ssim": float((similarity if mask is None else similarity[mask]).mean()),
            "mae_hu": metrics.mae_hu(sr_hu, hr_hu, mask),
            "bias_hu": metrics.bias_hu(sr_hu, hr_hu, mask),
            **(whole if region == WHOLE else {}),
        }
        yield Score(pair["patient"], pair["slice"], method, region, num_pixels, values)


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
