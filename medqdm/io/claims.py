"""Claims: what the header of a NIfTI, NRRD or MetaImage file says, held against the file itself.

Readers ask for as much memory as a header claims, and open whatever file it names.
"""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from medqdm.errors import MedQDMError

_BELIEVED = 1 << 22  # bytes that any header may claim without proof
_HEADER = 1 << 24  # bytes in which a header with named fields must end
_DATA_FILE = ("datafile", "elementdatafile")
_SKIPS = ("lineskip", "byteskip", "headersize")  # what lies before the voxels
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32
_PIECE = 1 << 20  # bytes that are unpacked at a time
_MOST_INFLATION = 1040  # times; deflate cannot do more
_BYTES_OF_FLOATS = 8  # a voxel as float32, twice


def check_nifti_claim(path: Path, num_voxels: int, num_bytes: int) -> None:
    """Refuse a NIfTI file that cannot hold its voxels.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        num_voxels: as its header claims.
        num_bytes: of those voxels, and where they start.

    Raises:
        MedQDMError: the file is smaller, or memory is.
    """
    held = path.stat().st_size
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    if is_packed and _BELIEVED < num_bytes <= held * _MOST_INFLATION:
        held = _inflated(path, num_bytes)
    _check(path, num_bytes, held * _MOST_INFLATION if num_bytes <= _BELIEVED else held)
    _check_memory(path, num_voxels, _free_memory() // _BYTES_OF_FLOATS)


class Most(NamedTuple):
    """What a header may claim.

    Args:
        num_held: bytes of the files that hold its voxels.
        num_bytes: of voxels that they can hold.
        num_voxels: that fit into the memory that is free.
    """

    num_held: int
    num_bytes: int
    num_voxels: int


def most_of(files: Sequence[Path]) -> Most:
    """What a header may claim whose voxels are in some files, compressed or not."""
    held = sum(file.stat().st_size for file in files)
    return Most(held, held * _MOST_INFLATION, _free_memory() // _BYTES_OF_FLOATS)


def check_itk_claim(path: Path, num_voxels: int, num_bytes: int, most: Most) -> None:
    """Refuse an NRRD or MetaImage file that cannot hold its voxels.

    Args:
        path: the file with the header.
        num_voxels: as its header claims.
        num_bytes: of those voxels.
        most: that there can be.

    Raises:
        MedQDMError: the files are smaller, or memory is.
    """
    _check(path, num_bytes, most.num_bytes)
    _check_memory(path, num_voxels, most.num_voxels)


def data_files(path: Path) -> list[Path]:
    """The files with the voxels of an NRRD or MetaImage header: its own, or those beside it.

    All fields that may name one count, as readers differ in which they take.

    Raises:
        MedQDMError: the header names a file outside of its folder, or none that is there.
    """
    header = _read_header(path)
    names = [value for key, value in header.fields if key in _DATA_FILE] + header.listed
    files: set[Path] = set()
    for name in names:
        if name.upper() == "LOCAL":
            files.add(path)
        elif ".." in Path(name).parts or Path(name).is_absolute():
            raise _no_data(path)
        elif "%" in name or len(name.split()) > 1:  # a pattern
            files |= {file for file in path.parent.iterdir() if file.is_file()}
        else:
            files.add(path.parent / name)
    if not all(file.is_file() for file in files):
        raise _no_data(path)
    return sorted(files) or [path]


def _no_data(path: Path) -> MedQDMError:
    return MedQDMError(
        f"{path.name}: must be a whole NRRD or MetaImage file, got a header whose data file is "
        "missing or outside of its folder; it is damaged or its data file is missing"
    )


def check_packed(path: Path, num_bytes: int) -> None:
    """Refuse an NRRD or MetaImage file whose zlib or gzip data are damaged.

    The library does not look at their checksums, and fills what is missing with anything. Of
    MetaImage it takes as many bytes as CompressedDataSize says, and without it those of the header.

    Args:
        path: the file with the header.
        num_bytes: of its voxels.

    Raises:
        MedQDMError: a checksum is wrong, less is there, or CompressedDataSize is wrong.
    """
    header, files = _read_header(path), data_files(path)
    fields = dict(header.fields)
    is_meta = fields.get("compresseddata", "").lower().startswith(("t", "1"))
    if not is_meta and fields.get("encoding", "").lower() not in ("gzip", "gz"):
        return
    has_odd_start = any(fields.get(key, "0") != "0" for key in _SKIPS)
    if has_odd_start or (len(files) > 1 and path in files):  # by a pattern: which ones is not said
        return
    try:
        found = [_unpack(file, header.end if file == path else 0) for file in files]
    except (EOFError, zlib.error):
        found = []
    if sum(size for size, _ in found) < num_bytes:
        raise MedQDMError(
            f"{path.name}: its compressed voxels must be whole, got damaged or truncated ones; "
            "copy it again"
        )
    said = fields.get("compresseddatasize", "0" if files == [path] else str(found[0][1]))
    if is_meta and len(files) == 1 and not (said.isdecimal() and int(said) >= found[0][1]):
        raise MedQDMError(
            f"{path.name}: CompressedDataSize must be the {found[0][1]} bytes of its voxels, got "
            "less or none; save it again with another tool"
        )


def _unpack(file: Path, start: int) -> tuple[int, int]:
    """Unpack the zlib stream or the gzip members of a file from some place on.

    Returns:
        Bytes that are in them, and bytes that they take.

    Raises:
        zlib.error: they are damaged.
        EOFError: they are cut short.
    """
    size = 0
    with file.open("rb") as stream:
        stream.seek(start)
        packed = stream.read(_PIECE)
        while True:
            unpack = zlib.decompressobj(_ZLIB_OR_GZIP)
            while not unpack.eof:
                packed = packed or stream.read(_PIECE)
                if not packed:
                    raise EOFError
                size += len(unpack.decompress(packed, _PIECE))
                packed = unpack.unconsumed_tail
            packed = unpack.unused_data or stream.read(_PIECE)
            if not packed.startswith(b"\x1f\x8b"):
                return size, stream.tell() - len(packed) - start


class _Header(NamedTuple):
    """The fields of an NRRD or MetaImage file.

    Args:
        fields: name in small letters without blanks, and value.
        listed: names of data files on lines of their own.
        end: where it ends in the file.
    """

    fields: list[tuple[str, str]]
    listed: list[str]
    end: int


def _read_header(path: Path) -> _Header:
    """An NRRD header ends with an empty line, one of MetaImage with its data file.

    Raises:
        MedQDMError: it has no end.
    """
    fields: list[tuple[str, str]] = []
    with path.open("rb") as stream:
        while line := stream.readline(_HEADER):
            key, _, value = line.replace(b"=", b":", 1).partition(b":")
            if not line.strip(b"\r\n") or b"\0" in key:
                break
            name = b"".join(key.split()).lower().decode("latin-1")
            fields.append((name, value.strip().decode("utf-8", "replace")))
            if name in _DATA_FILE and fields[-1][1].upper().startswith("LIST"):
                names = stream.read(_HEADER).decode("utf-8", "replace").split("\n")
                return _Header(fields[:-1], [n.strip() for n in names if n.strip()], 0)
            if key.strip() == b"ElementDataFile":
                break
            if stream.tell() >= _HEADER:
                raise _no_data(path)
        return _Header(fields, [], stream.tell())


def _inflated(path: Path, enough: int) -> int:
    """How much is in a gzip file, counted up to ``enough`` bytes."""
    size = 0
    try:
        with gzip.open(path) as file:
            while size < enough and (piece := file.read(1 << 20)):
                size += len(piece)
    except (EOFError, OSError, zlib.error):
        pass  # what is there until the damage counts
    return size


def _check(path: Path, claimed: int, held: int) -> None:
    if claimed > held:
        raise MedQDMError(
            f"{path.name}: must hold the {claimed} bytes of voxels that its header claims, "
            f"got a file that can hold {held}; it is damaged or truncated, copy it again"
        )


def _check_memory(path: Path, num_voxels: int, most: int) -> None:
    if num_voxels > most:
        needed, free = num_voxels * _BYTES_OF_FLOATS, most * _BYTES_OF_FLOATS
        raise MedQDMError(
            f"{path.name}: must fit into memory, got {math.ceil(needed / 2**30)} GiB for "
            f"{free / 2**30:.1f} GiB that are free; cut it into smaller volumes"
        )


def _free_memory() -> int:
    return int(psutil.virtual_memory().available)
