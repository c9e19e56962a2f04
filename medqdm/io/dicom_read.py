"""DICOM reading: one CT series of a folder to a volume, odd ones refused or put right aloud.

Every slice is decoded once before anything else is done with the series, which finds the bad ones,
and again when it is asked for; only headers and checksums are kept in between.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medqdm.errors import MedQDMError
from medqdm.io.dicom_pixels import Pixels, to_hu
from medqdm.io.dicom_scan import Scan, Slice, read_whole, scan, tolerant
from medqdm.volume import SliceStack, Source, Volume, check_finite

ORIENTATION_TOLERANCE = 1e-4  # of direction cosines
POSITION_TOLERANCE_MM = 1e-3
_KEPT_SLICES = 8  # decoded, for those who ask for HU and padding of the same slice in turn
_GEOMETRY = {
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
    "PixelSpacing": 2,
    "Rows": 1,
    "Columns": 1,
}
LOSSY_METHODS = {  # transfer syntaxes that lose, unless LossyImageCompression says 00
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}


def read_dicom(path: Path, *, series: str | None = None) -> Volume:
    """Read one CT series.

    Args:
        path: a folder (searched to the bottom), a DICOMDIR or one file.
        series: SeriesInstanceUID; needed where several CT series lie there.

    Raises:
        MedQDMError: there is no CT series or more than one, or it cannot be a stack of slices in
            HU with a place in the patient.
    """
    found = scan(path)
    uid = _choose(found, series, where=path.name or str(path))
    label = f"series {uid}"
    with tolerant():
        slices, warnings = arrange(found.series[uid], label=label)
        checked = [_check_pixels(item) for item in slices]
    headers = tuple(item.header for item in slices)
    warnings += _pixel_warnings(headers, sum(slice_.is_silent for slice_ in checked))
    digests = tuple(slice_.digest for slice_ in checked)
    decode = _decoder([item.path for item in slices], digests)
    shape = (len(slices), int(headers[0].Rows), int(headers[0].Columns))
    x_step, y_step = _steps(headers[0])
    padding = SliceStack(shape, np.bool_, lambda z: decode(z).padding.copy())
    return Volume(
        hu=SliceStack(shape, np.float32, lambda z: decode(z).hu.copy(), digests=digests),
        origins_mm=np.array([h.ImagePositionPatient for h in headers], dtype=np.float64),
        x_step_mm=x_step,
        y_step_mm=y_step,
        padding=padding if any(slice_.is_padded for slice_ in checked) else None,
        source=Source("dicom", path.name or str(path), headers, tuple(warnings)),
    )


class _Checked(NamedTuple):
    """What is kept of a slice's pixels: a checksum, and whether there is padding, declared or not.

    Args:
        digest: SHA-256 of the HU.
        is_padded: whether it holds padding.
        is_silent: whether it holds padding that its header did not declare.
    """

    digest: bytes
    is_padded: bool
    is_silent: bool


def _check_pixels(item: Slice) -> _Checked:
    """Decode a slice once; its header is told what only the pixels show: padding and loss."""
    dataset = read_whole(item.path)
    pixels = to_hu(dataset, where=item.path.name)
    check_finite(pixels.hu, where=item.path.name)
    if pixels.undeclared is not None and "PixelPaddingValue" not in item.header:
        vr = "SS" if dataset.PixelRepresentation else "US"
        item.header.add_new("PixelPaddingValue", vr, pixels.undeclared)
    method = LOSSY_METHODS.get(str(dataset.file_meta.TransferSyntaxUID))
    if method and not item.header.get("LossyImageCompression"):
        ratio = dataset.Rows * dataset.Columns * 2 / len(dataset.PixelData)
        item.header.LossyImageCompression = "01"
        item.header.LossyImageCompressionRatio = f"{ratio:.3f}"
        item.header.LossyImageCompressionMethod = method
    return _Checked(_digest(pixels), bool(pixels.padding.any()), pixels.undeclared is not None)


def _decoder(files: Sequence[Path], digests: Sequence[bytes]) -> Callable[[int], Pixels]:
    """A function that decodes slice z again and refuses another content than the checked one."""

    @lru_cache(maxsize=_KEPT_SLICES)
    def decode(z: int) -> Pixels:
        with tolerant():
            pixels = to_hu(read_whole(files[z]), where=files[z].name)
        if _digest(pixels) != digests[z]:
            raise MedQDMError(
                f"{files[z].name}: a CT file must not change while its series is in use, got other "
                "pixels than before; start again when the series is complete"
            )
        return pixels

    return decode


def _digest(pixels: Pixels) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(pixels.hu).data).digest()


def _choose(found: Scan, series: str | None, *, where: str) -> str:
    if not found.series:
        raise MedQDMError(
            f"{where}: must hold a CT series, got none ({found.why_nothing()}); "
            "give a folder with single-frame CT images"
        )
    listing = ", ".join(f"{uid} ({len(items)} slices)" for uid, items in found.series.items())
    if series is None and len(found.series) > 1:
        raise MedQDMError(
            f"{where}: must hold one CT series, got {len(found.series)}: {listing}; "
            "choose one with --series"
        )
    if series is not None and series not in found.series:
        raise MedQDMError(f"{where}: --series must be one of {listing}, got {series}")
    return series or next(iter(found.series))


def arrange(slices: list[Slice], *, label: str) -> tuple[list[Slice], list[str]]:
    """The slices of one stack in spatial order, and what was odd about them.

    Args:
        slices: all CT files of one series.
        label: what messages call the series.

    Raises:
        MedQDMError: geometry is missing, files contradict each other, or two slices share a place.
    """
    warnings: list[str] = []
    slices = _drop_localizers(slices, warnings, label)
    for item in slices:
        _check_geometry(item)
    slices = _drop_duplicates(slices, warnings)
    slices = _keep_largest_stack(slices, warnings, label)
    heights = heights_mm(slices)
    order = np.argsort(heights, kind="stable")
    slices, heights = [slices[i] for i in order], heights[order]
    _check_one_slice_a_place(slices, heights, label)
    warnings += _spacing_warnings(heights)
    return slices, warnings


def _drop_localizers(slices: list[Slice], warnings: list[str], label: str) -> list[Slice]:
    kept = [s for s in slices if "LOCALIZER" not in _values(s.header.get("ImageType"))]
    if not kept:
        raise MedQDMError(
            f"{label}: must hold CT slices, got {len(slices)} localizers only; "
            "a scout is a projection and cannot be enhanced"
        )
    if len(kept) < len(slices):
        warnings.append(f"left out {len(slices) - len(kept)} localizer image(s)")
    return kept


def _values(value: object) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(v) for v in value]  # type: ignore[attr-defined]


def _check_geometry(item: Slice) -> None:
    for tag, count in _GEOMETRY.items():
        value = item.header.get(tag)
        try:
            numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
        except (TypeError, ValueError):
            numbers = np.array([])
        if value is None or numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise MedQDMError(
                f"{item.path.name}: a CT slice must have {tag} ({count} numbers), got none or a "
                "damaged one; its place in the patient cannot be known without it"
            )
    spacing = [float(v) for v in item.header.PixelSpacing]
    if min(spacing) <= 0:
        raise MedQDMError(
            f"{item.path.name}: PixelSpacing must be above 0 mm, got {spacing}; "
            "the geometry in its header is damaged"
        )
    axes = np.array(item.header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
        raise MedQDMError(
            f"{item.path.name}: ImageOrientationPatient must be two unit vectors at a right angle, "
            "got others; the geometry in its header is damaged"
        )


def _drop_duplicates(slices: list[Slice], warnings: list[str]) -> list[Slice]:
    """One file of each SOPInstanceUID; other pixels under the same UID are a contradiction."""
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    nameless: list[Slice] = []
    for item in slices:
        uid = str(item.header.get("SOPInstanceUID", "") or "")
        (by_uid[uid] if uid else nameless).append(item)
    for items in by_uid.values():
        if len(items) > 1 and len({_content(item) for item in items}) > 1:
            raise MedQDMError(
                f"{items[0].path.name} and {items[1].path.name}: files with one SOPInstanceUID "
                "must be identical, got different pixels or positions; remove the wrong one"
            )
    dropped = sum(len(items) - 1 for items in by_uid.values())
    if dropped:
        warnings.append(f"left out {dropped} duplicate file(s)")
    if nameless:
        warnings.append(f"{len(nameless)} slice(s) without SOPInstanceUID")
    return [items[0] for items in by_uid.values()] + nameless


def _content(item: Slice) -> tuple[bytes, str]:
    pixels = to_hu(read_whole(item.path), where=item.path.name)
    return pixels.hu.tobytes(), str(item.header.ImagePositionPatient)


def _keep_largest_stack(slices: list[Slice], warnings: list[str], label: str) -> list[Slice]:
    """The largest group of slices on one kind of grid; scouts often hide in a series."""
    stacks: list[list[Slice]] = []
    for item in slices:
        for stack in stacks:
            if _same_grid(item.header, stack[0].header):
                stack.append(item)
                break
        else:
            stacks.append([item])
    stacks.sort(key=len, reverse=True)
    if len(stacks) > 1 and len(stacks[0]) == len(stacks[1]):
        raise MedQDMError(
            f"{label}: slices must share orientation, matrix, spacing and frame of reference, "
            f"got {len(stacks)} groups of {', '.join(str(len(stack)) for stack in stacks)}; "
            "give the files of one group"
        )
    if len(stacks) > 1:
        left = len(slices) - len(stacks[0])
        warnings.append(
            f"left out {left} image(s) of another orientation, matrix, spacing or frame"
        )
    return stacks[0]


def _same_grid(header: Dataset, other: Dataset) -> bool:
    def numbers(tag: str) -> NDArray[np.float64]:
        pair = np.array([header.get(tag), other.get(tag)], dtype=np.float64)
        return np.abs(pair[0] - pair[1])

    return bool(
        (header.Rows, header.Columns) == (other.Rows, other.Columns)
        and header.get("FrameOfReferenceUID") == other.get("FrameOfReferenceUID")
        and numbers("ImageOrientationPatient").max() <= ORIENTATION_TOLERANCE
        and numbers("PixelSpacing").max() <= ORIENTATION_TOLERANCE
    )


def heights_mm(slices: list[Slice]) -> NDArray[np.float64]:
    """Position of each slice in mm along the normal of the first."""
    axes = np.array(slices[0].header.ImageOrientationPatient, dtype=np.float64)
    origins = np.array([s.header.ImagePositionPatient for s in slices], dtype=np.float64)
    return origins @ np.cross(axes[:3], axes[3:])


def _check_one_slice_a_place(slices: list[Slice], heights: NDArray[np.float64], label: str) -> None:
    shared = int(np.count_nonzero(np.diff(heights) < POSITION_TOLERANCE_MM))
    if shared:
        numbers = Counter(str(s.header.get("AcquisitionNumber", "none")) for s in slices)
        listing = ", ".join(f"{name}: {count}" for name, count in sorted(numbers.items()))
        raise MedQDMError(
            f"{label}: every slice must have a position of its own, got {shared} that share one "
            f"(slices by AcquisitionNumber: {listing}); the series holds several acquisitions or "
            "reconstructions, give a folder with the files of one"
        )


def _spacing_warnings(heights: NDArray[np.float64]) -> list[str]:
    steps = np.diff(heights)
    if len(steps) == 0 or np.ptp(steps) <= 0.01:
        return []
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    wide = np.flatnonzero(steps > 1.5 * usual)
    if len(wide) == 0:
        return [f"slices are unevenly spaced, {steps.min():.3f} to {steps.max():.3f} mm"]
    k = int(wide[0])
    return [
        f"{len(wide)} gap(s) between slices: {steps[k]:.3f} mm between slices {k + 1} and {k + 2}, "
        f"usually {usual:.3f} mm; slices may be missing"
    ]


def _steps(header: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """X and y step vectors in mm; PixelSpacing names the distance of rows first."""
    axes = np.array(header.ImageOrientationPatient, dtype=np.float64)
    spacing_y, spacing_x = (float(v) for v in header.PixelSpacing)
    return axes[:3] * spacing_x, axes[3:] * spacing_y


def _pixel_warnings(headers: tuple[Dataset, ...], silent: int) -> list[str]:
    warnings = []
    if any(h.get("LossyImageCompression") == "01" for h in headers):
        warnings.append("pixels were compressed with loss; artefacts may be sharpened")
    if any(str(h.get("BurnedInAnnotation", "")).upper() == "YES" for h in headers):
        warnings.append("text is burned into the image and will be redrawn")
    if silent:
        warnings.append(f"{silent} slice(s) with padding that their header does not declare")
    return warnings
