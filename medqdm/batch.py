"""Batch: every CT series of a folder tree, each to an output of its own, with one loaded model."""

import csv
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from medqdm import io
from medqdm.cells import as_text
from medqdm.enhance import Track, check_output, enhance_volume
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError, trace
from medqdm.io.plausibility import OVERRIDE
from medqdm.io.whole import alone, whole_file
from medqdm.volume import ENHANCED_BEFORE, Volume

SUMMARY_FILE = "summary.csv"
DONE = ("enhanced", "finished before")
_PREFIX, _DIGITS = "series-", 12
logger = logging.getLogger(__name__)


@dataclass
class Row:
    """A line of ``summary.csv``: one series that was found; nothing of the patient.

    ``status`` is ``waiting``, ``enhanced``, ``finished before``, ``scout`` (left out: a projection
    cannot be enhanced), ``enhanced already`` (left out: an output of medqdm), ``refused`` (its
    headers tell that it cannot be read) or ``failed``. ``skipped`` stands for files of no series:
    ``slices`` is their number and ``message`` the reason. ``series`` is the SeriesInstanceUID, the
    name of a volume file, or the first names of skipped files that may be slices. ``output`` is
    the folder. ``left_out`` counts images that are, or may be, slices of the series and are not in
    its output, and ``message`` says why: damaged, or on another grid. Scouts and duplicates do not
    count.
    """

    output: str
    kind: str
    series: str
    slices: int
    rows: int = 0
    columns: int = 0
    spacing_z_mm: float = 0.0
    spacing_y_mm: float = 0.0
    spacing_x_mm: float = 0.0
    status: str = "waiting"
    left_out: int | None = None
    seconds_per_slice: float | None = None
    share_refined: float | None = None
    flat_shift_hu: float | None = None
    lr_consistency_hu: float | None = None
    clipped_voxels: int | None = None
    warnings: int | None = None
    message: str = field(default="", repr=False)

    @property
    def is_failure(self) -> bool:
        """Whether somebody should look after it."""
        may_be_slices = self.status == "skipped" and bool(self.series)
        return self.status in ("refused", "failed") or bool(self.left_out) or may_be_slices


def find_many(root: Path) -> io.Inventory:
    """The series that ``enhance_all`` would take, and what is skipped.

    Args:
        root: a folder, searched to the bottom; a file or DICOMDIR holds one series by itself.

    Raises:
        MedQDMError: the path does not exist.
    """
    return io.Inventory((), {}) if root.is_file() else io.take_inventory(root)


def enhance_all(  # noqa: PLR0913  (all by keyword but three)
    enhancer: Enhancer,
    root: str | Path,
    out: str | Path,
    *,
    found: io.Inventory | None = None,
    resume: bool = False,
    overwrite: bool = False,
    skip_bad: bool = False,
    any_values: bool = False,
    announce: Callable[[Enhancer, Volume], None] = lambda _enhancer, _volume: None,
    report: Callable[[Row], None] = lambda _row: None,
    track: Track = lambda slices, _total: slices,
    **options: Any,
) -> list[Row]:
    """Enhance every series of a folder tree; one that fails does not stop the others.

    Each gets a folder ``series-...`` in ``out``, named by a digest of its UID (or file), which
    appears whole or not at all. ``summary.csv`` lists every series found and is brought up to date
    after each.

    Args:
        enhancer: the loaded model.
        root: the folder.
        out: the folder for the outputs.
        found: what ``find_many`` gave for ``root``, where it was called already.
        resume: leave out what is finished; see ``enhance_volume``.
        overwrite: replace earlier outputs of the same series, each at its own end.
        skip_bad: leave damaged DICOM slices out instead of refusing their series; ``left_out``
            counts them.
        any_values: take values that cannot be HU too.
        announce: called with the model and each volume before the work on it begins.
        report: called with each row when its series is done, or given up.
        track: wraps the slices of each series.
        **options: ``file_format``, ``transfer_syntax``, ``dates``, ``segmentation`` and
            ``parametric_map`` of ``enhance_volume``.

    Returns:
        The rows of the summary.

    Raises:
        MedQDMError: the output folder must not be written, or there is no series at all.
    """
    root, out = Path(root), Path(out)
    check_output(root, out, overwrite=overwrite or resume, marker=SUMMARY_FILE)
    found = found or find_many(root)
    pairs = [
        (summary, _row(root, summary, skip_bad=skip_bad, any_values=any_values))
        for summary in found.series
    ]
    if not any(row.status == "waiting" for _, row in pairs):
        raise MedQDMError(
            f"{root}: must hold a CT series that can be enhanced, got {len(pairs)} that cannot; "
            "'medqdm info' tells why"
        )

    def enhance(summary: io.SeriesSummary, row: Row) -> None:
        volume = io.read(
            summary.path,
            series=summary.series_instance_uid,
            skip_bad=skip_bad,
            any_values=any_values,
            files=summary.files or None,
        )
        _describe(row, volume)
        announce(enhancer, volume)
        done = enhance_volume(
            enhancer,
            volume,
            out / row.output,
            resume=resume,
            overwrite=overwrite,
            track=track,
            **options,
        )
        row.status = DONE[1] if done.finished is not None else DONE[0]
        numbers = done.numbers()
        for name in ("seconds_per_slice", "share_refined", "flat_shift_hu", "lr_consistency_hu",
                     "clipped_voxels"):  # fmt: skip
            setattr(row, name, numbers[name])
        row.warnings = len(done.warnings)

    skipped = [
        Row("", "file", found.lost.get(reason, ""), count, status="skipped", message=reason)
        for reason, count in sorted(found.skipped.items())
    ]
    rows = [*(row for _, row in pairs), *skipped]
    with alone(out / "batch"):
        _write_summary(rows, out)
        for summary, row in pairs:
            if row.status == "waiting":
                try:
                    enhance(summary, row)
                except MedQDMError as error:
                    logger.debug("series %s failed\n%s", row.series, trace(error))
                    row.status, row.message = "failed", str(error)
                except Exception as error:  # a bug must not cost the other series
                    logger.debug("series %s failed\n%s", row.series, trace(error))
                    what = type(error).__name__  # its text might quote what a header holds
                    row.message = f"internal error ({what}); 'medqdm --debug' shows where"
                    row.status = "failed"
            _write_summary(rows, out)
            report(row)
    return rows


def _row(root: Path, summary: io.SeriesSummary, *, skip_bad: bool, any_values: bool) -> Row:
    uid = summary.series_instance_uid
    name = uid or summary.path.relative_to(root).as_posix()
    row = Row(
        output=_PREFIX + hashlib.sha256(os.fsencode(name)).hexdigest()[:_DIGITS],
        kind=summary.kind,
        series=uid or summary.path.name,
        slices=summary.num_slices,
        rows=summary.matrix[0],
        columns=summary.matrix[1],
        spacing_z_mm=summary.spacing_mm[0],
        spacing_y_mm=summary.spacing_mm[1],
        spacing_x_mm=summary.spacing_mm[2],
    )
    problem = summary.problem or ""
    if any_values and OVERRIDE in problem:
        problem = ""
    if "localizers only" in problem:
        row.status, row.message = "scout", problem
    elif problem and not (skip_bad and summary.kind == "dicom"):  # else its good slices may do
        row.status, row.message = "refused", problem
    elif summary.is_enhanced and summary.kind == "dicom":  # a file may merely be written by us
        row.status, row.message = "enhanced already", f"series {name}: {ENHANCED_BEFORE}"
    return row


def _describe(row: Row, volume: Volume) -> None:
    """What was read, which is less than what lies there if slices were left out."""
    row.left_out, row.message = volume.source.left_out, "; ".join(volume.source.losses)
    row.slices, row.rows, row.columns = volume.shape
    row.spacing_y_mm, row.spacing_x_mm = volume.spacing_mm


def _write_summary(rows: Sequence[Row], out: Path) -> None:
    names = [f.name for f in fields(Row)]
    with (
        whole_file(out / SUMMARY_FILE, overwrite=True) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: as_text(v) for k, v in asdict(row).items()} for row in rows)
