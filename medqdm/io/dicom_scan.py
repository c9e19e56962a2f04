"""Scan: which CT slices lie in a folder tree, found by content, and what else lies there."""

import logging
import os
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.uid import UID, CTImageStorage, MediaStorageDirectoryStorage

from medqdm.errors import MedQDMError, system_number, trace
from medqdm.io.dicom_frames import ENHANCED, Slice, split_frames
from medqdm.io.dicom_open import one_line_for, read_header
from medqdm.io.formats import ITK_ENDINGS, NIFTI_ENDINGS, has_ending

DAMAGED, UNREADABLE = "damaged DICOM file", "file or folder that cannot be opened"
NAMELESS, CLASSLESS = "CT without series UID", "DICOM without SOPClassUID"
ARCHIVE = "archive (unpack it first)"
_ARCHIVES = (b"PK\3\4", b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"BZh", b"\xfd7zXZ\0")
_SLICE_ENDINGS = (".dcm", ".dicom", ".ima")
_APPLE_DOUBLE = b"\0\5\x16\7"  # what macOS writes beside a file under its name
_PREAMBLE = 132
_MAY_BE_SLICES = (DAMAGED, UNREADABLE, NAMELESS, CLASSLESS)
_NAMED_FILES = 5  # in one message
logger = logging.getLogger(__name__)
_TOLERANCE = threading.RLock()  # what tolerant() changes belongs to the whole process


@dataclass(frozen=True, eq=False)
class Scan:
    """What a folder tree holds.

    Args:
        series: CT slices by SeriesInstanceUID, in the order of their paths.
        skipped: why files were left out, with their numbers.
        lost: the files among them that may be slices, damaged, cut short or not to be opened, and
            the reason of each.
    """

    series: dict[str, list[Slice]]
    skipped: Counter[str]
    lost: dict[Path, str]

    @property
    def unopened(self) -> tuple[Path, ...]:
        """The lost files that the system does not let us open."""
        return tuple(file for file, reason in self.lost.items() if reason == UNREADABLE)

    def why_nothing(self) -> str:
        """The reasons for leaving files out, in one phrase."""
        reasons = [f"{count} x {reason}" for reason, count in self.skipped.most_common()]
        return "; ".join(reasons) or "no files"


@contextmanager
def tolerant() -> Iterator[None]:
    """Read values as they are: a slice is judged by what medqdm needs, not by every tag in it.

    pydicom's own warnings and log are muted because they quote values, which may name a patient.
    Threads wait for each other here.
    """
    log = logging.getLogger("pydicom")
    with _TOLERANCE, warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        level = log.level
        log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            log.setLevel(level)


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
    lost: dict[Path, str] = {}
    with tolerant():
        for file in files:
            found = _probe(file)
            if isinstance(found, str):
                skipped[found] += 1
                if found in _MAY_BE_SLICES:
                    lost[file] = found
            else:
                series[found[0]] += found[1]
    return Scan(dict(series), skipped, lost)


def names_of(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - _NAMED_FILES
    return ", ".join(names[:_NAMED_FILES]) + (f" and {more} more" if more > 0 else "")


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise MedQDMError(f"{path}: must be a CT series, got nothing there; check the path")
    if path.is_file():
        return _dicomdir_files(path) if path.name.upper() == "DICOMDIR" else [path]
    return files_below(path)


def files_below(folder: Path) -> list[Path]:
    """Every file of a folder tree, and folders that cannot be opened, in order.

    Links are followed; a folder that several lead to is visited once.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def keep(error: OSError) -> None:
        found.append(Path(error.filename))

    for top, folders, names in os.walk(folder, onerror=keep, followlinks=True):
        try:
            status = Path(top).stat()
        except OSError as error:
            folders.clear()
            keep(error)
            continue
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        found += [Path(top) / name for name in names]
    return sorted(found)


def _dicomdir_files(path: Path) -> list[Path]:
    try:
        with tolerant(), one_line_for(path.name):
            found = read_header(path)
            if found is None or found[0].get("DirectoryRecordSequence") is None:
                raise EOFError
            records = found[0].DirectoryRecordSequence
            ids = [record.ReferencedFileID for record in records if record.get("ReferencedFileID")]
    except (MedQDMError, OSError):
        raise MedQDMError(
            f"{path}: a DICOMDIR must be readable, got a damaged one; give the folder instead"
        ) from None
    parts: Iterable[list[str]] = ([i] if isinstance(i, str) else [str(p) for p in i] for i in ids)
    files = [_below(path, file_id) for file_id in parts]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise MedQDMError(
            f"{path}: every file of a DICOMDIR must be there, got {len(missing)} missing, first "
            f"{missing[0].name}; copy the whole medium, or give the folder instead"
        )
    return files


def _below(path: Path, file_id: list[str]) -> Path:
    """The file of a DICOMDIR record: below its folder, and in the case that the disk uses."""
    if any(part in ("", ".", "..") or set(part) & set("/\\\0") for part in file_id):
        raise MedQDMError(
            f"{path}: a DICOMDIR must name files below its own folder, got another path; "
            "give the folder instead"
        )
    for parts in (file_id, [part.lower() for part in file_id]):
        file = path.parent.joinpath(*parts)
        if file.is_file():
            return file
    return path.parent.joinpath(*file_id)


def _probe(file: Path) -> tuple[str, list[Slice]] | str:
    """The series UID and the CT slices in a file, or why there are none."""
    if has_ending(file, (*NIFTI_ENDINGS, *ITK_ENDINGS)):
        return "NIfTI, NRRD or MetaImage file (give it by its own name)"
    try:
        if file.is_dir():
            return UNREADABLE
        if not file.is_file():
            return "no regular file"
        found = read_header(file)
        if found is None:
            return _name_of_other(file)
        slices = _slices(file, *found)
        return slices if isinstance(slices, str) else (str(found[0].SeriesInstanceUID), slices)
    except Exception as error:  # whatever one file raises must not cost the others
        logger.debug("left out %s\n%s", file, trace(error))
        return UNREADABLE if system_number(error) else DAMAGED


def _name_of_other(file: Path) -> str:
    """What a file is that does not begin like DICOM: a slice may have lost its beginning."""
    with file.open("rb") as stream:
        head = stream.read(_PREAMBLE)
    if head.startswith(_ARCHIVES):
        return ARCHIVE
    ending = file.suffix.lower()
    is_blank = not head.strip(b"\0") and (not ending or ending[1:].isdecimal())
    is_named = ending in _SLICE_ENDINGS and not head.startswith(_APPLE_DOUBLE)
    return DAMAGED if is_blank or is_named else "not DICOM"


def _slices(file: Path, header: Dataset, position: int) -> list[Slice] | str:
    sop_class = UID(str(header.get("SOPClassUID") or ""))
    if sop_class != CTImageStorage and sop_class not in ENHANCED:
        return _name_of_class(sop_class)
    if not header.get("SeriesInstanceUID"):
        return NAMELESS
    if sop_class == CTImageStorage:
        return [Slice(file, header, position=position)]
    try:
        return split_frames(file, header, position)
    except MedQDMError:
        return "multi-frame CT whose frames are not described one by one"


def _name_of_class(sop_class: UID) -> str:
    """The name of an object's class; of an unknown one not even the UID, which may be anything."""
    if sop_class == MediaStorageDirectoryStorage:
        return "DICOMDIR"
    if not sop_class:
        return CLASSLESS
    return sop_class.name if sop_class.name != sop_class else "DICOM object of an unknown class"
