"""Study: settings of the sampler side by side, in one call."""

from collections.abc import Callable, Sequence
from pathlib import Path

from medqdm.config import override
from medqdm.enhancer import Enhancer
from medqdm.evaluate.run import describe_data
from medqdm.io.whole import check_folder
from medqdm.loading import load_enhancer
from studies.samplers.blocks import open_blocks
from studies.samplers.rows import Row, parse_rows
from studies.samplers.samplers import Comparison, Track, check_row, compare
from studies.samplers.samplers_report import MARKER, write_samplers


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
    track: Track = lambda blocks, _total: blocks,
) -> Comparison:
    """Measure settings of the sampler side by side, and write the report.

    Args:
        data: folder of volumes.
        out: folder for ``samplers.md``, ``samplers.json`` and ``samplers.png``.
        samplers: rows of the table, see ``parse_rows``.
        students: weights of other models.
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
