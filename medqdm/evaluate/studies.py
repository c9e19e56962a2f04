"""Studies in one call each: the threshold, low-contrast lesions, the error budget."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

from medqdm.config import Task
from medqdm.data import Pair, find_patients, is_prepared
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate import budget, knob, lesions, lesions_report
from medqdm.evaluate.against import open_against
from medqdm.evaluate.api import degraded_by
from medqdm.evaluate.document import marker
from medqdm.evaluate.knob import CountedModel, row_name
from medqdm.evaluate.lesions import Case, Lesions
from medqdm.evaluate.methods import BASELINES, Interpolation, Model
from medqdm.evaluate.run import Evaluation, describe, measure, open_pairs
from medqdm.io.whole import check_folder
from medqdm.loading import ModelOptions, load_enhancer

TrackPairs = Callable[[Iterable[Pair], int], Iterable[Pair]]
TrackCases = Callable[[Iterable[Case], int], Iterable[Case]]


def study_thresholds(
    data: str | Path,
    out: str | Path,
    *,
    thresholds: Sequence[float] = knob.DEFAULT_THRESHOLDS,
    degradation: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    track: TrackPairs = lambda pairs, _total: pairs,
    **model: Unpack[ModelOptions],
) -> Evaluation:
    """What the quadtree's threshold s saves and costs; the table's first row is the default's.

    Args:
        data: folder of volumes, or a set made by ``prepare``.
        out: folder for ``thresholds.md``, ``thresholds.json`` and ``thresholds.png``.
        thresholds: values of s; the default's is added.
        degradation: name of a preset instead of the task's ``test_degradation``.
        limit: slices at the most, spread over the patients.
        overwrite: replace an output folder that has files in it.
        track: wraps the pairs as they come, with their number, to show progress.
        **model: see ``ModelOptions``.

    Raises:
        MedQDMError: anything about data, weights, settings or output that the user can put right.
    """
    data, out = Path(data), Path(out)
    check_folder(out, overwrite=overwrite, marker=marker(knob.NAME))
    enhancers = _at_thresholds(thresholds, degraded_by(degradation, data), model)
    (default, enhancer), *_ = enhancers.items()
    task = enhancer.task
    pairs, total = open_pairs(task, data, limit=limit, seed=model.get("seed", 0))
    found = Evaluation(describe(enhancer), task.hu_window)
    methods = [CountedModel(enhancer) for enhancer in enhancers.values()]
    plain = [Interpolation(name, up, task.upscale) for name, up in BASELINES.items()]
    measure(found, [*methods, *plain], track(pairs, total), task)
    knob.write_thresholds(
        found,
        {row_name(s): s for s in sorted({*thresholds, default})},
        out,
        about=_about(task, model, limit),
        overwrite=overwrite,
    )
    return found


def study_lesions(
    data: str | Path,
    out: str | Path,
    *,
    thresholds: Sequence[float] = knob.DEFAULT_THRESHOLDS,
    against: Sequence[str] = (),
    degradation: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    track: TrackCases = lambda cases, _total: cases,
    **model: Unpack[ModelOptions],
) -> Lesions:
    """Whether low-contrast discs that bicubic shows come back at each threshold.

    Args:
        data: folder of volumes.
        out: folder for ``lesions.md``, ``lesions.json`` and pictures.
        thresholds: values of s; the default's is added.
        against: other weights to stand beside it, see ``parse_against``.
        degradation: name of a preset instead of the task's ``test_degradation``.
        limit: slices to look at, at the most, spread over the patients.
        overwrite: replace an output folder that has files in it.
        track: wraps the slices as they come, with their number, to show progress.
        **model: see ``ModelOptions``.

    Raises:
        MedQDMError: anything about data, weights, settings or output that the user can put right.
    """
    data, out = Path(data), Path(out)
    check_folder(out, overwrite=overwrite, marker=marker(lesions_report.NAME))
    if is_prepared(data):
        raise MedQDMError(
            f"{data}: must be a folder of volumes for --lesions, got a prepared set, which is "
            "degraded already; give the volumes that it was made from"
        )
    enhancers = _at_thresholds(thresholds, degraded_by(degradation, data), model)
    (default, enhancer), *_ = enhancers.items()
    task, seed = enhancer.task, model.get("seed", 0)
    others = open_against(against, task, device=model.get("device", "auto"), seed=seed)
    models = [Model(enhancers[s], row_name(s)) for s in sorted(enhancers)]
    bicubic = Interpolation(lesions.BICUBIC, BASELINES[lesions.BICUBIC], task.upscale)
    cases, total = lesions.open_cases(task, find_patients(data), limit=limit, seed=seed)
    found = lesions.measure_lesions(
        [bicubic, *models, *others],
        track(cases, total),
        settings=describe(enhancer),
        default=row_name(default),
    )
    lesions_report.write_lesions(found, out, about=_about(task, model, limit), overwrite=overwrite)
    return found


def study_budget(
    data: str | Path,
    out: str | Path,
    *,
    degradation: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    track: TrackPairs = lambda pairs, _total: pairs,
    **model: Unpack[ModelOptions],
) -> Evaluation:
    """How many decibels each stage loses.

    Args:
        data: folder of volumes, or a set made by ``prepare``.
        out: folder for ``budget.md`` and ``budget.json``.
        degradation: name of a preset instead of the task's ``test_degradation``.
        limit: slices at the most, spread over the patients.
        overwrite: replace an output folder that has files in it.
        track: wraps the pairs as they come, with their number, to show progress.
        **model: see ``ModelOptions``.

    Raises:
        MedQDMError: anything about data, weights, settings or output that the user can put right.
    """
    data, out = Path(data), Path(out)
    check_folder(out, overwrite=overwrite, marker=marker(budget.NAME))
    enhancer = _opened(model, degraded_by(degradation, data))
    pairs, total = open_pairs(enhancer.task, data, limit=limit, seed=model.get("seed", 0))
    found = budget.measure_budget(enhancer, track(pairs, total))
    budget.write_budget(found, out, about=_about(enhancer.task, model, limit), overwrite=overwrite)
    return found


def _opened(model: ModelOptions, settings: Sequence[str]) -> Enhancer:
    options = model.copy()
    options["settings"] = [*model.get("settings", ()), *settings]
    return load_enhancer(**options)


def _at_thresholds(
    thresholds: Sequence[float], settings: Sequence[str], model: ModelOptions
) -> dict[float, Enhancer]:
    """The model at each threshold, its own first."""
    own = _opened(model, settings)
    found = {own.task.quadtree.threshold: own}
    for s in thresholds:
        if s not in found:
            found[s] = _opened(model, [*settings, f"quadtree.threshold={s}"])
    return found


def _about(task: Task, model: ModelOptions, limit: int | None) -> dict[str, Any]:
    return {
        "degradation": task.test_degradation.model_dump(mode="json"),
        "seed": model.get("seed", 0),
        "limit": limit,
    }
