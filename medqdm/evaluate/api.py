"""Whole evaluations in one call each, as ``medqdm evaluate`` runs them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from medqdm.config import DEGRADATIONS, override
from medqdm.data import Pair, is_prepared
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate import report
from medqdm.evaluate.against import describe_against, open_against
from medqdm.evaluate.blocks import open_blocks
from medqdm.evaluate.document import marker, write_texts
from medqdm.evaluate.evaluation import Evaluation
from medqdm.evaluate.methods import Model
from medqdm.evaluate.regions import RoiFolder
from medqdm.evaluate.report import write_report
from medqdm.evaluate.rows import Row, parse_rows
from medqdm.evaluate.run import describe_data, evaluate, open_pairs
from medqdm.evaluate.samplers import Comparison, check_row, compare
from medqdm.evaluate.samplers import Track as TrackBlocks
from medqdm.evaluate.samplers_report import MARKER, write_samplers
from medqdm.io.whole import check_folder, whole_folder
from medqdm.loading import ModelOptions, load_enhancer
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
    against: Sequence[str] = (),
    mean: int | None = None,
    degradation: str | None = None,
    settings: Sequence[str] = (),
    overwrite: bool = False,
    track: Track = lambda pairs, _total: pairs,
) -> Evaluation:
    """Measure a model beside bicubic and Lanczos, and write the report.

    Args:
        data: folder of volumes, or a set made by ``prepare``.
        out: folder for ``results.md``, ``results.json`` and pictures.
        task: whose bundled weights to take; sr4 if neither task nor weights are given.
        weights: a weights file instead; with a task, it must be of the task's factor.
        device: see ``choose_device``.
        seed: of the noise and of the degradations.
        limit: slices at the most, spread over the patients.
        roi: folder of masks, one file per patient.
        use_lpips: LPIPS too; needs its weights.
        against: other weights, rivals' or not, to stand beside it, see ``parse_against``.
        mean: draws of each slice, whose mean is one more row.
        degradation: name of a preset instead of the task's ``test_degradation``.
        settings: ``key=value`` changes to the task that the weights carry.
        overwrite: replace an output folder that has files in it.
        track: wraps the pairs as they come, with their number, to show progress.

    Raises:
        MedQDMError: anything about data, weights, settings or output that the user can put right.
    """
    data, out = Path(data), Path(out)
    check_folder(out, overwrite=overwrite, marker="results.json")
    lpips = load_perceptual() if use_lpips else None
    model = ModelOptions(
        task=task,
        weights=weights,
        device=device,
        seed=seed,
        settings=[*settings, *degraded_by(degradation, data)],
    )
    enhancer = load_enhancer(**model)
    rois = RoiFolder(Path(roi), data, enhancer.task.slice_px) if roi else None
    others = open_against(against, enhancer.task, device=device, seed=seed)
    means = []
    if mean is not None:
        model["mean"] = mean
        means.append(Model(load_enhancer(**model), f"mean of {mean}"))
    pairs, total = open_pairs(enhancer.task, data, limit=limit, seed=seed)
    found = evaluate(
        enhancer, track(pairs, total), others=[*means, *others], rois=rois, lpips=lpips
    )
    about = {
        **describe_data(enhancer.task, data, limit=limit, seed=seed),
        **describe_against(others),
    }
    write_report(found, out, about=about, overwrite=overwrite)
    return found


def evaluate_degradations(
    data: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    announce: Callable[[str], None] = lambda _text: None,
    **options: Any,
) -> dict[str, Evaluation]:
    """``evaluate_weights`` under each preset of the degradation, and a table over all of them.

    Args:
        data: folder of volumes.
        out: folder for ``results.md``, ``results.json`` and a report for each preset.
        overwrite: replace an output folder that has files in it.
        announce: told the name of each preset before it begins.
        **options: all others of ``evaluate_weights`` but ``degradation``.

    Returns:
        Name of a preset to what was measured under it.

    Raises:
        MedQDMError: see ``evaluate_weights``.
    """
    out, found = Path(out), {}
    with whole_folder(out, overwrite=overwrite, marker=marker(report.NAME)) as folder:
        for name in DEGRADATIONS:
            announce(name)
            found[name] = evaluate_weights(data, folder / name, degradation=name, **options)
        parts = {name: report.results(one, {}) for name, one in found.items()}
        shown = {k: {"regions": v["regions"]} for k, v in parts.items()}
        text = "\n".join(report.summary_lines(found))
        write_texts(folder, report.NAME, data={"degradations": shown}, text=text)
    return found


def degraded_by(name: str | None, data: Path) -> list[str]:
    """The settings that put a preset in the place of the task's ``test_degradation``.

    Args:
        name: of the preset; None: the task's own.
        data: folder of volumes.

    Raises:
        MedQDMError: a prepared set, whose degradation is done.
    """
    if name is None:
        return []
    if is_prepared(data):
        raise MedQDMError(
            f"{data}: must be a folder of volumes for --degradation {name}, got a prepared set, "
            "which is degraded already; give the volumes that it was made from"
        )
    return [f"test_degradation={name}"]


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
        settings: ``key=value`` changes to the task of every row, before the row's own; draws have
            no spread unless asked for.
        overwrite: replace an output folder that has files in it.
        announce: told each row's name before it begins.
        track: wraps the patients of a row as they come, with their number, to show progress.

    Raises:
        MedQDMError: anything about data, weights, rows or output that the user can put right.
    """
    data, out = Path(data), Path(out)
    check_folder(out, overwrite=overwrite, marker=MARKER)
    # policies are compared as estimators; texture would be most of what they differ by
    settings = ["diffusion.spread=false", *settings]

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
    about = describe_data(plain, data, limit=limit, seed=seed)
    write_samplers(found, out, about=about, overwrite=overwrite)
    return found
