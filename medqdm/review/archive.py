"""Archive: one array of an npz file, unpacked once, then read slice by slice."""

import shutil
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqdm.errors import MedQDMError
from medqdm.volume import Scalar, SliceStack

_PROBLEMS = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile)


def open_archive(path: Path, name: str, dtype: type[Scalar]) -> SliceStack[Scalar] | None:
    """The slices of an array ``(z, rows, columns)`` of an npz file.

    Nothing but its header is read before the first slice is asked for; then it is unpacked to a
    temporary file, because a packed one cannot be entered in the middle.

    Args:
        path: the file; None is given if there is none.
        name: of the array.
        dtype: that it must have.

    Raises:
        MedQDMError: the file is damaged or holds something else.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as packed:
            shape, is_fortran, found = _read_header(packed)
        if is_fortran or found != np.dtype(dtype) or len(shape) != 3:
            raise ValueError(f"{found} of shape {shape}")
    except _PROBLEMS as error:
        raise _damaged(path, error) from None
    return SliceStack(shape, dtype, _Unpacked(path, name).read)


class _Unpacked:
    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._lock = threading.Lock()
        self._array: NDArray[Any] | None = None

    def read(self, z: int) -> NDArray[Any]:
        with self._lock:
            if self._array is None:
                self._array = self._unpack()
        return np.array(self._array[z])

    def _unpack(self) -> NDArray[Any]:
        try:
            with (
                zipfile.ZipFile(self._path) as archive,
                archive.open(f"{self._name}.npy") as packed,
                tempfile.TemporaryFile() as file,
            ):
                shape, _, dtype = _read_header(packed)
                shutil.copyfileobj(packed, file, 1 << 20)
                file.flush()
                return np.memmap(file, dtype=dtype, mode="r", shape=shape)
        except _PROBLEMS as error:
            raise _damaged(self._path, error) from None


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _damaged(path: Path, error: Exception) -> MedQDMError:
    return MedQDMError(
        f"{path.name}: must be as medqdm enhance wrote it, got {type(error).__name__} on reading "
        "it; enhance the series again"
    )
