"""Regions: the body and the reader's own masks, on the grid of the HR slices."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medqdm import io
from medqdm.data import find_patients, is_prepared
from medqdm.data.slices import Patient, to_hr_slices
from medqdm.errors import MedQDMError
from medqdm.volume import Volume
from medqdm.window import Window

Mask = NDArray[np.bool_]
BODY_HU = -500.0  # between lung or air and soft tissue
MASK_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".npz")
_GRID_TOLERANCE = 0.1  # of a pixel: headers of two programs round differently
_LAST_AXIS = 2


def body_mask(hr_hu: NDArray[np.float32], window: Window) -> Mask:
    """The body in a slice: the largest connected part above -500 HU, its holes filled.

    Filled holes take in the lungs and the bowel; couch, clothes and a second limb apart from the
    body stay out. Without anything above the threshold the mask is empty.

    Args:
        hr_hu: ``(y, x)`` reference in HU.
        window: the reference may be clipped to it: where the window begins above -500 HU, the
            body begins above the window's lower edge.
    """
    above = hr_hu > max(BODY_HU, window.low_hu)
    parts, count = ndimage.label(above)
    if count == 0:
        return np.zeros(hr_hu.shape, dtype=np.bool_)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(ndimage.binary_fill_holes(parts == sizes.argmax()), dtype=np.bool_)


class RoiFolder:
    """Masks of a folder, one file a patient, reduced and cropped as the patient's HR slices are.

    ``<patient>.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha`` lies on the grid of the patient's volume
    (axes may run the other way round); ``<patient>.npz`` holds one ``(z, y, x)`` array of the
    volume's shape. What is above 0 belongs to the region. All files are read and checked at once,
    so that a mistake shows before the first slice is enhanced.

    Args:
        folder: of the masks.
        data: folder of the volumes, as for ``find_patients``.
        slice_px: side of an HR slice.

    Raises:
        MedQDMError: a prepared set instead of volumes, no mask for a patient or two, or a mask
            that is not on the volume's grid.
    """

    def __init__(self, folder: Path, data: Path, slice_px: int) -> None:
        if not folder.is_dir():
            raise MedQDMError(
                f"{folder}: must be a folder with one mask file a patient, got none; check --roi"
            )
        if is_prepared(data):
            raise MedQDMError(
                f"{data}: must be a folder of volumes when masks are given, got a prepared set, "
                "which no longer has their grid; give the volumes that it was made from"
            )
        patients = find_patients(data)
        files = {patient.name: _find_mask(folder, patient.name) for patient in patients}
        self.slice_px = slice_px
        self._packed = {
            patient.name: np.packbits(_load(files[patient.name], patient, slice_px), axis=-1)
            for patient in patients
        }

    def mask(self, patient: str, index: int) -> Mask:
        """``(slice_px, slice_px)`` mask of one slice.

        Raises:
            MedQDMError: the patient or the slice is not among the volumes.
        """
        stack = self._packed.get(patient)
        if stack is None or index >= len(stack):
            raise MedQDMError(
                f"{patient}: slice {index + 1} must have a mask, got none; "
                "give the volumes and masks that belong together"
            )
        return np.unpackbits(stack[index], axis=-1, count=self.slice_px).astype(np.bool_)


def _find_mask(folder: Path, name: str) -> Path:
    files = [path for ending in MASK_ENDINGS if (path := folder / f"{name}{ending}").is_file()]
    if len(files) != 1:
        raise MedQDMError(
            f"{folder}: must hold one mask for {name}, got {len(files) or 'none'}; "
            f"name it {name} with one of {', '.join(MASK_ENDINGS)}"
        )
    return files[0]


def _load(file: Path, patient: Patient, slice_px: int) -> Mask:
    if len(patient.volumes) != 1:
        raise MedQDMError(
            f"{patient.name}: must have one volume when masks are given, got "
            f"{len(patient.volumes)}; leave one in its folder"
        )
    volume = read_volume(*patient.volumes[0])
    inside = (
        _load_array(file) if file.suffix == ".npz" else _on_grid(read_volume(file), volume, file)
    )
    if inside.shape != volume.shape:
        raise MedQDMError(
            f"{file.name}: must have the volume's shape {volume.shape}, got {inside.shape}; "
            "save the mask on the grid of the volume"
        )
    # values far above 1, because slices are rounded to whole HU after the area average
    slices, _ = to_hr_slices(replace(volume, hu=inside * np.float32(1000)), slice_px)
    half: Mask = slices >= 500
    return half


def read_volume(path: Path, series: str | None = None) -> Volume:
    """A volume with its slices as the HR slices are read: along the last axis if in doubt.

    Args:
        path: folder or file.
        series: SeriesInstanceUID, where the folder holds several.
    """
    try:
        return io.read(path, series=series, any_values=True)  # masks too
    except MedQDMError:
        if series is not None:
            raise
        return io.read(path, slice_axis=_LAST_AXIS, any_values=True)


def _load_array(file: Path) -> Mask:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = [np.asarray(arrays[name]) for name in arrays.files]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise MedQDMError(
            f"{file.name}: must be a NumPy archive, got {type(error).__name__} on reading it; "
            "save it with numpy.savez"
        ) from None
    if len(found) != 1 or found[0].ndim != 3 or found[0].dtype.kind not in "biuf":
        raise MedQDMError(
            f"{file.name}: must hold one (z, y, x) array of numbers, got "
            f"{[(array.shape, str(array.dtype)) for array in found]}; save the mask alone"
        )
    return np.asarray(found[0] > 0, dtype=np.bool_)


def _on_grid(mask: Volume, volume: Volume, file: Path) -> Mask:
    """The mask's voxels in the order of the volume's, where both lie at the same places."""
    z_step = _z_step(mask)
    backward = [
        float(step @ reference) < 0
        for step, reference in (
            (z_step, _z_step(volume)),
            (mask.y_step_mm, volume.y_step_mm),
            (mask.x_step_mm, volume.x_step_mm),
        )
    ]
    flip = tuple(slice(None, None, -1 if b else 1) for b in backward)
    if mask.shape == volume.shape:
        _check_corners(mask, volume, backward, file)
    return mask.hu[flip] > 0


def _z_step(volume: Volume) -> NDArray[np.float64]:
    return np.asarray(volume.origins_mm[-1] - volume.origins_mm[0])


def _check_corners(mask: Volume, volume: Volume, backward: Sequence[bool], file: Path) -> None:
    corners = mask.corners_mm().reshape(-1, 2, 2, 3)  # slice, y edge, x edge
    corners = corners[tuple(slice(None, None, -1 if b else 1) for b in backward)]
    moved = np.abs(corners.reshape(-1, 4, 3) - volume.corners_mm()).max()
    if moved > _GRID_TOLERANCE * min(volume.spacing_mm):
        raise MedQDMError(
            f"{file.name}: must lie on the grid of the volume, got corners {moved:.2f} mm apart; "
            "resample the mask onto the volume"
        )
