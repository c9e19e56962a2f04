"""Study: what each stage loses, in one call."""

from pathlib import Path
from typing import Unpack

from medqdm.evaluate.evaluation import Evaluation
from studies.common import Study, StudyOptions, TrackPairs
from studies.error_decomposition import budget, budget_report


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
    study = Study(data, out, budget_report.NAME, options)
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
