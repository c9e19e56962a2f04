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

from medqdm.errors import MedQDMError
from medqdm.io.dicom_blank import blank_headers
from medqdm.io.dicom_check import check_series, check_slice
from medqdm.io.dicom_header import (
    SERIES_DIGITS,
    Derivation,
    common_frame,
    derived_header,
    drop_narrow_mappings,
    new_series_number,
)
from medqdm.io.dicom_open import one_line_for
from medqdm.io.dicom_pixels import padding_ends, stored_range
from medqdm.io.dicom_scan import scan, tolerant
from medqdm.io.dicom_syntax import SYNTAXES, set_pixels
from medqdm.io.dicom_uid import make_uid
from medqdm.io.identity import digest_source
from medqdm.io.whole import whole_folder
from medqdm.streaming import map_behind
from medqdm.volume import Volume

SLICES_BEHIND = 2  # written while the next one is made
DATES = ("now", "source")
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


@dataclass(frozen=True)
class SeriesSettings:
    """What a derived series says of itself, and how it is stored.

    Args:
        upscale: in-plane factor.
        description: what was done, for DerivationDescription: ASCII, no host names or paths.
        software_version: of medqdm.
        weights_id: names the weights, such as the start of their checksum.
        uid_entropy: all that the pixels depend on besides source and weights: seed, settings,
            kind of device. The same source and entropy give the same UIDs.
        transfer_syntax: one of ``SYNTAXES``; all of them lossless.
        dates: ``now``: the new series has today's date; ``source``: it has that of the source,
            which fits where the study's dates were shifted, and makes the files the same every
            time.

    Raises:
        MedQDMError: no such transfer syntax or dates.
    """

    upscale: int
    description: str
    software_version: str
    weights_id: str
    uid_entropy: Sequence[str]
    transfer_syntax: str = "explicit"
    dates: str = "now"

    def __post_init__(self) -> None:
        if self.transfer_syntax not in SYNTAXES:
            raise MedQDMError(
                f"--transfer-syntax: must be one of {', '.join(SYNTAXES)}, "
                f"got {self.transfer_syntax!r}"
            )
        if self.dates not in DATES:
            raise MedQDMError(f"--dates: must be one of {', '.join(DATES)}, got {self.dates!r}")


class DerivedSeries:
    """A derived CT series in the making: slices to files, each checked as it lies on the disk.

    Args:
        source: the volume as it was read; a volume that was no DICOM gets a new study.
        settings: see ``SeriesSettings``.
        made_at: when the series was begun, with its time zone.

    Attributes:
        series_instance_uid: of the new series.

    Raises:
        MedQDMError: the source has no header that a DICOM series could have.
    """

    def __init__(self, source: Volume, settings: SeriesSettings, made_at: datetime) -> None:
        self._source, self._settings = source, settings
        self._identity = identify(source, settings)
        begun = None if settings.dates == "source" else made_at
        self._headers = _source_headers(source, self._identity, begun)
        self.series_instance_uid = make_uid("series", self._identity)
        with tolerant(), one_line_for(source.source.label):
            digits = _series_digits(source, settings)
            series_number = new_series_number(self._headers[0], settings.upscale, digits)
        self._derivation = Derivation(
            upscale=settings.upscale,
            description=settings.description,
            software_version=settings.software_version,
            weights_id=settings.weights_id,
            series_instance_uid=self.series_instance_uid,
            series_number=series_number,
            acquisition=source.source.acquisition,
            frame_of_reference_uid=common_frame(self._headers) or make_uid("frame", self._identity),
            made_at=begun,
        )

    def save(self, k: int, hu: NDArray[np.float32], folder: Path) -> tuple[Path, int]:
        """Write slice ``k`` and check it.

        Args:
            k: index of the slice.
            hu: ``(y * upscale, x * upscale)`` in HU.
            folder: where the file goes.

        Returns:
            The file, and how many of its pixels were clipped.

        Raises:
            MedQDMError: pixels that are not finite or of another size, or a file that would
                mislead a reader.
        """
        header = self._headers[k]
        padding = padding_of(self._source, k, self._settings.upscale)
        _check_pixels(self._source, hu, padding.shape, k)
        file = folder / _slice_name(k)
        with tolerant(), one_line_for(f"header of slice {k + 1}"):
            out = derived_header(header, self._derivation, index=k)
            words, clipped = _to_words(hu, padding, out)
            measured = words[~padding]
            if measured.size:
                drop_narrow_mappings(out, int(measured.min()), int(measured.max()))
            digest = hashlib.sha256(words.tobytes()).hexdigest()
            out.SOPInstanceUID = make_uid("instance", self._identity, str(k), digest)
            _save(out, words, file, self._settings.transfer_syntax)
            check_slice(file, header, padding, words=words)
        return file, clipped

    def finish(self, folder: Path, num_clipped: int) -> WriteReport:
        """Check the files of a complete series against each other and against their sources.

        Args:
            folder: where they lie.
            num_clipped: pixels that were clipped in all of them.

        Raises:
            MedQDMError: a slice is missing or one too many, or the files are not one series of the
                source's patient.
        """
        files = slice_files(folder, len(self._headers))
        with tolerant(), one_line_for("derived series"):
            check_series(files, self._headers)
        names = tuple(file.name for file in files)
        return WriteReport(len(names), num_clipped, self.series_instance_uid, names)


def _slice_name(k: int) -> str:
    return f"IM{k + 1:04d}.dcm"


def slice_files(folder: Path, num_slices: int) -> list[Path]:
    """The files of a derived series, in slice order.

    Args:
        folder: where they lie.
        num_slices: of the series.

    Raises:
        MedQDMError: one is missing, or there is another.
    """
    names = [_slice_name(k) for k in range(num_slices)]
    found = {file.name for file in folder.glob("*.dcm")}
    if found != set(names):
        raise MedQDMError(
            f"a derived series must have {num_slices} slices like its source and no other file, "
            f"got {len(found)}; nothing was written"
        )
    return [folder / name for name in names]


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
    transfer_syntax: str = "explicit",
    dates: str = "now",
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
        upscale: see ``SeriesSettings``, as are the next six.
        description: as above.
        software_version: as above.
        weights_id: as above.
        uid_entropy: as above.
        transfer_syntax: as above.
        dates: as above.
        overwrite: whether a folder with files in it may be replaced, whole and at the end.
        extra: called with the hidden folder before it appears, for files to appear with it.

    Raises:
        MedQDMError: the folder may not be written, or slices are not finite or of another size.
    """
    refuse_the_input(source, folder, overwrite=overwrite)
    settings = SeriesSettings(
        upscale=upscale,
        description=description,
        software_version=software_version,
        weights_id=weights_id,
        uid_entropy=tuple(uid_entropy),
        transfer_syntax=transfer_syntax,
        dates=dates,
    )
    series = DerivedSeries(source, settings, datetime.now().astimezone())
    with whole_folder(folder, overwrite=overwrite) as partial:
        paired = zip(range(len(source.hu)), slices, strict=True)
        saved = list(map_behind(lambda job: series.save(*job, partial), paired, SLICES_BEHIND))
        report = series.finish(partial, sum(clipped for _, clipped in saved))
        if extra is not None:
            extra(partial, report)
    return report


def refuse_the_input(source: Volume, folder: Path, *, overwrite: bool) -> None:
    """Overwriting must never replace the series that is being read.

    Raises:
        MedQDMError: the folder holds a file of the same series.
    """
    if not (overwrite and folder.is_dir() and source.source.kind == "dicom"):
        return
    own = {str(header.SeriesInstanceUID) for header in source.source.headers}
    if own & set(scan(folder).series):
        raise MedQDMError(
            f"{folder}: the output folder must not be the input's, got a folder that holds the "
            "series itself; choose another one"
        )


def identify(source: Volume, settings: SeriesSettings) -> str:
    """A digest of all that decides about the output: the whole source, and the entropy."""
    parts = [digest_source(source), *_entropy(settings)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _entropy(settings: SeriesSettings) -> list[str]:
    """All but the source that decides about the pixels."""
    return [
        str(settings.upscale), settings.software_version, settings.weights_id,
        *settings.uid_entropy,
    ]  # fmt: skip


def _series_digits(source: Volume, settings: SeriesSettings) -> int:
    """Four digits from the source's series and all settings; acquisitions of it are neighbours."""
    header = source.source.headers[0] if source.source.kind == "dicom" else {}
    parts = [str(header.get("SeriesInstanceUID")), *_entropy(settings)]
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return (int.from_bytes(digest[:8], "big") + source.source.acquisition) % SERIES_DIGITS


def _source_headers(source: Volume, identity: str, made_at: datetime | None) -> tuple[Dataset, ...]:
    if source.source.kind == "dicom":
        return tuple(source.source.headers)
    return blank_headers(source, identity=identity, made_at=made_at)


def padding_of(source: Volume, k: int, upscale: int) -> NDArray[np.bool_]:
    """The padding of slice ``k`` at the new size, ``(y * upscale, x * upscale)``."""
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


def _save(header: Dataset, words: NDArray[np.integer], file: Path, syntax: str) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.ImplementationClassUID = _IMPLEMENTATION_UID
    meta.ImplementationVersionName = f"MEDQDM_{header.SoftwareVersions[0]}"[:16]
    header.file_meta = meta
    header.preamble = b"\0" * 128
    set_pixels(header, words, syntax)
    header.save_as(file, enforce_file_format=True)
