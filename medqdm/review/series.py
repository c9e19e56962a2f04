"""Series: an enhanced series, beside its source if it is given, checked to cover the same place."""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqdm import io
from medqdm.config import QuadtreeSection, WindowSection
from medqdm.errors import MedQDMError
from medqdm.metrics import lr_consistency_hu
from medqdm.picture import upsample_bicubic
from medqdm.review.archive import open_archive
from medqdm.volume import EDGE_TOLERANCE_MM, SliceStack, Volume
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
    """An enhanced series, with its source unless that is not at hand.

    Args:
        source: the input, or None: then there is nothing to compare the output with.
        enhanced: the output, ``upscale`` times finer in plane.
        refined: ``(z, rows, columns)`` cells of 2 x 2 input pixels.
        model_window: the range in HU that the model saw.
        label: what ratings call the series: nothing of the patient.
        upscale: output pixels per input pixel, along an axis.
        quadtree: the settings that made the cells; None if they are not known.
        deviation_hu: ``(z, y * s, x * s)`` standard deviation over draws in HU; None without.

    Raises:
        MedQDMError: slices, matrix, outer edges, cells or deviation do not agree.
    """

    source: Volume | None
    enhanced: Volume
    refined: NDArray[np.bool_]
    model_window: Window
    label: str
    upscale: int
    quadtree: QuadtreeSection | None = None
    deviation_hu: SliceStack[np.float16] | None = None

    def __post_init__(self) -> None:
        if self.source is not None:
            self._check_source(self.source)
        slices, rows, columns = self.enhanced.shape
        where, side = self.enhanced.source.label, CELL_LR_PX * self.upscale
        cells = (slices, -(-rows // side), -(-columns // side))
        if self.refined.shape != cells:
            raise MedQDMError(
                f"{where}: refined.npz must hold {cells} cells, got {self.refined.shape}; "
                "enhance the series again"
            )
        if self.deviation_hu is not None and self.deviation_hu.shape != self.enhanced.shape:
            raise MedQDMError(
                f"{where}: uncertainty.npz must hold {self.enhanced.shape} pixels, got "
                f"{self.deviation_hu.shape}; enhance the series again"
            )

    def _check_source(self, source: Volume) -> None:
        z, height, width = source.shape
        slices, rows, columns = self.enhanced.shape
        where = self.enhanced.source.label
        if slices != z:
            raise MedQDMError(
                f"{where}: must have as many slices as its source, got {slices} and {z}; "
                "give the series that it was made from"
            )
        if (rows, columns) != (height * self.upscale, width * self.upscale):
            raise MedQDMError(
                f"{where}: matrix must be {self.upscale} times its source's {width} x {height}, "
                f"got {columns} x {rows}; give the series that it was made from"
            )
        moved = np.abs(source.corners_mm() - self.enhanced.corners_mm()).max()
        if not moved <= EDGE_TOLERANCE_MM:
            raise MedQDMError(
                f"{where}: outer edges must be those of its source, got {moved:.3f} mm between "
                "them; give the series that it was made from"
            )

    @property
    def num_slices(self) -> int:
        """Slices of both series."""
        return len(self.enhanced.hu)

    @property
    def before(self) -> Volume:
        """The source.

        Raises:
            MedQDMError: it was not given.
        """
        if self.source is None:
            raise MedQDMError(
                f"{self.enhanced.source.label}: a comparison must have the source, got none; "
                "give the series that it was made from"
            )
        return self.source

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of a slice, edge to edge, in mm."""
        (_, height, width), (y, x) = self.enhanced.shape, self.enhanced.spacing_mm
        return height * y, width * x

    def at(self, z: int) -> ReviewSlice:
        """One slice.

        Args:
            z: index from 0.

        Raises:
            MedQDMError: no such slice, or no source.
        """
        if not 0 <= z < self.num_slices:
            raise MedQDMError(
                f"{self.enhanced.source.label}: slice index must be 0 to {self.num_slices - 1}, "
                f"got {z}"
            )
        source_hu = self.before.hu[z]
        bicubic_hu = upsample_bicubic(source_hu, self.upscale)
        return ReviewSlice(source_hu, bicubic_hu, self.enhanced.hu[z], self.refined[z])


def load_review(
    enhanced: str | Path,
    source: str | Path | None = None,
    *,
    series: str | None = None,
    slice_axis: int | None = None,
    label: str | None = None,
) -> Review:
    """Read an output folder of ``medqdm enhance``, and the series it was made from.

    Args:
        enhanced: the output folder, in any of its formats.
        source: the input; without it there are no bicubic, difference, levels and residual.
        series: its SeriesInstanceUID, where several lie there.
        slice_axis: its array axis of the slices, where spacings do not tell (NIfTI, NRRD, MHA).
        label: what ratings call the series, nothing of the patient; None: the start of a hash of
            its SeriesInstanceUID (of its pixels, where it has none).

    Raises:
        MedQDMError: not such a folder, or the two do not belong together.
    """
    folder = Path(enhanced)
    record, refined = _read_record(folder), load_refined(folder)
    before = None
    if source is not None:
        before = io.read(
            source, series=series, slice_axis=slice_axis, skip_bad=True, any_values=True
        )
    own = before.source.headers if before else None
    axis = own.get("slice_axis", _NEW_AXIS) if isinstance(own, dict) else slice_axis
    file = next(iter(sorted(folder.glob("enhanced.*"))), folder)
    after = io.read(file, slice_axis=_NEW_AXIS if axis is None else axis, any_values=True)
    return Review(
        source=before,
        enhanced=after,
        refined=refined,
        model_window=Window(record.window.center_hu, record.window.width_hu),
        label=label or _label(after),
        upscale=record.upscale,
        quadtree=record.quadtree,
        deviation_hu=open_archive(folder / "uncertainty.npz", "deviation_hu", np.float16),
    )


@dataclass(frozen=True)
class _Record:
    window: WindowSection
    quadtree: QuadtreeSection
    upscale: int


def load_refined(folder: Path) -> NDArray[np.bool_]:
    """The cells ``(z, rows, columns)`` in which an output's detail was synthesised.

    Args:
        folder: that ``medqdm enhance`` wrote.

    Raises:
        MedQDMError: it is not such a folder.
    """
    try:
        with np.load(folder / "refined.npz", allow_pickle=False) as arrays:
            refined: NDArray[np.bool_] = arrays["refined"].astype(bool)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _no_output(folder, "refined.npz", error) from None
    return refined


def _read_record(folder: Path) -> _Record:
    try:
        task: dict[str, Any] = json.loads((folder / io.RUN_FILE).read_text("utf-8"))["task"]
        return _Record(
            WindowSection.model_validate(task["window"]),
            QuadtreeSection.model_validate(task["quadtree"]),
            int(task["upscale"]),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _no_output(folder, io.RUN_FILE, error) from None


def _no_output(folder: Path, name: str, error: Exception) -> MedQDMError:
    return MedQDMError(
        f"{folder}: must be a folder written by medqdm enhance, got {type(error).__name__} on "
        f"reading its {name}; enhance the series again"
    )


def _label(volume: Volume) -> str:
    """A name that tells series apart and leads back to no patient."""
    if volume.source.kind == "dicom":
        identity = str(volume.source.headers[0].SeriesInstanceUID).encode()
    else:
        identity = volume.hu[len(volume.hu) // 2].tobytes()
    return hashlib.sha256(identity).hexdigest()[:12]
