"""Studies in one call each: the threshold, low-contrast lesions, the error budget."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from medqdm.config import Task, override
from medqdm.data import Pair, find_patients, is_prepared
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate import budget, budget_report, knob, lesions, lesions_report
from medqdm.evaluate.against import open_against
from medqdm.evaluate.api import degraded_by
from medqdm.evaluate.document import marker
from medqdm.evaluate.evaluation import Evaluation
from medqdm.evaluate.knob import CountedModel, row_name
from medqdm.evaluate.lesions import Case, Lesions
from medqdm.evaluate.methods import BASELINES, Interpolation, Model
from medqdm.evaluate.run import describe, describe_data, measure, open_pairs
from medqdm.io.whole import check_folder
from medqdm.loading import ModelOptions, load_enhancer

TrackPairs = Callable[[Iterable[Pair], int], Iterable[Pair]]
TrackCases = Callable[[Iterable[Case], int], Iterable[Case]]


class StudyOptions(ModelOptions, total=False):
    """What every study takes, beside the model.

    Args:
        degradation: name of a preset instead of the task's ``test_degradation``.
        limit: slices at the most, spread over the patients.
        overwrite: replace an output folder that has files in it.
    """

    degradation: str | None
    limit: int | None
    overwrite: bool


def study_thresholds(
    data: str | Path,
    out: str | Path,
    *,
    thresholds: Sequence[float] = knob.DEFAULT_THRESHOLDS,
    track: TrackPairs = lambda pairs, _total: pairs,
    **options: Unpack[StudyOptions],
) -> Evaluation:
    """What the quadtree's threshold s saves and costs; the table's first row is the default's.

    Args:
        data: folder of volumes, or a set made by ``prepare``.
        out: folder for ``thresholds.md``, ``thresholds.json`` and ``thresholds.png``.
        thresholds: values of s; the default's is added.
        track: wraps the pairs as they come, with their number, to show progress.
        **options: see ``StudyOptions``.

    Raises:
        MedQDMError: anything about data, weights, settings or output that the user can put right.
    """
    study = _Study(data, out, knob.NAME, options)
    enhancers = study.at_thresholds(thresholds)
    (default, enhancer), *_ = enhancers.items()
    task = enhancer.task
    pairs, total = study.pairs(task)
    found = Evaluation(describe(enhancer), task.hu_window)
    methods = [CountedModel(enhancer) for enhancer in enhancers.values()]
    plain = [Interpolation(name, up, task.upscale) for name, up in BASELINES.items()]
    measure(found, [*methods, *plain], track(pairs, total), task)
    names = {row_name(s): s for s in sorted({*thresholds, default})}
    knob.write_thresholds(found, names, study.out, **study.writing(task))
    return found


def study_lesions(
    data: str | Path,
    out: str | Path,
    *,
    thresholds: Sequence[float] = knob.DEFAULT_THRESHOLDS,
    against: Sequence[str] = (),
    track: TrackCases = lambda cases, _total: cases,
    **options: Unpack[StudyOptions],
) -> Lesions:
    """Whether low-contrast discs that bicubic shows come back at each threshold.

    Args:
        data: folder of volumes.
        out: folder for ``lesions.md``, ``lesions.json`` and pictures.
        thresholds: values of s; the default's is added.
        against: other weights to stand beside it, see ``parse_against``.
        track: wraps the slices as they come, with their number, to show progress.
        **options: see ``StudyOptions``.

    Raises:
        MedQDMError: anything about data, weights, settings or output that the user can put right.
    """
    study = _Study(data, out, lesions_report.NAME, options)
    if is_prepared(study.data):
        raise MedQDMError(
            f"{study.data}: must be a folder of volumes for --lesions, got a prepared set, which "
            "is degraded already; give the volumes that it was made from"
        )
    enhancers = study.at_thresholds(thresholds)
    (default, enhancer), *_ = enhancers.items()
    task = enhancer.task
    others = open_against(against, task, device=options.get("device", "auto"), seed=study.seed)
    models = [Model(enhancers[s], row_name(s)) for s in sorted(enhancers)]
    bicubic = Interpolation(lesions.BICUBIC, BASELINES[lesions.BICUBIC], task.upscale)
    patients = find_patients(study.data)
    cases, total = lesions.open_cases(task, patients, limit=study.limit, seed=study.seed)
    found = lesions.measure_lesions(
        [bicubic, *models, *others],
        track(cases, total),
        settings=describe(enhancer),
        default=row_name(default),
    )
    used = override(task, lesions.CANCELLING_NOISE)
    lesions_report.write_lesions(found, study.out, **study.writing(used))
    return found


def study_budget(
    data: str | Path,
    out: str | Path,
    *,
    track: TrackPairs = lambda pairs, _total: pairs,
    **options: Unpack[StudyOptions],
) -> Evaluation:
    """How many decibels each stage loses.

    Args:
        data: folder of volumes, or a set made by ``prepare``.
        out: folder for ``budget.md`` and ``budget.json``.
        track: wraps the pairs as they come, with their number, to show progress.
        **options: see ``StudyOptions``.

    Raises:
        MedQDMError: anything about data, weights, settings or output that the user can put right.
    """
    study = _Study(data, out, budget_report.NAME, options)
    enhancer = study.open("diffusion.spread=false")  # stages are compared as estimates
    steps = enhancer.task.diffusion.for_draws.sampling_steps
    drawing = study.open(
        f"diffusion.sampling_steps={'null' if steps is None else steps}", "diffusion.one_step=draw"
    )
    has_spread = drawing.engine.spread_of_draws is not None
    pairs, total = study.pairs(enhancer.task)
    found = budget.measure_budget(
        enhancer, track(pairs, total), drawing=drawing if has_spread else None
    )
    budget_report.write_budget(found, study.out, **study.writing(enhancer.task))
    return found


class _Study:
    """What every study does with its options; refuses a folder that may not be replaced."""

    def __init__(self, data: str | Path, out: str | Path, name: str, options: StudyOptions) -> None:
        self.data, self.out = Path(data), Path(out)
        self.overwrite = options.get("overwrite", False)
        self.limit = options.get("limit")
        self.seed = options.get("seed", 0)
        check_folder(self.out, overwrite=self.overwrite, marker=marker(name))
        preset = degraded_by(options.get("degradation"), self.data)
        own = StudyOptions.__annotations__.keys() - ModelOptions.__annotations__.keys()
        self._model: dict[str, Any] = {k: v for k, v in options.items() if k not in own}
        self._settings = [*options.get("settings", ()), *preset]

    def open(self, *settings: str) -> Enhancer:
        """The model, with further settings."""
        return load_enhancer(**{**self._model, "settings": [*self._settings, *settings]})

    def at_thresholds(self, thresholds: Sequence[float]) -> dict[float, Enhancer]:
        """The model at each threshold, its own first."""
        own = self.open()
        found = {own.task.quadtree.threshold: own}
        for s in thresholds:
            if s not in found:
                found[s] = self.open(f"quadtree.threshold={s}")
        return found

    def pairs(self, task: Task) -> tuple[Iterator[Pair], int]:
        """Its pairs of slices, and their number."""
        return open_pairs(task, self.data, limit=self.limit, seed=self.seed)

    def writing(self, task: Task) -> dict[str, Any]:
        """How its report is written."""
        return {
            "about": describe_data(task, self.data, limit=self.limit, seed=self.seed),
            "overwrite": self.overwrite,
        }
