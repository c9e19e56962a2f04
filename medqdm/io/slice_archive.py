"""An npz file that is written slice by slice."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SliceArchive:
    """An npz file of one array ``(z, rows, columns)``, slice by slice: memory stays flat.

    Args:
        path: the file.
        name: of the array.
        num_slices: z.
    """

    def __init__(self, path: Path, name: str, num_slices: int) -> None:
        self._num_slices = num_slices
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        entry = zipfile.ZipInfo(f"{name}.npy")  # without the time: the same array, the same file
        entry.compress_type = zipfile.ZIP_DEFLATED
        self._array = self._archive.open(entry, "w", force_zip64=True)
        self._is_empty = True

    def add(self, image: NDArray[Any]) -> None:
        """Take the next slice ``(rows, columns)``."""
        if self._is_empty:
            header = np.lib.format.header_data_from_array_1_0(image)
            header["shape"] = (self._num_slices, *image.shape)
            np.lib.format.write_array_header_1_0(self._array, header)
            self._is_empty = False
        self._array.write(np.ascontiguousarray(image).tobytes())

    def close(self) -> None:
        """End the file, once all slices are there."""
        try:
            self._array.close()
        finally:  # or it tries once more, aloud, when it is cleared away
            self._archive.close()
