"""Inventory: what a folder holds that medqdm could enhance or train on; no patient data."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813  (its usual name)
from nibabel.filebasedimages import ImageFileError

from medqdm.errors import MedQDMError
from medqdm.io.axes import choose_slice_axis
from medqdm.io.dicom_read import arrange, heights_mm
from medqdm.io.dicom_scan import Slice, scan_files, tolerant
from medqdm.io.formats import ITK_ENDINGS, NIFTI_ENDINGS, SEGMENTATION_ENDINGS, has_ending


@dataclass(frozen=True)
class SeriesSummary:
    """One CT series or volume file.

    Args:
        kind: ``dicom``, ``nifti`` or ``itk``.
        path: give it to ``read``: the deepest folder that holds all its files, or the file.
        series_instance_uid: give it to ``read`` as ``series``; None for a file.
        num_slices: DICOM: slices left after the odd ones; a file: size of its last axis.
        matrix: ``(y, x)`` pixels.
        spacing_mm: ``(z, y, x)``; z is the median distance of slices, 0 for a single one.
        warnings: what is odd about it.
        problem: why ``read`` will refuse it, as far as headers tell; None if it will not.
    """

    kind: str
    path: Path
    series_instance_uid: str | None
    num_slices: int
    matrix: tuple[int, int]
    spacing_mm: tuple[float, float, float]
    warnings: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Inventory:
    """What a folder tree holds.

    Args:
        series: CT series and volume files, in the order of their paths.
        skipped: why files were left out, with their numbers.
    """

    series: tuple[SeriesSummary, ...]
    skipped: dict[str, int]


def find_series(path: str | Path) -> list[SeriesSummary]:
    """The CT series and volume files of a folder tree, from their headers alone.

    Args:
        path: a folder (searched to the bottom) or a file.

    Raises:
        MedQDMError: the path does not exist.
    """
    return list(take_inventory(path).series)


def take_inventory(path: str | Path) -> Inventory:
    """``find_series``, and what was left out.

    Args:
        path: a folder (searched to the bottom) or a file.

    Raises:
        MedQDMError: the path does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise MedQDMError(f"{path}: must be a folder or file, got nothing there; check the path")
    files = [path] if path.is_file() else _files_below(path)
    skipped: Counter[str] = Counter()
    summaries, rest = [], []
    for file in files:
        if has_ending(file, SEGMENTATION_ENDINGS):
            skipped["segmentation"] += 1
        elif has_ending(file, (*NIFTI_ENDINGS, *ITK_ENDINGS)):
            summaries.append(_summarize_file(file))
        else:
            rest.append(file)
    found = scan_files(rest)
    with tolerant():
        summaries += [_summarize_series(uid, slices) for uid, slices in found.series.items()]
    summaries.sort(key=lambda s: (s.path, s.series_instance_uid or ""))
    return Inventory(tuple(summaries), dict(skipped + found.skipped))


def _files_below(folder: Path) -> list[Path]:
    return sorted(Path(top) / name for top, _, names in os.walk(folder) for name in names)


def _summarize_series(uid: str, slices: Sequence[Slice]) -> SeriesSummary:
    folders = {str(item.path.parent) for item in slices}
    folder = Path(os.path.commonpath(folders))
    try:
        kept, warnings = arrange(list(slices), label=f"series {uid}")
    except MedQDMError as error:
        size = (int(slices[0].header.get("Rows") or 0), int(slices[0].header.get("Columns") or 0))
        return SeriesSummary(
            "dicom", folder, uid, len(slices), size, (0.0, 0.0, 0.0), (), str(error)
        )
    header = kept[0].header
    steps = np.diff(heights_mm(kept))
    spacing = [float(v) for v in header.PixelSpacing]
    return SeriesSummary(
        kind="dicom",
        path=folder,
        series_instance_uid=uid,
        num_slices=len(kept),
        matrix=(int(header.Rows), int(header.Columns)),
        spacing_mm=(float(np.median(steps)) if len(steps) else 0.0, spacing[0], spacing[1]),
        warnings=tuple(warnings),
    )


def _summarize_file(path: Path) -> SeriesSummary:
    kind = "nifti" if has_ending(path, NIFTI_ENDINGS) else "itk"
    problem = None
    try:
        size, spacing = _nifti_lattice(path) if kind == "nifti" else _itk_lattice(path)
        if len(size) != 3:
            problem = f"{path.name}: has {len(size)} dimensions, not 3"
    except (ImageFileError, OSError, EOFError, ValueError, RuntimeError):
        problem = f"{path.name}: cannot be read"
    if problem is not None:
        return SeriesSummary(kind, path, None, 0, (0, 0), (0.0, 0.0, 0.0), (), problem)
    warnings: tuple[str, ...] = ()
    try:
        choose_slice_axis(np.asarray(spacing), None, where=path.name)
    except MedQDMError as error:
        warnings = (str(error),)
    return SeriesSummary(
        kind,
        path,
        None,
        size[2],
        (size[1], size[0]),
        (spacing[2], spacing[1], spacing[0]),
        warnings,
    )


def _nifti_lattice(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    header = nibabel.load(path).header
    return header.get_data_shape(), tuple(float(v) for v in header.get_zooms())


def _itk_lattice(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader.GetSize(), reader.GetSpacing()
