"""Series: an enhanced series beside its source, checked to cover the same place."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqdm import io
from medqdm.config import WindowSection
from medqdm.errors import MedQDMError
from medqdm.metrics import lr_consistency_hu
from medqdm.picture import upsample_bicubic
from medqdm.volume import EDGE_TOLERANCE_MM, Volume
from medqdm.window import Window

CELL_LR_PX = 2  # side of a cell of refined.npz in input pixels
_NEW_AXIS = 2  # array axis of the slices in a file made from DICOM


@dataclass(frozen=True, eq=False)
class ReviewSlice:
    """One slice, before and after.

    Args:
        source_hu: ``(y, x)`` input in HU.
        bicubic_hu: ``(y * s, x * s)`` the input on the output's grid, nothing added.
        enhanced_hu: ``(y * s, x * s)`` the output in HU.
        refined: ``(rows, columns)`` cells of 2 x 2 input pixels whose detail was synthesised.
    """

    source_hu: NDArray[np.float32]
    bicubic_hu: NDArray[np.float32]
    enhanced_hu: NDArray[np.float32]
    refined: NDArray[np.bool_]

    @property
    def difference_hu(self) -> NDArray[np.float32]:
        """``(y * s, x * s)`` enhanced minus bicubic: all that the model added, in HU."""
        return self.enhanced_hu - self.bicubic_hu

    @property
    def lr_consistency_hu(self) -> float:
        """RMS difference of output and input on the input's grid, in HU."""
        return lr_consistency_hu(self.enhanced_hu, self.source_hu)


@dataclass(frozen=True, eq=False)
class Review:
    """An enhanced series with its source.

    Args:
        source: the input.
        enhanced: the output, ``upscale`` times finer in plane.
        refined: ``(z, rows, columns)`` cells of 2 x 2 input pixels.
        model_window: the range in HU that the model saw.
        label: what ratings call the series: nothing of the patient.

    Raises:
        MedQDMError: slices, matrix, outer edges or cells of the two do not agree.
    """

    source: Volume
    enhanced: Volume
    refined: NDArray[np.bool_]
    model_window: Window
    label: str

    def __post_init__(self) -> None:
        z, height, width = self.source.shape
        slices, rows, columns = self.enhanced.shape
        where = self.enhanced.source.label
        if slices != z:
            raise MedQDMError(
                f"{where}: must have as many slices as its source, got {slices} and {z}; "
                "give the series that it was made from"
            )
        upscale = rows // height
        if upscale < 1 or (rows, columns) != (height * upscale, width * upscale):
            raise MedQDMError(
                f"{where}: matrix must be a multiple of its source's {width} x {height}, got "
                f"{columns} x {rows}; give the series that it was made from"
            )
        moved = np.abs(self.source.corners_mm() - self.enhanced.corners_mm()).max()
        if not moved <= EDGE_TOLERANCE_MM:
            raise MedQDMError(
                f"{where}: outer edges must be those of its source, got {moved:.3f} mm between "
                "them; give the series that it was made from"
            )
        cells = (z, -(-height // CELL_LR_PX), -(-width // CELL_LR_PX))
        if self.refined.shape != cells:
            raise MedQDMError(
                f"{where}: refined.npz must hold {cells} cells, got {self.refined.shape}; "
                "enhance the series again"
            )

    @property
    def num_slices(self) -> int:
        """Slices of both series."""
        return len(self.source.hu)

    @property
    def upscale(self) -> int:
        """Output pixels per input pixel, along an axis."""
        return self.enhanced.shape[1] // self.source.shape[1]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of a slice, edge to edge, in mm."""
        (_, height, width), (y, x) = self.source.shape, self.source.spacing_mm
        return height * y, width * x

    def at(self, z: int) -> ReviewSlice:
        """One slice.

        Args:
            z: index from 0.

        Raises:
            MedQDMError: no such slice.
        """
        if not 0 <= z < self.num_slices:
            raise MedQDMError(
                f"{self.enhanced.source.label}: slice index must be 0 to {self.num_slices - 1}, "
                f"got {z}"
            )
        source_hu = self.source.hu[z]
        bicubic_hu = upsample_bicubic(source_hu, self.upscale)
        return ReviewSlice(source_hu, bicubic_hu, self.enhanced.hu[z], self.refined[z])


def load_review(
    enhanced: str | Path,
    source: str | Path,
    *,
    series: str | None = None,
    slice_axis: int | None = None,
    label: str | None = None,
) -> Review:
    """Read an output folder of ``medqdm enhance`` and the series it was made from.

    Args:
        enhanced: the output folder, in any of its formats.
        source: the input.
        series: its SeriesInstanceUID, where several lie there.
        slice_axis: its array axis of the slices, where spacings do not tell (NIfTI, NRRD, MHA).
        label: what ratings call the series, nothing of the patient; None: the start of a hash of
            its SeriesInstanceUID (of its pixels, where it has none).

    Raises:
        MedQDMError: not such a folder, or the two do not belong together.
    """
    folder = Path(enhanced)
    refined, record = _read_refined(folder), _read_record(folder)
    before = io.read(source, series=series, slice_axis=slice_axis)
    own = before.source.headers
    axis = own.get("slice_axis", _NEW_AXIS) if isinstance(own, dict) else _NEW_AXIS
    after = io.read(next(iter(sorted(folder.glob("enhanced.*"))), folder), slice_axis=axis)
    window = WindowSection.model_validate(record["task"]["window"])
    return Review(
        source=before,
        enhanced=after,
        refined=refined,
        model_window=Window(window.center_hu, window.width_hu),
        label=label or _label(after),
    )


def _read_refined(folder: Path) -> NDArray[np.bool_]:
    try:
        with np.load(folder / "refined.npz", allow_pickle=False) as arrays:
            refined: NDArray[np.bool_] = arrays["refined"].astype(bool)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _no_output(folder, "refined.npz", error) from None
    return refined


def _read_record(folder: Path) -> Mapping[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        WindowSection.model_validate(record["task"]["window"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _no_output(folder, "run.json", error) from None
    return record


def _no_output(folder: Path, name: str, error: Exception) -> MedQDMError:
    return MedQDMError(
        f"{folder}: must be a folder written by medqdm enhance, got {type(error).__name__} on "
        f"reading its {name}; enhance the series again"
    )


def _label(volume: Volume) -> str:
    """A name that tells series apart and leads back to no patient."""
    identity = volume.hu[len(volume.hu) // 2].tobytes()
    if volume.source.kind == "dicom":
        identity = str(volume.source.headers[0].SeriesInstanceUID).encode()
    return hashlib.sha256(identity).hexdigest()[:12]
