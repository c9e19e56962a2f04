"""Scan: which CT slices lie in a folder tree, found by content, and what else lies there."""

import os
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
)

from medqdm.errors import MedQDMError
from medqdm.io.formats import ITK_ENDINGS, NIFTI_ENDINGS, has_ending

_ENHANCED = {EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
_NO_PREAMBLE = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # group 0002 or 0008 comes first
_TOLERANCE = threading.RLock()  # what tolerant() changes belongs to the whole process
_BROKEN = (InvalidDicomError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError)


@dataclass(frozen=True, eq=False)
class Slice:
    """One CT file.

    Args:
        path: where it lies.
        header: its dataset without pixels, file meta included.
    """

    path: Path
    header: Dataset


@dataclass(frozen=True, eq=False)
class Scan:
    """What a folder tree holds.

    Args:
        series: CT slices by SeriesInstanceUID, in the order of their paths.
        skipped: why files were left out, with their numbers.
    """

    series: dict[str, list[Slice]]
    skipped: Counter[str]

    def why_nothing(self) -> str:
        """The reasons for leaving files out, in one phrase."""
        reasons = [f"{count} x {reason}" for reason, count in self.skipped.most_common()]
        return "; ".join(reasons) or "no files"


@contextmanager
def tolerant() -> Iterator[None]:
    """Read values as they are: a slice is judged by what medqdm needs, not by every tag in it.

    pydicom's own warnings are muted because they quote values, which may name a patient. Threads
    wait for each other here.
    """
    with _TOLERANCE, warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def scan(path: Path) -> Scan:
    """Sort the files under a folder, in a DICOMDIR or a single file into CT series.

    Args:
        path: a folder (searched to the bottom), a DICOMDIR or one DICOM file.

    Raises:
        MedQDMError: the path does not exist, or a DICOMDIR is damaged.
    """
    return scan_files(_files(path))


def scan_files(files: Iterable[Path]) -> Scan:
    """Sort files into CT series."""
    series: dict[str, list[Slice]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    with tolerant():
        for file in files:
            found = _probe(file)
            if isinstance(found, str):
                skipped[found] += 1
            else:
                series[str(found.header.SeriesInstanceUID)].append(found)
    return Scan(dict(series), skipped)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise MedQDMError(f"{path}: must be a CT series, got nothing there; check the path")
    if path.is_file():
        return _dicomdir_files(path) if path.name.upper() == "DICOMDIR" else [path]
    return sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)


def _dicomdir_files(path: Path) -> list[Path]:
    try:
        records = pydicom.dcmread(path).get("DirectoryRecordSequence", [])
    except _BROKEN:
        raise MedQDMError(
            f"{path}: a DICOMDIR must be readable, got a damaged one; give the folder instead"
        ) from None
    ids = [record.ReferencedFileID for record in records if "ReferencedFileID" in record]
    parts: Iterable[list[str]] = ([i] if isinstance(i, str) else list(i) for i in ids)
    files = [path.parent.joinpath(*part) for part in parts]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise MedQDMError(
            f"{path}: every file of a DICOMDIR must be there, got {len(missing)} missing, first "
            f"{missing[0].name}; copy the whole medium, or give the folder instead"
        )
    return files


def _probe(file: Path) -> Slice | str:
    """The CT slice in a file, or why it is none."""
    if has_ending(file, (*NIFTI_ENDINGS, *ITK_ENDINGS)):
        return "NIfTI, NRRD or MetaImage file (give it by its own name)"
    header = read_header(file)
    if header is None:
        return "not DICOM"
    sop_class = UID(str(header.get("SOPClassUID", "")))
    if sop_class != CTImageStorage:
        return _name_of_class(sop_class)
    return Slice(file, header) if header.get("SeriesInstanceUID") else "CT without series UID"


def _name_of_class(sop_class: UID) -> str:
    if sop_class == MediaStorageDirectoryStorage:
        return "DICOMDIR"
    if sop_class in _ENHANCED:
        return f"{sop_class.name} (multi-frame, not supported; convert it to single-frame CT)"
    return sop_class.name or "DICOM without SOPClassUID"


def read_header(file: Path) -> Dataset | None:
    """The dataset of a file without its pixels; None if it holds no DICOM."""
    try:
        return _dcmread(file, stop_before_pixels=True)
    except _BROKEN:
        return None


def read_whole(file: Path) -> Dataset:
    """The dataset of a file with its pixels.

    Raises:
        MedQDMError: the file is damaged.
    """
    try:
        dataset = _dcmread(file, stop_before_pixels=False)
    except (*_BROKEN, OSError):
        dataset = None
    if dataset is None or "PixelData" not in dataset:
        raise MedQDMError(
            f"{file.name}: a CT file must hold its pixels, got a truncated or damaged file; "
            "copy it again, or take it out of the series"
        )
    return dataset


def _dcmread(file: Path, *, stop_before_pixels: bool) -> Dataset | None:
    with file.open("rb") as stream:
        head = stream.read(132)
    if head[128:] == b"DICM":
        dataset = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels)
    elif head[:2] in _NO_PREAMBLE:
        dataset = pydicom.dcmread(file, stop_before_pixels=stop_before_pixels, force=True)
        if not str(dataset.get("SOPClassUID", "")).startswith("1.2.840.10008."):
            return None
    else:
        return None
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = _guessed_syntax(dataset)
    return dataset


def _guessed_syntax(dataset: Dataset) -> UID:
    """What pydicom found the encoding to be; only files without file meta need the guess."""
    implicit, little = dataset.original_encoding
    if implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
