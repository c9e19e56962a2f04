"""DICOM writing: a derived CT series, slice by slice, complete and checked or not at all."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medqdm.errors import MedQDMError
from medqdm.io.dicom_blank import blank_headers
from medqdm.io.dicom_check import check_slice
from medqdm.io.dicom_header import Derivation, derived_header
from medqdm.io.dicom_pixels import padding_ends, stored_range
from medqdm.io.dicom_scan import scan, tolerant
from medqdm.io.dicom_uid import make_uid
from medqdm.io.whole import whole_folder
from medqdm.streaming import map_behind
from medqdm.volume import Volume, slice_digests

_SLICES_BEHIND = 2  # written while the next one is made
_IMPLEMENTATION_UID = make_uid("medqdm", "implementation class")


@dataclass(frozen=True)
class WriteReport:
    """What was written.

    Args:
        num_slices: files of the series.
        num_clipped: pixels that lay outside of what the words can hold and were clipped.
        series_instance_uid: of the new series.
        files: their names in the folder, in slice order.
    """

    num_slices: int
    num_clipped: int
    series_instance_uid: str
    files: tuple[str, ...]


def write_series(  # noqa: PLR0913  (all but three by keyword)
    source: Volume,
    slices: Iterable[NDArray[np.float32]],
    folder: Path,
    *,
    upscale: int,
    description: str,
    software_version: str,
    weights_id: str,
    uid_entropy: Sequence[str],
    overwrite: bool = False,
    extra: Callable[[Path, WriteReport], None] | None = None,
) -> WriteReport:
    """Write a derived DICOM series; memory does not grow with the number of slices.

    The series is filled and checked in a hidden folder beside ``folder`` and renamed at the end; on
    any exception nothing appears. A slice is written by another thread while ``slices`` makes the
    next one.

    Args:
        source: the volume as it was read; a volume that was no DICOM gets a new study.
        slices: enhanced ``(y * upscale, x * upscale)`` HU in slice order, pulled one at a time
            by the calling thread.
        folder: the output folder, empty or not yet there.
        upscale: in-plane factor.
        description: what was done, for DerivationDescription: ASCII, no host names or paths.
        software_version: of medqdm.
        weights_id: names the weights, such as the start of their checksum.
        uid_entropy: all that the pixels depend on besides source and weights: seed, settings,
            kind of device. The same source and entropy give the same UIDs.
        overwrite: whether a folder with files in it may be replaced, whole and at the end.
        extra: called with the hidden folder before it appears, for files to appear with it.

    Raises:
        MedQDMError: the folder may not be written, or slices are not finite or of another size.
    """
    _refuse_the_input(source, folder, overwrite=overwrite)
    identity = _identity(source, [str(upscale), software_version, weights_id, *uid_entropy])
    made_at = datetime.now().astimezone()
    headers = _source_headers(source, identity, made_at)
    derivation = Derivation(
        upscale=upscale,
        description=description,
        software_version=software_version,
        weights_id=weights_id,
        series_instance_uid=make_uid("series", identity),
        frame_of_reference_uid=make_uid("frame", identity),
        made_at=made_at,
    )
    with whole_folder(folder, overwrite=overwrite) as partial:

        def save(job: tuple[int, Dataset, NDArray[np.float32]]) -> tuple[str, int]:
            k, header, hu = job
            padding = _padding(source, k, upscale)
            _check_pixels(source, hu, padding.shape, k)
            file = partial / f"IM{k + 1:04d}.dcm"
            with tolerant():
                out = derived_header(header, derivation, index=k)
                words, clipped = _to_words(hu, padding, out)
                digest = hashlib.sha256(words.tobytes()).hexdigest()
                out.SOPInstanceUID = make_uid("instance", identity, str(k), digest)
                _save(out, words, file)
                check_slice(file, header, padding)
            return file.name, clipped

        paired = zip(range(len(headers)), headers, slices, strict=True)
        saved = list(map_behind(save, paired, _SLICES_BEHIND))
        report = WriteReport(
            num_slices=len(saved),
            num_clipped=sum(clipped for _, clipped in saved),
            series_instance_uid=derivation.series_instance_uid,
            files=tuple(name for name, _ in saved),
        )
        if extra is not None:
            extra(partial, report)
    return report


def _refuse_the_input(source: Volume, folder: Path, *, overwrite: bool) -> None:
    """Overwriting must never replace the series that is being read."""
    if not (overwrite and folder.is_dir() and source.source.kind == "dicom"):
        return
    own = {str(header.SeriesInstanceUID) for header in source.source.headers}
    if own & set(scan(folder).series):
        raise MedQDMError(
            f"{folder}: the output folder must not be the input's, got a folder that holds the "
            "series itself; choose another one"
        )


def _identity(source: Volume, entropy: Sequence[str]) -> str:
    """A digest of all that decides about the output: source UIDs and pixels, and the entropy."""
    digest = hashlib.sha256(b"".join(slice_digests(source.hu)))
    digest.update(source.origins_mm.tobytes())
    if source.source.kind == "dicom":
        for header in source.source.headers:
            uids = (header.get("SeriesInstanceUID"), header.get("SOPInstanceUID"))
            digest.update(repr([str(uid) for uid in uids]).encode())
    digest.update(repr(list(entropy)).encode())
    return digest.hexdigest()


def _source_headers(source: Volume, identity: str, made_at: datetime) -> tuple[Dataset, ...]:
    if source.source.kind == "dicom":
        return tuple(source.source.headers)
    return blank_headers(source, identity=identity, made_at=made_at)


def _padding(source: Volume, k: int, upscale: int) -> NDArray[np.bool_]:
    if source.padding is None:
        return np.zeros([side * upscale for side in source.hu.shape[1:]], dtype=bool)
    return source.padding[k].repeat(upscale, axis=0).repeat(upscale, axis=1)


def _check_pixels(source: Volume, hu: NDArray[np.float32], shape: tuple[int, ...], k: int) -> None:
    if hu.shape != shape or not np.isfinite(hu).all():
        raise MedQDMError(
            f"{source.source.label}: enhanced slice {k + 1} must be finite HU of shape {shape}, "
            f"got shape {hu.shape} with {np.count_nonzero(~np.isfinite(hu))} NaN or infinite; "
            "nothing was written"
        )


def _to_words(
    hu: NDArray[np.float32], padding: NDArray[np.bool_], header: Dataset
) -> tuple[NDArray[np.integer], int]:
    """HU to stored words by the slice's own slope and intercept, padding put back.

    Clipped before packing: readers wrap what BitsStored cannot hold. No measured pixel may equal
    the padding value, so those that would are moved beside it.
    """
    slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
    low, high = stored_range(header)
    exact = np.rint((hu.astype(np.float64) - intercept) / slope)
    words = exact.clip(low, high)
    num_clipped = int(np.count_nonzero((words != exact) & ~padding))
    ends = padding_ends(header)
    if ends is not None:
        inside = (words >= min(ends)) & (words <= max(ends))
        words[inside] = max(ends) + 1 if max(ends) < high else min(ends) - 1
        words[padding] = ends[0]
    return words.astype("<i2" if header.PixelRepresentation else "<u2"), num_clipped


def _save(header: Dataset, words: NDArray[np.integer], file: Path) -> None:
    header.add_new("PixelData", "OW", words.tobytes())
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _IMPLEMENTATION_UID
    meta.ImplementationVersionName = f"MEDQDM_{header.SoftwareVersions[0]}"[:16]
    header.file_meta = meta
    header.preamble = b"\0" * 128
    header.save_as(file, enforce_file_format=True)
