"""Check: what no conformance tool sees, asserted on each slice read back from the disk."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import UID, CTImageStorage

from medqdm.errors import MedQDMError
from medqdm.io.dicom_header import (
    EQUIPMENT,
    PRESENT,
    REMOVED,
    SIGNATURES,
    STAYS_TOO,
    clean,
    common_frame,
    image_type,
)
from medqdm.io.dicom_owner import check_owner
from medqdm.io.dicom_pixels import padding_ends, stored_range
from medqdm.io.dicom_syntax import SYNTAXES
from medqdm.volume import check_same_edges

_LOSS = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_LONGEST_DS = 16

# Patient (groups 0010 and 0012 too), study, frame, acquisition, meaning of the words: as in the
# source.
_PATIENT_GROUPS = (0x0010, 0x0012)
_STUDY = (
    "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName", "StudyDescription",
)  # fmt: skip
_KEPT = (
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "PositionReferenceIndicator",
    "PatientPosition", "BodyPartExamined", "ImageOrientationPatient", "SliceThickness",
    "SpacingBetweenSlices", "SliceLocation", "GantryDetectorTilt", "ReconstructionDiameter",
    "InstanceNumber", "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime",
    "AcquisitionDateTime", "IrradiationEventUID", "KVP", "ConvolutionKernel", "BurnedInAnnotation",
    "RescaleSlope", "RescaleIntercept", "PixelRepresentation", "PhotometricInterpretation",
    "WindowCenter", "WindowWidth",
)  # fmt: skip
_NEEDED = (
    "SOPInstanceUID", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelData",
)  # fmt: skip
_SHARED = ("SeriesInstanceUID", "SeriesNumber", "SeriesDate", "FrameOfReferenceUID")
_MAY_BE_NEW = {"InstanceNumber"}  # given to a source that has none


def check_slice(
    file: Path,
    source: Dataset,
    padding: NDArray[np.bool_],
    *,
    words: NDArray[np.integer] | None = None,
) -> None:
    """Refuse a written slice that would mislead a reader.

    Args:
        file: the slice as it lies on the disk.
        source: header of the slice it comes from.
        padding: ``(y, x)`` bool at the new size, True where the file must hold padding.
        words: ``(y, x)`` stored words that it must hold; None: any.

    Raises:
        MedQDMError: something is not as it must be.
    """
    written = pydicom.dcmread(file)
    for keyword in _NEEDED:
        if written.get(keyword) is None:
            raise _fault(file, f"have {keyword}")
    check_same_edges(_corners_mm(source), _corners_mm(written), where=file.name)
    for is_right, what in _findings(written, source, padding, words):
        if not is_right:
            raise _fault(file, what)


def check_series(files: Sequence[Path], sources: Sequence[Dataset]) -> None:
    """Refuse written slices that are not one series, one for each slice of the source.

    Patient and study are compared once more, since files may change after they were checked.

    Args:
        files: the slices as they lie on the disk, in order.
        sources: headers of the slices they come from.

    Raises:
        MedQDMError: something is not as it must be.
    """
    if len(files) != len(sources):
        raise MedQDMError(
            f"a derived series must have {len(sources)} slices like its source, got {len(files)}; "
            "nothing was written, please report this"
        )
    frame = common_frame(sources)
    taken = {str(source.get("SOPInstanceUID") or "") for source in sources} - {""}
    shared: list[str] = []
    numbers: set[str] = set()
    for file, source in zip(files, sources, strict=True):
        written = pydicom.dcmread(file, stop_before_pixels=True)
        same = [_text(written, k) for k in _SHARED]
        shared = shared or same
        for is_right, what in (
            *_owner_findings(written, source),
            *_member_findings(written, taken, frame),
            (same == shared, "share its series' UID, number, date and frame with the others"),
        ):
            if not is_right:
                raise _fault(file, what)
        taken.add(str(written.SOPInstanceUID))
        numbers.add(_text(written, "InstanceNumber"))
    check_owner(sources, where="derived series")  # its slices were found to have the same owners
    if len(numbers) < len({_text(source, "InstanceNumber") for source in sources} - {""}):
        raise _fault(files[0], "have the instance number of its source")


def _member_findings(written: Dataset, taken: set[str], frame: str) -> Iterator[tuple[bool, str]]:
    """What a slice must have beside the others of its series."""
    found = _text(written, "FrameOfReferenceUID")
    yield str(written.SOPInstanceUID) not in taken, "have a SOPInstanceUID that no other image has"
    yield (
        bool(found) and found == (frame or found),
        "have the FrameOfReferenceUID that most slices of its source have",
    )


def _fault(file: Path, what: str) -> MedQDMError:
    return MedQDMError(
        f"{file.name}: a derived slice must {what}, got another; "
        "nothing was written, please report this"
    )


def _findings(
    written: Dataset,
    source: Dataset,
    padding: NDArray[np.bool_],
    words: NDArray[np.integer] | None,
) -> Iterator[tuple[bool, str]]:
    yield from _identity_findings(written, source)
    yield from _description_findings(written, source)
    yield from _pixel_findings(written, source, padding, words)


def _identity_findings(written: Dataset, source: Dataset) -> Iterator[tuple[bool, str]]:
    meta = written.file_meta
    own = {str(written.get(k, "")) for k in ("SOPInstanceUID", "SeriesInstanceUID")}
    used = {str(source.get(k)) for k in ("SOPInstanceUID", "SeriesInstanceUID") if source.get(k)}
    yield not used & own, "have UIDs of its own"
    yield len(own) == 2 and all(UID(uid).is_valid for uid in own), "have valid UIDs"
    yield written.get("SOPClassUID") == CTImageStorage, "be a CT image"
    yield (
        (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID)
        == (written.SOPClassUID, written.SOPInstanceUID)
    ), "have the UIDs of its file meta"  # fmt: skip
    yield meta.TransferSyntaxUID in SYNTAXES.values(), "have a transfer syntax that keeps all"
    yield written.get("Modality") == "CT", "have Modality CT"
    for keyword in _KEPT:
        before = _text(source, keyword)
        given = keyword in _MAY_BE_NEW and not before
        yield given or _text(written, keyword) == before, f"keep {keyword}"
    yield from _owner_findings(written, source)
    yield all(keyword in written for keyword in PRESENT), "have all that a CT image must have"
    number = _text(written, "SeriesNumber")
    yield number not in ("", _text(source, "SeriesNumber")), "have a series number of its own"


def _description_findings(written: Dataset, source: Dataset) -> Iterator[tuple[bool, str]]:
    kind = image_type(written)
    yield kind[:2] == ["DERIVED", "SECONDARY"], "be DERIVED and SECONDARY"
    yield kind[2:] == ["AXIAL", *image_type(source)[3:]], "be AXIAL and keep the rest of ImageType"
    yield written.get("ContentQualification") == "RESEARCH", "be qualified for RESEARCH"
    yield "113085" in _codes(written.get("DerivationCodeSequence")), "say that it was resampled"
    yield bool(_text(written, "DerivationDescription")), "describe its derivation"
    yield _names_source(written, source), "name its source image"
    yield written.get("Manufacturer") == "medqdm", "name medqdm as its maker"
    yield _has_scanner_apart(written, source), "name the scanner as contributing equipment only"
    yield (
        not any(keyword in written for keyword in REMOVED if keyword != "PixelData"),
        ("say nothing about the old pixels or the scanner's work"),
    )
    yield (
        not any(0x5000 <= element.tag.group <= 0x60FF for element in written),
        ("have no overlay or curve of the old matrix"),
    )
    every = {element.tag for element in written.iterall()}
    yield not any(tag.is_private for tag in every), "have no private element"
    yield not every & SIGNATURES, "have no signature over other bytes"
    yield (
        all(str(written.get(k)) == str(source.get(k)) for k in _LOSS if source.get(k)),
        "keep the record of lossy compression",
    )


def _pixel_findings(
    written: Dataset,
    source: Dataset,
    padding: NDArray[np.bool_],
    words: NDArray[np.integer] | None,
) -> Iterator[tuple[bool, str]]:
    vr = "SS" if written.PixelRepresentation else "US"
    bits = int(written.BitsStored)
    yield written.get("RescaleType") == "HU", "hold HU"
    yield (
        (written.SamplesPerPixel, written.BitsAllocated, written.HighBit) == (1, 16, bits - 1)
        and max(12, int(source.BitsStored)) <= bits <= 16
    ), "hold 16-bit words that start at bit 0"  # fmt: skip
    yield padding.shape == (written.Rows, written.Columns), "have the new rows and columns"
    for keyword in ("ImagePositionPatient", "PixelSpacing"):
        element = written[keyword]
        fits = all(len(str(value)) <= _LONGEST_DS for value in element.value)
        yield element.VR == "DS" and fits, f"hold {keyword} as numbers of 16 characters at most"
    held = _words(written)
    if held is None:
        yield False, "hold all its pixels"
        return
    low, high = stored_range(written)
    yield bool(held.min() >= low and held.max() <= high), "hold values within BitsStored"
    yield _padding_is_kept(written, held, padding), "hold padding exactly where the source has it"
    padded = [k for k in ("PixelPaddingValue", "PixelPaddingRangeLimit") if k in written]
    yield all(vr == written[k].VR for k in padded), f"have PixelPaddingValue as {vr}"
    yield words is None or np.array_equal(held, words), "hold the very pixels that were made"


def _owner_findings(written: Dataset, source: Dataset) -> Iterator[tuple[bool, str]]:
    for keyword in _STUDY:
        yield _text(written, keyword) == _text(source, keyword), f"keep {keyword}"
    for group in _PATIENT_GROUPS:
        yield _group(written, group) == _group(source, group), "keep the patient"


def _group(dataset: Dataset, number: int) -> dict[int, str]:
    """What a group of elements says, private ones in its items aside."""
    group = copy.deepcopy(dataset.group_dataset(number))
    clean(group)
    return {int(tag): text for tag in group.keys() if (text := _text(group, tag))}  # noqa: SIM118


def _text(dataset: Dataset, tag: object) -> str:
    """A value as text; empty if there is none, whatever cannot be read is the same to us."""
    try:
        value = dataset.get(tag)
        value = getattr(value, "value", value)
        return "" if value is None else str(value)
    except (ValueError, TypeError, OverflowError, NotImplementedError):
        return "unreadable"


def _codes(sequence: Sequence[Dataset] | None) -> list[str]:
    return [str(item.get("CodeValue", "")) for item in sequence or []]


def _names_source(written: Dataset, source: Dataset) -> bool:
    uid = str(source.get("SOPInstanceUID") or "")
    items = [
        item
        for item in written.get("SourceImageSequence") or []
        if item.get("ReferencedSOPInstanceUID") == uid and item.get("ReferencedSOPClassUID")
    ]
    return not uid or any(item.get("SpatialLocationsPreserved") == "NO" for item in items)


def _has_scanner_apart(written: Dataset, source: Dataset) -> bool:
    own = {"Manufacturer", "ManufacturerModelName", "SoftwareVersions", *STAYS_TOO}
    if any(keyword in written for keyword in EQUIPMENT if keyword not in own):
        return False
    if not any(source.get(keyword) for keyword in EQUIPMENT):
        return True
    items = written.get("ContributingEquipmentSequence") or []
    codes = _codes(items[-1].get("PurposeOfReferenceCodeSequence")) if items else []
    return bool(codes) and codes[-1] in ("109101", "109102") and bool(items[-1].get("Manufacturer"))


def _words(written: Dataset) -> NDArray[np.int64] | None:
    """Stored words as they lie there, what is beyond BitsStored included; None if cut short."""
    size = int(written.Rows) * int(written.Columns)
    if written.file_meta.TransferSyntaxUID.is_encapsulated:
        try:
            return np.asarray(pixel_array(written, raw=True), dtype=np.int64)
        except Exception:  # decoders raise what they like
            return None
    if len(written.PixelData) != size * 2:
        return None
    kind = "<i2" if written.PixelRepresentation else "<u2"
    words = np.frombuffer(written.PixelData, dtype=kind)
    return words.reshape(written.Rows, written.Columns).astype(np.int64)


def _padding_is_kept(
    written: Dataset, words: NDArray[np.int64], padding: NDArray[np.bool_]
) -> bool:
    ends = padding_ends(written)
    if ends is None:
        return not padding.any()
    return bool((((words >= min(ends)) & (words <= max(ends))) == padding).all())


def _corners_mm(header: Dataset) -> NDArray[np.float64]:
    """``(1, 4, 3)`` outer corners, from the header's own strings."""
    spacing_y, spacing_x = (float(v) for v in header.PixelSpacing)
    axes = np.array(header.ImageOrientationPatient, dtype=np.float64)
    origin = np.array(header.ImagePositionPatient, dtype=np.float64)
    x_step, y_step = axes[:3] * spacing_x, axes[3:] * spacing_y
    ends_y, ends_x = (-0.5, header.Rows - 0.5), (-0.5, header.Columns - 0.5)
    return np.array([[origin + y * y_step + x * x_step for y in ends_y for x in ends_x]])
