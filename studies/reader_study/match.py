"""Match: each enhanced output with the series it was made from, and with its reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medqdm import io
from medqdm.errors import MedQDMError
from medqdm.io.formats import ITK_ENDINGS, NIFTI_ENDINGS, has_ending
from medqdm.io.plausibility import OVERRIDE
from medqdm.metrics import reduce_by_area
from medqdm.review.series import CELL_LR_PX, Review, load_refined, load_review
from medqdm.volume import EDGE_TOLERANCE_MM, Volume

_LEAST_CORRELATION = 0.95  # of a slice with what it was made from; another patient's has less


@dataclass(frozen=True, eq=False)
class Material:
    """What a study draws the cases of one output from.

    Args:
        review: the output beside its source.
        reference: the truth on the output's grid, or None.
    """

    review: Review
    reference: Volume | None


@dataclass(frozen=True)
class _Candidate:
    path: Path
    series: str | None = None
    cells: tuple[int, int, int] | None = None  # of its refined.npz, where the headers tell

    def __str__(self) -> str:
        return self.series or self.path.name


def find_outputs(paths: Sequence[str | Path]) -> list[Path]:
    """The folders that ``medqdm enhance`` wrote, in order, each once.

    Args:
        paths: such folders, or folders that hold some (as ``enhance`` of several series leaves).

    Raises:
        MedQDMError: one is neither.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        inner = sorted(file.parent for file in path.glob(f"*/{io.RUN_FILE}"))
        if (path / io.RUN_FILE).is_file():
            inner = [path]
        if not inner:
            raise MedQDMError(
                f"{path}: must be a folder written by medqdm enhance, or hold some, got none; "
                "check the path"
            )
        found |= dict.fromkeys(folder.resolve() for folder in inner)
    return list(found)


def match(
    outputs: Sequence[Path],
    sources: Sequence[str | Path],
    references: Sequence[str | Path] = (),
    *,
    slice_axis: int | None = None,
) -> list[Material]:
    """Find the source of each output, and its reference, among series in any order.

    A source fits if the output covers the same place with a multiple of its pixels and shows, when
    it is averaged, the same; a reference if it has the output's pixels and shows, averaged, the
    source.

    Args:
        outputs: see ``find_outputs``.
        sources: series, or folders that hold some.
        references: the same; outputs without one have two arms instead of three.
        slice_axis: array axis of the slices of NIfTI, NRRD and MetaImage files.

    Raises:
        MedQDMError: an output has no source or several, or a reference belongs to none.
    """
    candidates = _candidates(sources, "--source")
    reviews = [_review(out, candidates, slice_axis) for out in outputs]
    found: dict[int, Volume] = {}
    for candidate in _candidates(references, "--reference"):
        index, volume = _reference(candidate, reviews, slice_axis)
        if index in found:
            raise MedQDMError(
                f"--reference: must be one series of each output, got two of "
                f"{outputs[index].name}; give one of them"
            )
        found[index] = volume
    return [Material(review, found.get(k)) for k, review in enumerate(reviews)]


def _candidates(roots: Sequence[str | Path], option: str) -> list[_Candidate]:
    found: dict[_Candidate, None] = {}
    for root in map(Path, roots):
        here = [_Candidate(root)]
        if not root.is_file():
            here = [
                _Candidate(series.path, series.series_instance_uid, _cells(series))
                for series in _series_below(root)
                if OVERRIDE in (series.problem or OVERRIDE) and not _is_output(series.path, root)
            ]
        if not here:
            raise MedQDMError(f"{option}: must hold CT series, got none in {root}; check the path")
        found |= dict.fromkeys(here)
    return list(found)


def _series_below(root: Path) -> list[io.SeriesSummary]:
    """DICOM series and volume files of a folder; an inventory leaves files beside DICOM out."""
    found = list(io.take_inventory(root).series)
    listed = {series.path for series in found}
    for file in sorted(root.rglob("*")):
        if has_ending(file, (*NIFTI_ENDINGS, *ITK_ENDINGS)) and file not in listed:
            found += io.take_inventory(file).series
    return found


def _cells(series: io.SeriesSummary) -> tuple[int, int, int] | None:
    if series.kind != "dicom":
        return None
    rows, columns = (-(-side // CELL_LR_PX) for side in series.matrix)
    return series.num_slices, rows, columns


def _is_output(path: Path, root: Path) -> bool:
    """Whether a series below a folder is itself an output of medqdm enhance."""
    below = [path, *path.parents]
    return any((p / io.RUN_FILE).is_file() for p in below[: below.index(root) + 1 or None])


def _review(out: Path, candidates: Sequence[_Candidate], slice_axis: int | None) -> Review:
    fitting, refusals = [], []
    cells = load_refined(out).shape
    for candidate in candidates:
        if len(candidates) > 1 and candidate.cells not in (None, cells):
            continue
        try:
            review = load_review(
                out, candidate.path, series=candidate.series, slice_axis=slice_axis
            )
            z = review.num_slices // 2
            averaged = reduce_by_area(review.enhanced.hu[z], review.upscale)
            _check_alike(averaged, review.before.hu[z], str(candidate))
            fitting.append(review)
        except MedQDMError as error:
            refusals.append(str(error))
    if len(fitting) == 1:
        return fitting[0]
    if len(candidates) == 1:
        raise MedQDMError(refusals[0])
    got = f"{len(fitting)} that fit" if fitting else f"none that fits among {len(candidates)}"
    raise MedQDMError(
        f"{out.name}: exactly one --source must be the series that it was made from, got {got}; "
        "give the folder of that series"
    )


def _reference(
    candidate: _Candidate, reviews: Sequence[Review], slice_axis: int | None
) -> tuple[int, Volume]:
    volume = io.read(
        candidate.path, series=candidate.series, slice_axis=slice_axis, any_values=True
    )
    fitting, refusals = [], []
    for index, review in enumerate(reviews):
        try:
            _check_reference(volume, review, str(candidate))
            fitting.append(index)
        except MedQDMError as error:
            refusals.append(str(error))
    if len(fitting) == 1:
        return fitting[0], volume
    if len(reviews) == 1 and refusals:
        raise MedQDMError(refusals[0])
    raise MedQDMError(
        f"{candidate}: a --reference must show the same slices as exactly one output, with its "
        f"pixels, got {len(fitting)} of {len(reviews)} outputs; leave it out"
    )


def _check_reference(volume: Volume, review: Review, where: str) -> None:
    if volume.shape != review.enhanced.shape:
        raise MedQDMError(
            f"{where}: a reference must have the output's {review.enhanced.shape} pixels "
            f"(slices, rows, columns), got {volume.shape}; give the truth on the same grid"
        )
    moved = float(np.abs(volume.corners_mm() - review.enhanced.corners_mm()).max())
    if not moved <= EDGE_TOLERANCE_MM:
        raise MedQDMError(
            f"{where}: a reference's outer edges must be those of the output, got {moved:.3f} mm "
            "between them; give the truth on the same grid"
        )
    z = review.num_slices // 2
    _check_alike(reduce_by_area(volume.hu[z], review.upscale), review.before.hu[z], where)


def _check_alike(one: NDArray[np.float32], other: NDArray[np.float32], where: str) -> None:
    """Refuse a slice that shows something else; a slice of one value shows nothing."""
    if min(float(one.std()), float(other.std())) == 0:
        return
    found = float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    if not found >= _LEAST_CORRELATION:
        raise MedQDMError(
            f"{where}: must show what the output shows (correlation {_LEAST_CORRELATION:g} or "
            f"more), got {found:.2f}; give the series of the same patient and examination"
        )
