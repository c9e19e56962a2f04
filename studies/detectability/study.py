"""Study: low-contrast lesions, in one call."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Unpack

from medqdm.config import override
from medqdm.data import find_patients, is_prepared
from medqdm.errors import MedQDMError
from medqdm.evaluate.methods import BASELINES, Interpolation, Model
from medqdm.evaluate.run import describe
from studies.baselines.against import open_against
from studies.common import Study, StudyOptions
from studies.detectability import lesions, lesions_report
from studies.detectability.lesions import Case, Lesions
from studies.thresholds import sweep
from studies.thresholds.sweep import row_name

TrackCases = Callable[[Iterable[Case], int], Iterable[Case]]


def study_lesions(
    data: str | Path,
    out: str | Path,
    *,
    thresholds: Sequence[float] = sweep.DEFAULT_THRESHOLDS,
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
    study = Study(data, out, lesions_report.NAME, options)
    if is_prepared(study.data):
        raise MedQDMError(
            f"{study.data}: must be a folder of volumes for lesions, got a prepared set, which "
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
