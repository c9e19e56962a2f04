"""Inventory: what a folder holds that medqdm could enhance or train on; no patient data."""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medqdm.errors import MedQDMError, trace
from medqdm.io.axes import Loaded, choose_slice_axis, to_volume
from medqdm.io.dicom_frames import Slice, read_slice
from medqdm.io.dicom_grid import is_enhanced
from medqdm.io.dicom_open import one_line_for
from medqdm.io.dicom_pixels import Pixels, padding_ends, syntax_name, to_hu
from medqdm.io.dicom_scan import files_below, names_of, scan_files, tolerant
from medqdm.io.dicom_stack import (
    Stack,
    arrange,
    heights_mm,
    is_localizer,
    num_gaps,
    tilt_degrees,
)
from medqdm.io.formats import ITK_ENDINGS, NIFTI_ENDINGS, SEGMENTATION_ENDINGS, has_ending
from medqdm.io.itk import load_itk
from medqdm.io.nifti import load_nifti
from medqdm.io.plausibility import Tally
from medqdm.volume import ENHANCED_BEFORE, check_finite

logger = logging.getLogger(__name__)
_BESIDE = "NIfTI, NRRD or MetaImage file beside DICOM series"
_SMALL_PX = 64
_VIEW_MM = (80, 700)  # of scanners' reconstructions
_HEADER = 4096  # bytes of a DICOM file besides its pixels, roughly


@dataclass(frozen=True)
class SeriesSummary:
    """One CT series or volume file.

    Args:
        kind: ``dicom``, ``nifti`` or ``itk``.
        path: give it to ``read``: the deepest folder that holds all its files, or the file.
        series_instance_uid: give it to ``read`` as ``series``; None for a file. Of a series with
            several acquisitions, each is listed under ``UID#1``, ``UID#2`` and so on.
        num_slices: slices left after the odd ones.
        matrix: ``(y, x)`` pixels.
        spacing_mm: ``(z, y, x)``; z is the median distance of slices, 0 for a single one.
        warnings: what is odd about it.
        problem: why ``read`` will refuse it, as far as headers and the middle slice tell; None if
            it will not.
        acquisition: what tells it from others at the same places, such as
            ``AcquisitionNumber 2``; empty if there are none.
        num_gaps: places where slices seem to be missing.
        tilt_degrees: between the normal of the slices and the way from the first to the last.
        padding: what the scanner wrote where it did not measure: ``-2000 HU, declared``; empty if
            nothing was found in the header and the middle slice.
        encoding: names of the transfer syntaxes, or of the voxels' type in a file.
        needs_slice_axis: whether ``read`` must be told the axis of the slices.
        is_enhanced: whether medqdm made it.
        files: DICOM: its files, and damaged ones beside them that may be slices; ``read`` then
            looks into no others.
    """

    kind: str
    path: Path
    series_instance_uid: str | None
    num_slices: int
    matrix: tuple[int, int]
    spacing_mm: tuple[float, float, float]
    warnings: tuple[str, ...] = ()
    problem: str | None = None
    acquisition: str = ""
    num_gaps: int = 0
    tilt_degrees: float = 0.0
    padding: str = ""
    encoding: tuple[str, ...] = ()
    needs_slice_axis: bool = False
    is_enhanced: bool = False
    files: tuple[Path, ...] = field(default=(), repr=False)

    def enlarged(self, upscale: int) -> "Enlarged":
        """What an enhancement of this series in plane would give.

        Args:
            upscale: in-plane factor.
        """
        height, width = (side * upscale for side in self.matrix)
        spacing = self.spacing_mm[1] / upscale, self.spacing_mm[2] / upscale
        return Enlarged((height, width), spacing, self.num_slices * (2 * height * width + _HEADER))

    def doubts(self) -> tuple[str, ...]:
        """What makes an enhancement doubtful, one sentence each."""
        found = []
        if self.is_enhanced:
            found.append(ENHANCED_BEFORE)
        if min(self.matrix) < _SMALL_PX:
            found.append(
                f"a matrix of {self.matrix[1]} x {self.matrix[0]} pixels is small (below "
                f"{_SMALL_PX}): check the result with care"
            )
        view = [n * mm for n, mm in zip(self.matrix, self.spacing_mm[1:], strict=True)]
        if min(view) < _VIEW_MM[0] or max(view) > _VIEW_MM[1]:
            found.append(
                f"a field of view of {view[1]:.0f} x {view[0]:.0f} mm is unusual for CT "
                f"({_VIEW_MM[0]} to {_VIEW_MM[1]} mm): check the result with care"
            )
        return tuple(found)


@dataclass(frozen=True)
class Enlarged:
    """The output of an enhancement, as far as the size of the input tells.

    Args:
        matrix: ``(y, x)`` pixels.
        spacing_mm: ``(y, x)``.
        num_bytes: on the disk, roughly, if nothing is compressed.
    """

    matrix: tuple[int, int]
    spacing_mm: tuple[float, float]
    num_bytes: int


@dataclass(frozen=True)
class Inventory:
    """What a folder tree holds.

    Args:
        series: CT series and volume files, in the order of their paths.
        skipped: why files were left out, with their numbers.
        lost: of those that may be slices, by the same reasons: their paths in the folder, the
            first of them and how many more there are.
        warnings: what is odd about several series together, one sentence each.
    """

    series: tuple[SeriesSummary, ...]
    skipped: dict[str, int]
    lost: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def skipped_lines(self) -> list[str]:
        """What was left out, one line for each reason."""
        return [
            f"skipped {count} file(s): {reason}"
            + (f": {self.lost[reason]}" if reason in self.lost else "")
            for reason, count in sorted(self.skipped.items())
        ]


def find_series(path: str | Path) -> list[SeriesSummary]:
    """The CT series and volume files of a folder tree; see ``take_inventory``.

    Args:
        path: a folder (searched to the bottom) or a file.

    Raises:
        MedQDMError: the path does not exist.
    """
    return list(take_inventory(path).series)


def take_inventory(path: str | Path) -> Inventory:
    """The CT series and volume files of a folder tree, and what was left out.

    Of DICOM series, headers and the middle slice are read. NIfTI, NRRD and MetaImage files are
    read whole, and only where there is no DICOM series: beside one they are taken for its masks.
    A damaged file or series costs no other.

    Args:
        path: a folder (searched to the bottom) or a file.

    Raises:
        MedQDMError: the path does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise MedQDMError(f"{path}: must be a folder or file, got nothing there; check the path")
    skipped: Counter[str] = Counter()
    volumes: list[Path] = []
    rest: list[Path] = []
    for file in [path] if path.is_file() else files_below(path):
        if has_ending(file, SEGMENTATION_ENDINGS):
            skipped["segmentation"] += 1
        else:
            is_volume = has_ending(file, (*NIFTI_ENDINGS, *ITK_ENDINGS))
            (volumes if is_volume else rest).append(file)
    found = scan_files(rest)
    summaries = []
    with tolerant():
        for uid, slices in found.series.items():
            of_series = _summarize_series(uid, slices)
            place = of_series[0].path
            folder = place if place.is_dir() else place.parent
            beside = {file for file in found.lost if folder in file.parents}
            of_it = tuple(sorted({item.path for item in slices} | beside))
            summaries += [replace(summary, files=of_it) for summary in of_series]
        torn = _torn_series(found.series.values())
    if summaries and volumes:
        skipped[_BESIDE] = len(volumes)
    elif volumes:
        summaries = [_summarize_file(file) for file in volumes]
    summaries.sort(key=lambda s: (s.path, s.series_instance_uid or ""))
    return Inventory(
        tuple(summaries),
        dict(skipped + found.skipped),
        _names_of(found.lost, path),
        torn,
    )


def _torn_series(found: Iterable[Sequence[Slice]]) -> tuple[str, ...]:
    """Careless anonymization gives every slice a SeriesInstanceUID of its own."""
    tags = ("StudyInstanceUID", "SeriesNumber", "Rows", "Columns")
    headers = [items[0].header for items in found if len(items) == 1 and not is_localizer(items[0])]
    counts = Counter(tuple(str(header.get(tag)) for tag in tags) for header in headers)
    return tuple(
        f"{count} series of one slice each have the same study, series number and matrix: every "
        "slice seems to have a SeriesInstanceUID of its own; each is taken by itself"
        for count in counts.values()
        if count > 1
    )


def _names_of(lost: Mapping[Path, str], root: Path) -> dict[str, str]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for file, reason in lost.items():
        by_reason[reason].append(file.name if file == root else file.relative_to(root).as_posix())
    return {reason: names_of(names) for reason, names in by_reason.items()}


def _problem(error: Exception, *, where: str) -> str:
    """What one series or file raised, as a reason; whatever it is must not cost the others."""
    logger.debug("%s cannot be read\n%s", where, trace(error))
    if isinstance(error, MedQDMError):
        return str(error)
    return f"{where}: must be readable, got {type(error).__name__}; it is damaged, copy it again"


def _summarize_series(uid: str, slices: Sequence[Slice]) -> list[SeriesSummary]:
    """One summary for each acquisition of a series."""
    folder = _common_folder(slices)
    label = f"series {uid}"
    try:
        stacks = arrange(list(slices), label=label)
        return [_summarize_stack(uid, stack, folder) for stack in stacks]
    except Exception as error:
        return [
            SeriesSummary(
                kind="dicom",
                path=folder,
                series_instance_uid=uid,
                num_slices=len(slices),
                matrix=_matrix(slices[0]),
                spacing_mm=(0.0, 0.0, 0.0),
                problem=_problem(error, where=label),
                encoding=_syntaxes(slices),
            )
        ]


def _summarize_stack(uid: str, stack: Stack, folder: Path) -> SeriesSummary:
    slices = stack.slices
    middle = slices[len(slices) // 2]
    problem, padding, warnings = None, "", tuple(stack.warnings)
    try:
        with one_line_for(middle.name):
            pixels = to_hu(read_slice(middle), where=middle.name)
            check_finite(pixels.hu, where=middle.name)
            padding = _padding(middle, pixels)
        warnings += _check_values(slices, pixels, f"series {uid}")
    except Exception as error:
        problem = _problem(error, where=middle.name)
    spacing = [float(v) for v in stack.common.header.PixelSpacing]
    steps = np.diff(heights_mm(slices))
    return SeriesSummary(
        kind="dicom",
        path=folder,
        series_instance_uid=f"{uid}#{stack.number}" if stack.number else uid,
        num_slices=len(slices),
        matrix=_matrix(slices[0]),
        spacing_mm=(float(np.median(steps)) if len(steps) else 0.0, spacing[0], spacing[1]),
        warnings=warnings,
        problem=problem,
        acquisition=stack.name,
        num_gaps=num_gaps(slices),
        tilt_degrees=round(tilt_degrees(slices), 2),
        padding=padding,
        encoding=_syntaxes(slices),
        is_enhanced=is_enhanced(slices[0].header),
    )


def _check_values(slices: Sequence[Slice], middle: Pixels, where: str) -> tuple[str, ...]:
    """What the values of the middle slice tell; all slices decide if it is odd."""
    tally = Tally(enough=1)
    tally.add(middle.hu, middle.padding)
    if not tally.warnings():
        return ()
    tally = Tally()
    for item in slices:
        with one_line_for(item.name):
            pixels = to_hu(read_slice(item), where=item.name)
            check_finite(pixels.hu, where=item.name)
        tally.add(pixels.hu, pixels.padding)
    tally.check(where=where)
    return tally.warnings()


def _common_folder(slices: Sequence[Slice]) -> Path:
    """The deepest folder that holds all files; of one multi-frame file, the file."""
    if {item.frame for item in slices} != {None} and len({item.path for item in slices}) == 1:
        return slices[0].path
    return Path(os.path.commonpath({str(item.path.parent) for item in slices}))


def _matrix(item: Slice) -> tuple[int, int]:
    try:
        return int(item.header.get("Rows") or 0), int(item.header.get("Columns") or 0)
    except (TypeError, ValueError, OverflowError):
        return 0, 0


def _syntaxes(slices: Sequence[Slice]) -> tuple[str, ...]:
    return tuple(sorted({syntax_name(s.header.file_meta.TransferSyntaxUID) for s in slices}))


def _padding(item: Slice, pixels: Pixels) -> str:
    slope, intercept = float(item.header.RescaleSlope), float(item.header.RescaleIntercept)
    if pixels.undeclared is not None:
        return f"{pixels.undeclared * slope + intercept:g} HU, not declared"
    ends = padding_ends(item.header)
    if ends is None:
        return ""
    return " to ".join(f"{v * slope + intercept:g}" for v in sorted(set(ends))) + " HU, declared"


def load_file(path: Path) -> Loaded:
    """Read a NIfTI, NRRD or MetaImage file.

    Raises:
        MedQDMError: damaged, or not one three-dimensional volume.
    """
    return load_nifti(path) if has_ending(path, NIFTI_ENDINGS) else load_itk(path)


def _summarize_file(path: Path) -> SeriesSummary:
    """What ``read`` makes of a file; if the slice axis is not clear, as if it were the third."""
    kind = "nifti" if has_ending(path, NIFTI_ENDINGS) else "itk"
    summary = SeriesSummary(kind, path, None, 0, (0, 0), (0.0, 0.0, 0.0))
    unclear: tuple[str, ...] = ()
    try:
        loaded = load_file(path)
        try:
            axis = choose_slice_axis(loaded.spacing_mm, None, where=path.name)
        except MedQDMError as error:
            axis, unclear = 2, (str(error),)
        volume = to_volume(loaded, axis)
    except Exception as error:
        return replace(summary, problem=_problem(error, where=path.name))
    return replace(
        summary,
        num_slices=volume.shape[0],
        matrix=volume.shape[1:],
        spacing_mm=(float(loaded.spacing_mm[axis]), *volume.spacing_mm),
        warnings=(*unclear, *volume.source.warnings),
        encoding=(loaded.encoding,),
        needs_slice_axis=bool(unclear),
        is_enhanced=volume.source.is_enhanced,
    )
