"""Claims: what the header of a NIfTI, NRRD or MetaImage file says, held against the file itself.

Readers ask for as much memory as a header claims, and open whatever file it names.
"""

import gzip
import math
import re
import zlib
from pathlib import Path

import psutil

from medqdm.errors import MedQDMError

_BELIEVED = 1 << 22  # bytes that any header may claim without proof
_HEADER = 1 << 16  # bytes in which a header with named fields must end
_MOST_INFLATION = 1040  # times; deflate cannot do more
_DATA_FILE = re.compile(rb"^\s*(?:data\s*file|elementdatafile)\s*[:=][ \t]*(.+?)\s*$", re.I | re.M)
_PACKED_SIZE = re.compile(rb"^\s*compresseddatasize\s*=\s*(\d+)", re.I | re.M)
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
    _check_memory(path, num_voxels)


def check_itk_claim(path: Path, num_voxels: int, num_bytes: int) -> None:
    """Refuse an NRRD or MetaImage file that cannot hold its voxels, or that names a foreign file.

    Args:
        path: the file with the header.
        num_voxels: as its header claims.
        num_bytes: of those voxels.

    Raises:
        MedQDMError: the files are smaller, memory is, or the data lie outside of the folder.
    """
    data = data_files(path)
    held = sum(file.stat().st_size for file in data)
    with path.open("rb") as file:
        packed = _PACKED_SIZE.search(_named_fields(file.read(_HEADER)))
    if packed is not None:
        _check(path, int(packed[1]), held)
    _check(path, num_bytes, held * _MOST_INFLATION)
    _check_memory(path, num_voxels)


def data_files(path: Path) -> list[Path]:
    """The files with the voxels of an NRRD or MetaImage header: its own, or those beside it.

    Raises:
        MedQDMError: the header names a file outside of its folder, or none that is there.
    """
    with path.open("rb") as file:
        found = _DATA_FILE.search(_named_fields(file.read(_HEADER)))
    name = found[1].decode("utf-8", "replace") if found else "LOCAL"
    if name.upper() == "LOCAL":
        return [path]
    first, *more = name.split()
    if first.upper().startswith("LIST") or "%" in name or more:
        files = [file for file in path.parent.iterdir() if file.is_file()]
    else:
        files = [path.parent / name]
    parts = Path(name).parts
    if ".." in parts or Path(name).is_absolute() or not all(file.is_file() for file in files):
        raise MedQDMError(
            f"{path.name}: must be a whole NRRD or MetaImage file, got a header whose data file is "
            "missing or outside of its folder; it is damaged or its data file is missing"
        )
    return files


def _named_fields(head: bytes) -> bytes:
    """The part of a file's head that is text: up to the first empty line or LOCAL data."""
    ends = [head.find(mark) for mark in (b"\n\n", b"\r\n\r\n", b"\0")]
    return head[: min((end for end in ends if end >= 0), default=len(head))]


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


def _check_memory(path: Path, num_voxels: int) -> None:
    needed, free = num_voxels * _BYTES_OF_FLOATS, psutil.virtual_memory().available
    if needed > free:
        raise MedQDMError(
            f"{path.name}: must fit into memory, got {math.ceil(needed / 2**30)} GiB for "
            f"{free / 2**30:.1f} GiB that are free; cut it into smaller volumes"
        )
