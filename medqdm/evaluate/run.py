"""Run: methods on pairs of known slices, all on one pair before the next, scored as they come."""

import platform
from collections.abc import Iterable, Iterator, Sequence
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
from medqdm.evaluate import failures
from medqdm.evaluate.evaluation import REFERENCE, Evaluation, Example
from medqdm.evaluate.methods import BASELINES, Interpolation, Method, Model, enhance_one
from medqdm.evaluate.regions import RoiFolder
from medqdm.evaluate.truth import Truth, perceptual_distance
from medqdm.models.perceptual import PerceptualDistance
from medqdm.version import __version__

Image = NDArray[np.float32]
_LIBRARIES = ("torch", "monai", "numpy", "scipy", "scikit-image", "pillow")
_EXAMPLE_SEED = 0


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


def describe_data(task: Task, data: Path, *, limit: int | None, seed: int) -> dict[str, Any]:
    """How the pairs of ``open_pairs`` were degraded, for reports; same arguments."""
    about = {"seed": seed, "limit": limit}
    if is_prepared(data):
        manifest = read_manifest(data, task)
        own = {"degradation": manifest["degradation"], "degradation_seed": manifest["seed"]}
        return own | about
    return {"degradation": task.test_degradation.model_dump(mode="json"), **about}


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

    PSNR, SSIM and LPIPS look at the window; HU errors at the output's values; the truth is clipped.

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
