"""Study: the quadtree's threshold, in one call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from medqdm.evaluate.evaluation import Evaluation
from medqdm.evaluate.methods import BASELINES, Interpolation
from medqdm.evaluate.run import describe, measure
from studies.common import Study, StudyOptions, TrackPairs
from studies.thresholds import sweep
from studies.thresholds.sweep import CountedModel, row_name


def study_thresholds(
    data: str | Path,
    out: str | Path,
    *,
    thresholds: Sequence[float] = sweep.DEFAULT_THRESHOLDS,
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
    study = Study(data, out, sweep.NAME, options)
    enhancers = study.at_thresholds(thresholds)
    (default, enhancer), *_ = enhancers.items()
    task = enhancer.task
    pairs, total = study.pairs(task)
    found = Evaluation(describe(enhancer), task.hu_window)
    methods = [CountedModel(enhancer) for enhancer in enhancers.values()]
    plain = [Interpolation(name, up, task.upscale) for name, up in BASELINES.items()]
    measure(found, [*methods, *plain], track(pairs, total), task)
    names = {row_name(s): s for s in sorted({*thresholds, default})}
    sweep.write_thresholds(found, names, study.out, **study.writing(task))
    return found
