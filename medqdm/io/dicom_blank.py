"""DICOM headers for a volume that was no DICOM: a valid CT series of a nameless patient."""

from datetime import datetime

import numpy as np
from pydicom import Dataset
from pydicom.uid import CTImageStorage
from pydicom.valuerep import format_number_as_ds

from medqdm.errors import MedQDMError
from medqdm.io.dicom_uid import make_uid
from medqdm.io.padding import LOWEST_REAL_HU
from medqdm.volume import Volume


def blank_headers(
    volume: Volume, *, identity: str, made_at: datetime | None
) -> tuple[Dataset, ...]:
    """One header per slice, on the grid of ``volume``, with empty patient and a study of its own.

    Args:
        volume: from NIfTI, NRRD, MetaImage or memory.
        identity: what the study's UIDs are derived from.
        made_at: when this new study starts; None: it has no date.

    Raises:
        MedQDMError: the axes within a slice are not at a right angle.
    """
    spacing_y, spacing_x = volume.spacing_mm
    row, column = volume.x_step_mm / spacing_x, volume.y_step_mm / spacing_y
    if abs(float(row @ column)) > 1e-4:
        raise MedQDMError(
            f"{volume.source.label}: the axes of a slice must be at a right angle for DICOM, got a "
            "sheared affine; write NIfTI or NRRD instead"
        )
    steps = np.linalg.norm(volume.z_steps_mm, axis=1)
    study, frame = make_uid("study", identity), make_uid("frame", identity)
    headers = []
    for k, origin in enumerate(volume.origins_mm):
        header = Dataset()
        header.SOPClassUID = CTImageStorage
        header.StudyInstanceUID, header.FrameOfReferenceUID = study, frame
        if made_at is not None:
            header.StudyDate, header.StudyTime = f"{made_at:%Y%m%d}", f"{made_at:%H%M%S}"
        header.StudyID, header.InstanceNumber = "1", k + 1
        header.Rows, header.Columns = volume.shape[1:]
        header.PhotometricInterpretation = "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 16
        header.PixelRepresentation = 1
        header.RescaleSlope, header.RescaleIntercept = "1", "0"
        header.PixelSpacing = [format_number_as_ds(v) for v in (spacing_y, spacing_x)]
        header.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in (*row, *column)]
        header.ImagePositionPatient = [format_number_as_ds(float(v)) for v in origin]
        if len(steps) and volume.is_regular:
            header.SpacingBetweenSlices = format_number_as_ds(float(steps[0]))
        if volume.padding is not None:
            header.PixelPaddingValue = _padding_value(volume)
        headers.append(header)
    return tuple(headers)


def _padding_value(volume: Volume) -> int:
    own = volume.source.headers if isinstance(volume.source.headers, dict) else {}
    code = own.get("padding_hu")
    return int(np.clip(round(code if code is not None else 2 * LOWEST_REAL_HU), -32768, 32767))
