"""Open: DICOM files of unknown origin, parsed within bounds of size, number and depth."""

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medqdm.errors import MedQDMError
from medqdm.io.dicom_uid import make_uid

MOST_ITEMS = 200_000  # of sequences in one file; each takes about a kilobyte of memory
MOST_READS = 3_000_000  # pieces that a parser asks for; an element takes two or three
MOST_INFLATED = 1 << 28  # bytes of a deflated file: more than a slice of the largest matrix has
DEEPEST = 32  # levels of sequences
LONGEST_VALUE = 1 << 18  # bytes of what is not opaque: a lookup table of 16 bits and more
MOST_VALUES = 300_000  # numbers and texts in one header; each may take half a kilobyte of memory
_OPAQUE = {"OB", "OW", "OF", "OD", "OL", "OV", "UN", "UT", "LT", "ST", "OB or OW"}
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # little and big endian
_NO_PREAMBLE = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # group 0002 or 0008 comes first
_UID = re.compile(r"[0-9A-Fa-f](?!.*\.\.)[0-9A-Fa-f.-]{0,63}")  # some write UUIDs into them


class _TooMuchError(Exception):
    """A file wants more than any CT slice needs."""


class _Metered:
    """A file that counts what its parser asks for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._reads = self._items = 0
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._reads += 1
        self._items += data[:4] in _ITEMS
        if self._reads > MOST_READS or self._items > MOST_ITEMS:
            raise _TooMuchError
        return data


@contextmanager
def one_line_for(where: str) -> Iterator[None]:
    """Whatever a parser or a value of the wrong kind raises becomes one error without the value.

    Args:
        where: what the message calls the file or series.

    Raises:
        MedQDMError: anything was raised that is none already.
    """
    try:
        yield
    except MedQDMError:
        raise
    except Exception as error:
        raise MedQDMError(
            f"{where}: must be readable DICOM, got {type(error).__name__} from its content; "
            "it is damaged: export it again, or take it out of the series"
        ) from None


def read_header(file: Path) -> tuple[Dataset, int] | None:
    """The dataset of a file without its pixels, and where they start.

    Elements whose values no parser understands, or that are too large or too deep, are left out.
    A series UID that could be no part of a file name is replaced by one that is made from it.

    Args:
        file: a regular file.

    Returns:
        The dataset with file meta, and the position of PixelData (or the end) in bytes; None if
        the file is no DICOM.

    Raises:
        MedQDMError: it is DICOM but damaged.
        OSError: it cannot be opened.
    """
    with file.open("rb") as stream:
        found = _parse(file, stream, stop_before_pixels=True)
        if found is None:
            return None
        position = stream.tell()
    with one_line_for(file.name):
        _drop_unreadable(found)
        _tame_series_uid(found)
    return found, position


def read_whole(file: Path) -> Dataset:
    """The dataset of a file with its pixels.

    Raises:
        MedQDMError: the file is damaged.
    """
    try:
        with file.open("rb") as stream:
            dataset = _parse(file, stream, stop_before_pixels=False)
    except (MedQDMError, OSError):
        dataset = None
    if dataset is None or "PixelData" not in dataset:
        raise MedQDMError(
            f"{file.name}: a CT file must hold its pixels, got a truncated or damaged file; "
            "copy it again, or take it out of the series"
        )
    return dataset


def shallow_copy(dataset: Dataset) -> Dataset:
    """A dataset of its own with the same elements, decoded or not, and the same file meta."""
    copied = Dataset({tag: dataset.get_item(tag) for tag in dataset.keys()})  # noqa: SIM118
    implicit, little = dataset.original_encoding
    if implicit is not None and little is not None:
        copied.set_original_encoding(implicit, little, dataset.original_character_set)
    copied.file_meta = dataset.file_meta
    return copied


def _parse(file: Path, stream: BinaryIO, *, stop_before_pixels: bool) -> Dataset | None:
    head = stream.read(1 << 12)
    stream.seek(0)
    has_preamble = head[128:132] == b"DICM"
    if not has_preamble and head[:2] not in _NO_PREAMBLE:
        return None
    with one_line_for(file.name):
        if DeflatedExplicitVRLittleEndian.encode() in head:
            _check_inflated(head, stream)
        dataset = pydicom.dcmread(
            _Metered(stream),
            stop_before_pixels=stop_before_pixels,
            force=not has_preamble,
        )
        dataset.buffer = None
        known = str(dataset.get("SOPClassUID", "")).startswith("1.2.840.10008.")
        if not has_preamble and not known:
            return None
        if not dataset.file_meta.get("TransferSyntaxUID"):
            dataset.file_meta.TransferSyntaxUID = _guessed_syntax(dataset)
    return dataset


def _guessed_syntax(dataset: Dataset) -> UID:
    """What pydicom found the encoding to be; only files without file meta need the guess."""
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _check_inflated(head: bytes, stream: BinaryIO) -> None:
    """A deflated file is inflated whole by its parser: find out first how large it gets."""
    start = 144 + int.from_bytes(head[140:144], "little")  # after the group length of file meta
    stream.seek(start)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    size = items = 0
    while (packed := stream.read(1 << 16)) and not inflate.eof:
        while packed:
            piece = inflate.decompress(packed, 1 << 20)
            packed = inflate.unconsumed_tail
            size += len(piece)
            items += sum(piece.count(item) for item in _ITEMS)
            if size > MOST_INFLATED or items > MOST_ITEMS:
                raise _TooMuchError
    stream.seek(0)


def _drop_unreadable(dataset: Dataset) -> None:
    """Try every element on a copy, so that those which are merely kept stay as they were."""
    _drop_where(dataset, dataset.get_item)
    copied, trial = shallow_copy(dataset), _Trial()
    _drop_where(dataset, lambda tag: trial.element(copied, tag))


def _drop_where(dataset: Dataset, attempt: Callable[[BaseTag], object]) -> None:
    for tag in list(dataset.keys()):
        try:
            attempt(tag)
        except Exception:  # whatever it is, the value is of no use
            del dataset[tag]


class _Trial:
    """Decodes elements to see whether they can be, up to as many values as a CT header may hold."""

    def __init__(self) -> None:
        self._values = 0

    def element(self, dataset: Dataset, tag: BaseTag, depth: int = 0) -> None:
        """Decode one element and all below it, or raise whatever stands in the way."""
        raw = dataset.get_item(tag)
        if isinstance(raw, RawDataElement):
            self._count(raw)
        element = dataset[tag]
        if element.VR != "SQ":
            return
        if depth >= DEEPEST or not isinstance(element.value, Sequence):
            raise _TooMuchError
        for item in element.value:
            for inner in list(item.keys()):
                self.element(item, inner, depth + 1)

    def _count(self, raw: RawDataElement) -> None:
        value = raw.value or b""
        vr = raw.VR or _vr_of(raw.tag)
        if vr == "SQ" or (vr == "UN" and value[:4] in _ITEMS):
            too_much = sum(value.count(item) for item in _ITEMS) > MOST_ITEMS
        elif vr in _OPAQUE:
            too_much = False
        else:
            self._values += value.count(b"\\") + len(value) // 8 + 1
            too_much = len(value) > LONGEST_VALUE or self._values > MOST_VALUES
        if too_much:
            raise _TooMuchError


def _vr_of(tag: BaseTag) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _tame_series_uid(dataset: Dataset) -> None:
    uid = str(dataset.get("SeriesInstanceUID") or "")
    if uid and not _UID.fullmatch(uid):
        tame = make_uid("series of an invalid UID", uid)
        dataset["SeriesInstanceUID"] = DataElement(0x0020000E, "UI", tame)
