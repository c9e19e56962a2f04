"""Check: what no conformance tool sees, asserted on each slice read back from the disk."""

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset

from medqdm.errors import MedQDMError
from medqdm.io.dicom_pixels import padding_ends, stored_range
from medqdm.volume import check_same_edges

_OF_OLD_PIXELS = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries", "IconImageSequence",
)  # fmt: skip
_LOSS = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def check_slice(file: Path, source: Dataset, padding: NDArray[np.bool_]) -> None:
    """Refuse a written slice that would mislead a reader.

    Args:
        file: the slice as it lies on the disk.
        source: header of the slice it comes from.
        padding: ``(y, x)`` bool at the new size, True where the file must hold padding.

    Raises:
        MedQDMError: something is not as it must be.
    """
    written = pydicom.dcmread(file)
    check_same_edges(_corners_mm(source), _corners_mm(written), where=file.name)
    for is_right, what in _findings(written, source, padding):
        if not is_right:
            raise MedQDMError(
                f"{file.name}: a derived slice must {what}, got another; "
                "nothing was written, please report this"
            )


def _findings(
    written: Dataset, source: Dataset, padding: NDArray[np.bool_]
) -> list[tuple[bool, str]]:
    used = {str(source.get(k)) for k in ("SOPInstanceUID", "SeriesInstanceUID") if source.get(k)}
    fresh = {str(written.SOPInstanceUID), str(written.SeriesInstanceUID)}
    vr = "SS" if written.PixelRepresentation else "US"
    return [
        (list(written.ImageType[:2]) == ["DERIVED", "SECONDARY"], "be DERIVED and SECONDARY"),
        (written.Modality == "CT", "have Modality CT"),
        (not used & fresh, "have UIDs of its own"),
        (_fits(written), "hold values within BitsStored"),
        (_padding_is_kept(written, padding), "hold padding exactly where the source has it"),
        (
            all(
                vr == written[k].VR
                for k in ("PixelPaddingValue", "PixelPaddingRangeLimit")
                if k in written
            ),
            f"have PixelPaddingValue as {vr}",
        ),
        (
            not any(0x5000 <= element.tag.group <= 0x60FF for element in written),
            "have no overlay or curve of the old matrix",
        ),
        (not any(k in written for k in _OF_OLD_PIXELS), "say nothing about the old pixels"),
        (
            all(str(written.get(k)) == str(source.get(k)) for k in _LOSS if source.get(k)),
            "keep the record of lossy compression",
        ),
    ]


def _words(written: Dataset) -> NDArray[np.int64]:
    kind = "<i2" if written.PixelRepresentation else "<u2"
    words = np.frombuffer(written.PixelData, dtype=kind, count=written.Rows * written.Columns)
    return words.reshape(written.Rows, written.Columns).astype(np.int64)


def _fits(written: Dataset) -> bool:
    low, high = stored_range(written)
    words = _words(written)
    return bool(words.min() >= low and words.max() <= high)


def _padding_is_kept(written: Dataset, padding: NDArray[np.bool_]) -> bool:
    ends = padding_ends(written)
    if ends is None:
        return not padding.any()
    words = _words(written)
    return bool((((words >= min(ends)) & (words <= max(ends))) == padding).all())


def _corners_mm(header: Dataset) -> NDArray[np.float64]:
    """``(1, 4, 3)`` outer corners, from the header's own strings."""
    spacing_y, spacing_x = (float(v) for v in header.PixelSpacing)
    axes = np.array(header.ImageOrientationPatient, dtype=np.float64)
    origin = np.array(header.ImagePositionPatient, dtype=np.float64)
    x_step, y_step = axes[:3] * spacing_x, axes[3:] * spacing_y
    ends_y, ends_x = (-0.5, header.Rows - 0.5), (-0.5, header.Columns - 0.5)
    return np.array([[origin + y * y_step + x * x_step for y in ends_y for x in ends_x]])
