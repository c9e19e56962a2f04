"""Whole evaluations in one call each, as ``medqdm evaluate`` runs them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from medqdm.config import override
from medqdm.data import Pair
from medqdm.enhancer import Enhancer
from medqdm.evaluate.blocks import open_blocks
from medqdm.evaluate.regions import RoiFolder
from medqdm.evaluate.report import write_report
from medqdm.evaluate.rows import Row, parse_rows
from medqdm.evaluate.run import Evaluation, evaluate, open_pairs
from medqdm.evaluate.samplers import Comparison, check_row, compare
from medqdm.evaluate.samplers import Track as TrackBlocks
from medqdm.evaluate.samplers_report import MARKER, write_samplers
from medqdm.io.whole import check_folder
from medqdm.loading import load_enhancer
from medqdm.models.perceptual import load_perceptual

Track = Callable[[Iterable[Pair], int], Iterable[Pair]]


def evaluate_weights(  # noqa: PLR0913  (all by keyword but two)
    data: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    limit: int | None = None,
    roi: str | Path | None = None,
    use_lpips: bool = False,
    settings: Sequence[str] = (),
    overwrite: bool = False,
    track: Track = lambda pairs, _total: pairs,
) -> Evaluation:
    """Measure a model beside bicubic and Lanczos, and write the report.

    Args:
        data: folder of volumes, or a set made by ``prepare``.
        out: folder for ``results.md``, ``results.json`` and ``pictures.png``.
        task: whose bundled weights to take; sr4 if neither task nor weights are given.
        weights: a weights file instead; with a task, it must be of the task's factor.
        device: see ``choose_device``.
        seed: of the noise and of the degradations.
        limit: slices at the most, spread over the patients.
        roi: folder of masks, one file per patient.
        use_lpips: LPIPS too; needs its weights.
        settings: ``key=value`` changes to the task that the weights carry.
        overwrite: replace an output folder that has files in it.
        track: wraps the pairs as they come, with their number, to show progress.

    Raises:
        MedQDMError: anything about data, weights, settings or output that the user can put right.
    """
    data, out = Path(data), Path(out)
    check_folder(out, overwrite=overwrite, marker="results.json")
    lpips = load_perceptual() if use_lpips else None
    enhancer = load_enhancer(
        task=task, weights=weights, device=device, seed=seed, settings=settings
    )
    rois = RoiFolder(Path(roi), data, enhancer.task.slice_px) if roi else None
    pairs, total = open_pairs(enhancer.task, data, limit=limit, seed=seed)
    found = evaluate(enhancer, track(pairs, total), rois=rois, lpips=lpips)
    about = {
        "degradation": enhancer.task.test_degradation.model_dump(mode="json"),
        "seed": seed,
        "limit": limit,
    }
    write_report(found, out, about=about, overwrite=overwrite)
    return found


def compare_samplers(  # noqa: PLR0913  (all by keyword but two)
    data: str | Path,
    out: str | Path,
    *,
    samplers: Sequence[str] = ("default",),
    students: Sequence[Path] = (),
    task: str | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    limit: int | None = None,
    settings: Sequence[str] = (),
    overwrite: bool = False,
    announce: Callable[[str], None] = lambda _text: None,
    track: TrackBlocks = lambda blocks, _total: blocks,
) -> Comparison:
    """Measure settings of the sampler side by side, and write the report.

    Args:
        data: folder of volumes.
        out: folder for ``samplers.md``, ``samplers.json`` and ``samplers.png``.
        samplers: rows of the table, see ``parse_rows``.
        students: weights of distilled models.
        task: whose bundled weights to take; sr4 if neither task nor weights are given.
        weights: a weights file instead; with a task, it must be of the task's factor.
        device: see ``choose_device``.
        seed: of the noise and of the degradations.
        limit: slices at the most, evenly over the patients; None: 16 a patient.
        settings: ``key=value`` changes to the task of every row, before the row's own.
        overwrite: replace an output folder that has files in it.
        announce: told each row's name before it begins.
        track: wraps the patients of a row as they come, with their number, to show progress.

    Raises:
        MedQDMError: anything about data, weights, rows or output that the user can put right.
    """
    data, out = Path(data), Path(out)
    check_folder(out, overwrite=overwrite, marker=MARKER)

    def open_row(row: Row) -> Enhancer:
        return load_enhancer(
            task=None if row.weights else task,
            weights=row.weights or weights,
            device=device,
            seed=seed,
            settings=[*settings, *row.settings],
        )

    plain = load_enhancer(
        task=task, weights=weights, device=device, seed=seed, settings=settings
    ).task
    rows = parse_rows(samplers, plain.diffusion.num_steps, students)
    for row in rows:
        own = open_row(row).task if row.weights else override(plain, row.settings)
        check_row(row, own, plain)
    blocks = open_blocks(plain, data, limit=limit, seed=seed)
    found = compare(open_row, rows, blocks, announce=announce, track=track)
    about = {
        "degradation": plain.test_degradation.model_dump(mode="json"),
        "seed": seed,
        "limit": limit,
    }
    write_samplers(found, out, about=about, overwrite=overwrite)
    return found
