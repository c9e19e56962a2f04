"""Output: an enhanced volume on its way into a folder, slice by slice; it can be resumed."""

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
from medqdm.io.dicom_pixels import to_hu
from medqdm.io.dicom_scan import tolerant
from medqdm.io.dicom_write import DerivedSeries, SeriesSettings, refuse_the_input
from medqdm.io.itk import write_itk
from medqdm.io.nifti import write_nifti
from medqdm.io.whole import Unfinished, check_room, resumable_folder
from medqdm.volume import SliceStack, Volume

FORMATS = {"dicom": "", "nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha"}
RUN_FILE = "run.json"  # tells an output of ours from other folders
_MADE_AT = "made_at"


class Output:
    """The enhanced slices of a volume, in a folder that has not appeared yet.

    Args:
        unfinished: the folder.
        source: the volume as it was read.
        settings: of the series; other formats use the factor alone.
        file_format: one of ``FORMATS``.
    """

    def __init__(
        self, unfinished: Unfinished, source: Volume, settings: SeriesSettings, file_format: str
    ) -> None:
        self._unfinished, self._source, self._format = unfinished, source, file_format
        self._upscale = settings.upscale
        self._series: DerivedSeries | None = None
        if file_format == "dicom":
            made_at = datetime.fromisoformat(unfinished.facts[_MADE_AT])
            self._series = DerivedSeries(source, settings, made_at)

    @property
    def folder(self) -> Path:
        """What will appear: for files to appear with the slices."""
        return self._unfinished.folder

    @property
    def facts(self) -> dict[str, Any]:
        """What ``open_output`` was told, or the run that began."""
        return self._unfinished.facts

    @property
    def notes(self) -> list[dict[str, Any]]:
        """The notes on the slices that are there, in order."""
        return [line["note"] for line in self._unfinished.notes]

    @property
    def num_clipped(self) -> int:
        """Pixels that the words of a DICOM series could not hold, so far."""
        return sum(line["clipped"] for line in self._unfinished.notes)

    def take(
        self,
        z: int,
        hu: NDArray[np.float32],
        arrays: Mapping[str, NDArray[Any]],
        note: Mapping[str, Any],
    ) -> None:
        """Write the next slice.

        Args:
            z: its index.
            hu: ``(y * upscale, x * upscale)``.
            arrays: what else is to be kept of it until the end, by name.
            note: the same, for JSON.

        Raises:
            MedQDMError: the slice is not finite or misleads, or the disk is full.
            ValueError: it is not the next one, since one before it failed.
        """
        if z != len(self._unfinished.notes):
            raise ValueError(f"slice {z} cannot follow {len(self._unfinished.notes)} slices")
        files = [self._keep(z, name, array) for name, array in arrays.items()]
        clipped = 0
        if self._series is not None:
            file, clipped = self._series.save(z, hu, self.folder)
        else:
            file = self._keep(z, "words", _to_int16(hu, where=f"slice {z + 1}"))
        self._unfinished.add({"note": dict(note), "clipped": clipped}, [*files, file])

    def array(self, name: str, z: int) -> NDArray[Any]:
        """What ``take`` was given by that name for slice ``z``."""
        array: NDArray[Any] = np.load(self._part(z, name))
        return array

    def arrays(self, name: str) -> Iterator[NDArray[Any]]:
        """The same for all slices."""
        return (self.array(name, z) for z in range(len(self.notes)))

    def hu(self, z: int) -> NDArray[np.float32]:
        """Slice ``z`` ``(y * upscale, x * upscale)`` as it was written."""
        if self._series is None:
            return self.array("words", z).astype(np.float32)
        file = self.folder / f"IM{z + 1:04d}.dcm"
        with tolerant():
            return to_hu(pydicom.dcmread(file), where=file.name).hu

    def finish(self) -> None:
        """Make the files of the whole volume, once all slices are there.

        Raises:
            MedQDMError: the series is not complete, or the format cannot hold its geometry.
        """
        if self._series is not None:
            names = sorted(file.name for file in self.folder.glob("IM*.dcm"))
            self._series.finish(self.folder, names, self.num_clipped)
            return
        z, height, width = self._source.shape
        shape = z, height * self._upscale, width * self._upscale
        enlarged = self._source.with_pixels(SliceStack(shape, np.float32, self.hu))
        write = write_nifti if self._format == "nifti" else write_itk
        write(self._source, enlarged, self.folder / f"enhanced{FORMATS[self._format]}")

    def _keep(self, z: int, name: str, array: NDArray[Any]) -> Path:
        file, words = self._part(z, name), BytesIO()
        np.save(words, array)  # into memory: numpy does not say what a disk said
        file.write_bytes(words.getvalue())
        return file

    def _part(self, z: int, name: str) -> Path:
        return self._unfinished.parts / f"{z + 1:04d}.{name}.npy"


@contextmanager
def open_output(  # noqa: PLR0913  (all by keyword but three)
    source: Volume,
    folder: Path,
    settings: SeriesSettings,
    *,
    identity: str,
    facts: Mapping[str, Any],
    file_format: str = "dicom",
    bytes_beside: int = 0,
    bytes_at_end: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> Iterator[Output]:
    """A place for enhanced slices; the folder appears whole when the block ends well.

    Args:
        source: the volume as it was read.
        folder: to appear.
        settings: of the series.
        identity: all that the result depends on; an interrupted run of another one is not resumed.
        facts: what a resumed run takes over from the one that began, for JSON.
        file_format: one of ``FORMATS``.
        bytes_beside: what is kept beside each output pixel, for the look at the disk's free space.
        bytes_at_end: what comes for each of them at the end, likewise.
        resume: go on where an interrupted run stopped, and keep what is done if this one is.
        overwrite: whether an earlier output may be replaced, whole and at the end.

    Raises:
        MedQDMError: the folder is in use, the disk too small, or the format no choice.
    """
    _check_format(file_format, settings)
    refuse_the_input(source, folder, overwrite=overwrite)
    facts = {**facts, _MADE_AT: datetime.now().astimezone().isoformat()}
    with resumable_folder(
        folder,
        identity=identity,
        facts=facts,
        resume=resume,
        overwrite=overwrite,
        marker=RUN_FILE,
    ) as unfinished:
        z, height, width = source.shape
        is_plain = settings.transfer_syntax == "explicit"
        missing_bytes = (2 if is_plain else 0) + bytes_beside  # how far words shrink nobody knows
        px_bytes = (z - len(unfinished.notes)) * missing_bytes + z * bytes_at_end
        instead = ", or a compressed --transfer-syntax" if is_plain else ""
        check_room(folder, height * width * settings.upscale**2 * px_bytes, instead=instead)
        yield Output(unfinished, source, settings, file_format)


def _check_format(file_format: str, settings: SeriesSettings) -> None:
    if file_format not in FORMATS:
        raise MedQDMError(f"--format: must be one of {', '.join(FORMATS)}, got {file_format!r}")
    if file_format != "dicom" and settings.transfer_syntax != "explicit":
        raise MedQDMError(
            f"--transfer-syntax: must be left out with --format {file_format}, "
            f"got {settings.transfer_syntax}; it belongs to DICOM"
        )


def _to_int16(hu: NDArray[np.float32], *, where: str) -> NDArray[np.int16]:
    if not np.isfinite(hu).all():
        raise MedQDMError(f"{where}: enhanced voxels must be finite HU, got NaN or infinite")
    limits = np.iinfo(np.int16)
    return np.rint(hu).clip(limits.min, limits.max).astype(np.int16)
