"""Open: DICOM files of unknown origin, parsed within bounds of size, number and depth."""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pydicom
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filereader import read_sequence
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medqdm.errors import MedQDMError, system_number
from medqdm.io.dicom_uid import make_uid

# In one file, however large: items of sequences, which take about a kilobyte of memory each; pieces
# that a parser asks for, of which an element takes two or three; numbers and texts, which may take
# half a kilobyte each. A small file may hold as many as FEW says, a larger one more, so that memory
# follows the size on the disk: one for so many bytes as BYTES_FOR says.
MOST_ITEMS, MOST_READS, MOST_VALUES = 200_000, 3_000_000, 300_000
FEW_ITEMS, FEW_READS, FEW_VALUES = 2_000, 20_000, 10_000
BYTES_FOR_ITEM, BYTES_FOR_READ, BYTES_FOR_VALUE = 100, 16, 16
MOST_INFLATED = 1 << 28  # bytes of a deflated file: more than a slice of the largest matrix has
DEEPEST = 32  # levels of sequences
LONGEST_VALUE = 1 << 18  # bytes of what is not opaque: a lookup table of 16 bits and more
_OPAQUE = {"OB", "OW", "OF", "OD", "OL", "OV", "UN", "UT", "LT", "ST", "OB or OW"}
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # little and big endian
_NO_PREAMBLE = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # group 0002 or 0008 comes first
_PIECE = 1 << 20  # bytes that are inflated at a time
_HEADER = 1 << 22  # bytes of a deflated file that no pixels explain
_MATRIX = re.compile(rb"\x28\x00\x10\x00US\x02\x00(..)\x28\x00\x11\x00US\x02\x00(..)", re.S)
_UID = re.compile(r"[0-9A-Fa-f](?!.*\.\.)[0-9A-Fa-f.-]{0,63}")  # some write UUIDs into them


class _TooMuchError(Exception):
    """A file wants more than any CT slice needs."""


class _Bounds(NamedTuple):
    """What a file of some size may hold."""

    items: int
    reads: int
    values: int

    @classmethod
    def of(cls, num_bytes: int) -> "_Bounds":
        return cls(
            min(MOST_ITEMS, max(FEW_ITEMS, num_bytes // BYTES_FOR_ITEM)),
            min(MOST_READS, max(FEW_READS, num_bytes // BYTES_FOR_READ)),
            min(MOST_VALUES, max(FEW_VALUES, num_bytes // BYTES_FOR_VALUE)),
        )


class _Meter:
    """Counts what a parser asks for, up to the bounds."""

    def __init__(self, bounds: _Bounds) -> None:
        self._bounds = bounds
        self._reads = self._items = self._values = 0

    def count_read(self, data: bytes) -> None:
        self._reads += 1
        self._items += data[:4] in _ITEMS
        if self._reads > self._bounds.reads or self._items > self._bounds.items:
            raise _TooMuchError

    def count_values(self, number: int) -> None:
        self._values += number
        if self._values > self._bounds.values:
            raise _TooMuchError


class _Metered:
    """A file that counts what its parser asks for; the parser may not inflate it by itself."""

    def __init__(self, stream: BinaryIO, meter: _Meter) -> None:
        self._stream, self._meter = stream, meter
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise _TooMuchError
        data = self._stream.read(size)
        self._meter.count_read(data)
        return data


@contextmanager
def one_line_for(where: str) -> Iterator[None]:
    """Whatever a parser or a value of the wrong kind raises becomes one error without the value.

    Args:
        where: what the message calls the file or series.

    Raises:
        MedQDMError: anything was raised that is none already.
        OSError: the disk is the cause, which others put into words.
    """
    try:
        yield
    except MedQDMError:
        raise
    except Exception as error:
        if system_number(error):
            raise
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
        _drop_unreadable(found, _Bounds.of(file.stat().st_size))
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


def check_syntax(header: Dataset, *, where: str) -> None:
    """Refuse a file whose pixels may be encoded in any way.

    Args:
        header: with file meta.
        where: what the message calls the file.

    Raises:
        MedQDMError: its TransferSyntaxUID is no transfer syntax, or several.
    """
    syntax = header.file_meta.get("TransferSyntaxUID")
    is_uid = isinstance(syntax, UID) and syntax.is_valid
    if not is_uid or not (syntax.is_private or syntax.is_transfer_syntax):
        raise MedQDMError(
            f"{where}: TransferSyntaxUID must be one transfer syntax, got several or another "
            "value; its file meta is damaged: export it again, or take it out of the series"
        )


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
        size = file.stat().st_size
        is_deflated = has_preamble and DeflatedExplicitVRLittleEndian.encode() in head
        if is_deflated:
            stream = _inflated(head, stream)
            size = len(stream.getvalue())
        dataset = pydicom.dcmread(
            _Metered(stream, _Meter(_Bounds.of(size))),
            stop_before_pixels=stop_before_pixels,
            force=not has_preamble,
        )
        dataset.buffer = None
        if is_deflated:
            dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
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


def _inflated(head: bytes, stream: BinaryIO) -> BytesIO:
    """A deflated file as its parser sees it, if it is no larger than its own matrix explains."""
    start = 144 + int.from_bytes(head[140:144], "little")  # after the group length of file meta
    stream.seek(0)
    whole = BytesIO()
    meta = stream.read(start) if start < len(head) else b""
    plain = ExplicitVRLittleEndian.encode().ljust(len(DeflatedExplicitVRLittleEndian), b"\0")
    whole.write(meta.replace(DeflatedExplicitVRLittleEndian.encode(), plain))
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    most = min(MOST_INFLATED, _HEADER)
    while (packed := stream.read(1 << 16)) and not inflate.eof:
        piece = None
        while not inflate.eof and (packed or piece is None or len(piece) == _PIECE):
            piece = inflate.decompress(packed, _PIECE)
            packed = inflate.unconsumed_tail
            whole.write(piece)
            if whole.tell() > most:
                matrix = _MATRIX.search(whole.getvalue(), 0, _HEADER)
                rows, columns = struct.unpack("<2H", matrix[1] + matrix[2]) if matrix else (0, 0)
                most = min(MOST_INFLATED, _HEADER + 2 * rows * columns)
            if whole.tell() > most:
                raise _TooMuchError
    whole.seek(0)
    return whole


def _drop_unreadable(dataset: Dataset, bounds: _Bounds) -> None:
    """Try every element on a copy, so that those which are merely kept stay as they were."""
    _drop_where(dataset, dataset.get_item)
    copied, trial = shallow_copy(dataset), _Trial(bounds)
    _drop_where(dataset, lambda tag: trial.element(copied, tag))


def _drop_where(dataset: Dataset, attempt: Callable[[BaseTag], object]) -> None:
    for tag in list(dataset.keys()):
        try:
            attempt(tag)
        except Exception:  # whatever it is, the value is of no use
            del dataset[tag]


class _Trial:
    """Decodes elements to see whether they can be, up to as many as a CT header may hold."""

    def __init__(self, bounds: _Bounds) -> None:
        self._meter = _Meter(bounds)

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
            stream = _Metered(BytesIO(value), self._meter)
            is_implicit = raw.is_implicit_VR or vr == "UN"
            read_sequence(stream, is_implicit, raw.is_little_endian, len(value), "iso8859")
        elif vr not in _OPAQUE:
            self._meter.count_values(value.count(b"\\") + len(value) // 8 + 1)
            if len(value) > LONGEST_VALUE:
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
