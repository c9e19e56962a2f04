"""Output: an enhanced volume on its way into a folder, slice by slice."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from medqdm.errors import MedQDMError
from medqdm.io.dicom_check import check_series
from medqdm.io.dicom_open import one_line_for, shallow_copy
from medqdm.io.dicom_pixels import to_hu
from medqdm.io.dicom_scan import tolerant
from medqdm.io.dicom_write import (
    DerivedSeries,
    SeriesSettings,
    padding_of,
    refuse_the_input,
    slice_files,
)
from medqdm.io.itk import write_itk
from medqdm.io.nifti import write_nifti
from medqdm.io.whole import check_room, whole_folder
from medqdm.volume import SliceStack, Volume

FORMATS = {"dicom": "", "nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha"}
RUN_FILE = "run.json"  # tells an output of ours from other folders


class Output:
    """The enhanced slices of a volume, in a folder that has not appeared yet.

    Args:
        folder: from ``whole_folder``.
        source: the volume as it was read.
        settings: of the series; other formats use the factor alone.
        file_format: one of ``FORMATS``.

    Attributes:
        folder: what will appear: for files to appear with the slices.
        slices: files of a DICOM series so far, in slice order.
        num_clipped: pixels so far that the words of the format could not hold, padding aside.
    """

    def __init__(
        self, folder: Path, source: Volume, settings: SeriesSettings, file_format: str
    ) -> None:
        self.folder = folder
        self.slices: list[Path] = []
        self.num_clipped = 0
        self._source, self._format = source, file_format
        self._upscale = settings.upscale
        self._num_slices = 0
        self._parts = folder.parent / "parts"  # needed until the folder appears
        self._parts.mkdir()
        self._series: DerivedSeries | None = None
        if file_format == "dicom":
            self._series = DerivedSeries(source, settings, datetime.now().astimezone())

    def take(self, z: int, hu: NDArray[np.float32], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the next slice.

        Args:
            z: its index.
            hu: ``(y * upscale, x * upscale)``.
            arrays: what else is to be kept of it until the end, by name.

        Raises:
            MedQDMError: the slice is not finite or misleads, or the disk is full.
            ValueError: it is not the next one, since one before it failed.
        """
        if z != self._num_slices:
            raise ValueError(f"slice {z} cannot follow {self._num_slices} slices")
        for name, array in arrays.items():
            self._keep(z, name, array)
        if self._series is not None:
            file, clipped = self._series.save(z, hu, self.folder)
            self.slices.append(file)
        else:
            words, clipped = self._to_int16(z, hu)
            self._keep(z, "words", words)
        self.num_clipped += clipped
        self._num_slices += 1

    def array(self, name: str, z: int) -> NDArray[Any]:
        """What ``take`` was given by that name for slice ``z``."""
        array: NDArray[Any] = np.load(self._part(z, name))
        return array

    def arrays(self, name: str) -> Iterator[NDArray[Any]]:
        """The same for all slices."""
        return (self.array(name, z) for z in range(self._num_slices))

    def hu(self, z: int) -> NDArray[np.float32]:
        """Slice ``z`` ``(y * upscale, x * upscale)`` as it was written."""
        if self._series is None:
            return self.array("words", z).astype(np.float32)
        file = self.slices[z]
        with tolerant():
            return to_hu(pydicom.dcmread(file), where=file.name).hu

    def finish(self) -> None:
        """Make the files of the whole volume, once all slices are there.

        Raises:
            MedQDMError: the files are not the whole series of this source, or the format cannot
                hold its geometry.
        """
        if self._series is not None:
            self._series.finish(self.folder, self.num_clipped)
            return
        z, height, width = self._source.shape
        shape = z, height * self._upscale, width * self._upscale
        enlarged = self._source.with_pixels(SliceStack(shape, np.float32, self.hu))
        write = write_nifti if self._format == "nifti" else write_itk
        write(self._source, enlarged, self.folder / f"enhanced{FORMATS[self._format]}")

    def _to_int16(self, z: int, hu: NDArray[np.float32]) -> tuple[NDArray[np.int16], int]:
        """HU of slice ``z`` as words, and how many were clipped, padding aside."""
        if not np.isfinite(hu).all():
            raise MedQDMError(
                f"slice {z + 1}: enhanced voxels must be finite HU, got NaN or infinite"
            )
        limits, exact = np.iinfo(np.int16), np.rint(hu)
        words = exact.clip(limits.min, limits.max)
        is_clipped = words != exact
        if is_clipped.any():
            is_clipped &= ~padding_of(self._source, z, self._upscale)
        return words.astype(np.int16), int(np.count_nonzero(is_clipped))

    def _keep(self, z: int, name: str, array: NDArray[Any]) -> None:
        words = BytesIO()
        np.save(words, array)  # into memory: numpy does not say what a disk said
        self._part(z, name).write_bytes(words.getvalue())

    def _part(self, z: int, name: str) -> Path:
        return self._parts / f"{z + 1:04d}.{name}.npy"


@contextmanager
def open_output(
    source: Volume,
    folder: Path,
    settings: SeriesSettings,
    *,
    file_format: str = "dicom",
    bytes_beside: int = 0,
    bytes_at_end: int = 0,
    overwrite: bool = False,
) -> Iterator[Output]:
    """A place for enhanced slices; the folder appears whole when the block ends well.

    Args:
        source: the volume as it was read.
        folder: to appear.
        settings: of the series.
        file_format: one of ``FORMATS``.
        bytes_beside: what is kept beside each output pixel, for the look at the disk's free space.
        bytes_at_end: what comes for each of them at the end, likewise.
        overwrite: whether an earlier output may be replaced, whole and at the end.

    Raises:
        MedQDMError: the folder is in use, the disk too small, or the format no choice.
    """
    _check_format(file_format, settings)
    refuse_the_input(source, folder, overwrite=overwrite)
    with whole_folder(folder, overwrite=overwrite, marker=RUN_FILE) as new:
        is_plain = settings.transfer_syntax == "explicit"
        # the size of compressed words is not known before
        px_bytes = (2 if is_plain else 0) + bytes_beside + bytes_at_end
        instead = ", or a compressed --transfer-syntax" if is_plain else ""
        check_room(folder, math.prod(source.shape) * settings.upscale**2 * px_bytes,
                   instead=instead)  # fmt: skip
        yield Output(new, source, settings, file_format)


def is_complete(source: Volume, folder: Path, file_format: str) -> bool:
    """Whether a folder still holds every file of an output of this source, and of its patient.

    Args:
        source: the volume as it was read.
        folder: the output.
        file_format: one of ``FORMATS``.
    """
    if file_format != "dicom":
        return (folder / f"enhanced{FORMATS[file_format]}").is_file()
    try:
        files = slice_files(folder, len(source.hu))
        if source.source.kind == "dicom":
            with tolerant(), one_line_for(folder.name):
                check_series(files, [shallow_copy(header) for header in source.source.headers])
    except (MedQDMError, OSError):
        return False
    return True


def _check_format(file_format: str, settings: SeriesSettings) -> None:
    if file_format not in FORMATS:
        raise MedQDMError(f"--format: must be one of {', '.join(FORMATS)}, got {file_format!r}")
    if file_format != "dicom" and settings.transfer_syntax != "explicit":
        raise MedQDMError(
            f"--transfer-syntax: must be left out with --format {file_format}, "
            f"got {settings.transfer_syntax}; it belongs to DICOM"
        )
