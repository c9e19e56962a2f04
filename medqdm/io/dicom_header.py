"""DICOM header of a derived CT slice: what is kept, made new, moved or removed, and why."""

import copy
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import CTImageStorage
from pydicom.valuerep import format_number_as_ds

from medqdm.errors import MedQDMError
from medqdm.io.dicom_frames import ENHANCED
from medqdm.io.dicom_pixels import padding_ends, stored_range

SIGNATURES = {0x4FFE0001, 0xFFFAFFFA, 0x04000500}  # MAC parameters, signatures, encrypted content
SERIES_DIGITS = 10_000  # last digits of a series number
_WORD_BITS = 16
_LARGEST_IS, _LARGEST_US = 2**31 - 1, 2**16 - 1

# Statements about the scanner's step, station or object that are not true of this one, and values
# counted from the old pixels.
REMOVED = (
    "SeriesDescriptionCodeSequence", "OperatorsName", "OperatorIdentificationSequence",
    "PerformingPhysicianName", "PerformingPhysicianIdentificationSequence",
    "ReferencedPerformedProcedureStepSequence", "PerformedProcedureStepID",
    "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime",
    "PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime",
    "PerformedProcedureStepDescription", "PerformedProtocolCodeSequence",
    "CommentsOnThePerformedProcedureStep", "InstanceCreatorUID", "SOPInstanceStatus",
    "SOPAuthorizationDateTime", "SOPAuthorizationComment",
    "AuthorizationEquipmentCertificationNumber", "InstanceCoercionDateTime", "QueryRetrieveView",
    "ConversionSourceAttributesSequence", "PrivateDataElementCharacteristicsSequence",
    "PixelAspectRatio", "ImagerPixelSpacing", "NumberOfFrames", "PlanarConfiguration",
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries", "SmallestValidPixelValue", "LargestValidPixelValue",
    "IconImageSequence", "PixelData", "FloatPixelData", "DoubleFloatPixelData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "DataSetTrailingPadding",
)  # fmt: skip

# What names the scanner moves into its item of ContributingEquipmentSequence.
EQUIPMENT = (
    "Manufacturer", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName",
    "StationName", "OperatorsName", "ManufacturerModelName", "DeviceSerialNumber",
    "SoftwareVersions", "DeviceUID", "GantryID", "SpatialResolution", "DateOfLastCalibration",
    "TimeOfLastCalibration",
)  # fmt: skip
STAYS_TOO = ("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName")

# Type 2: must be there, may be empty.
PRESENT = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber", "PositionReferenceIndicator",
    "AcquisitionNumber", "KVP", "SliceThickness", "PatientPosition",
)  # fmt: skip


@dataclass(frozen=True)
class Derivation:
    """What is the same for all slices of a derived series.

    Args:
        upscale: in-plane factor.
        description: text for DerivationDescription, ASCII, no host names or paths.
        software_version: of medqdm.
        weights_id: names the weights, such as the start of their checksum.
        series_instance_uid: of the new series.
        series_number: of the new series.
        acquisition: which one it is of several in the source, from 1; 0 if there is one.
        frame_of_reference_uid: of the new series.
        made_at: when the series was started, with its time zone; None: the source's dates stay.
    """

    upscale: int
    description: str
    software_version: str
    weights_id: str
    series_instance_uid: str
    series_number: int
    acquisition: int
    frame_of_reference_uid: str
    made_at: datetime | None


def derived_header(source: Dataset, derivation: Derivation, *, index: int) -> Dataset:
    """The header of one new slice, without SOPInstanceUID, pixels and file meta.

    Args:
        source: header of the slice it comes from; it is left alone.
        derivation: as above.
        index: place of the slice in its series, from 0; the instance number where there is none.

    Raises:
        MedQDMError: the source belongs to no study, or the new matrix is larger than DICOM's.
    """
    largest = max(int(source.Rows), int(source.Columns)) * derivation.upscale
    if largest > _LARGEST_US:
        raise MedQDMError(
            f"DICOM output: an image must have {_LARGEST_US} rows and columns at the most, "
            f"got {largest}; write NIfTI or NRRD instead"
        )
    if not source.get("StudyInstanceUID"):
        raise MedQDMError(
            "DICOM output: every source slice must have StudyInstanceUID, got none; "
            "write NIfTI or NRRD instead"
        )
    out = copy.deepcopy(source)
    if source.original_encoding[1] is False:
        _to_little_endian(out)
    clean(out)
    _describe_equipment(source, out, derivation)
    for keyword in REMOVED:
        if keyword in out:
            delattr(out, keyword)
    _describe_series(source, out, derivation)
    _describe_image(source, out, derivation, index)
    _describe_derivation(source, out, derivation)
    _resample_geometry(source, out, derivation.upscale)
    _describe_pixels(source, out)
    for keyword in PRESENT:
        if keyword not in out:
            setattr(out, keyword, None)
    return out


def _to_little_endian(dataset: Dataset) -> None:
    for element in dataset.iterall():  # decodes numbers; only opaque words need a swap
        if element.VR == "OW" and isinstance(element.value, bytes):
            element.value = np.frombuffer(element.value, ">u2").astype("<u2").tobytes()
    dataset.set_original_encoding(False, True, dataset.original_character_set)


def clean(dataset: Dataset, *, nested: bool = False) -> None:
    """Drop private elements and signatures at every level, overlays and curves at the top.

    Args:
        dataset: changed in place.
        nested: whether it is an item of a sequence.
    """
    for tag in list(dataset.keys()):
        if tag.is_private or tag in SIGNATURES or tag.element == 0 or _is_graphics(tag, nested):
            del dataset[tag]
        elif _is_sequence(dataset, tag):
            for item in dataset[tag].value:
                clean(item, nested=True)


def _is_graphics(tag: BaseTag, nested: bool) -> bool:
    return not nested and (0x5000 <= tag.group <= 0x50FF or 0x6000 <= tag.group <= 0x60FF)


def _is_sequence(dataset: Dataset, tag: BaseTag) -> bool:
    """Looks at the undecoded element, so that values that are merely kept stay as they were."""
    element = dataset.get_item(tag)
    vr = element.VR if isinstance(element, DataElement | RawDataElement) else None
    if vr is None:  # implicit VR
        try:
            vr = dictionary_VR(tag)
        except KeyError:
            return False
    return bool(vr == "SQ")


def _describe_equipment(source: Dataset, out: Dataset, derivation: Derivation) -> None:
    """The scanner moves into ContributingEquipmentSequence, medqdm becomes the maker (C.12.1.1.5).

    The scanner's SpatialResolution moves with it: it is not what the new pixels resolve.
    """
    item = Dataset()
    for keyword in EQUIPMENT:
        if source.get(keyword):
            item[keyword] = copy.deepcopy(source[keyword])
        if keyword in out and keyword not in STAYS_TOO:
            delattr(out, keyword)
    earlier = list(source.get("ContributingEquipmentSequence") or [])
    if len(item):
        if "Manufacturer" not in item:
            item.Manufacturer = "unknown"
        was_derived = "DERIVED" in image_type(source)[:1]
        code = ("109102", "Processing Equipment") if was_derived else (
            "109101", "Acquisition Equipment")  # fmt: skip
        item.PurposeOfReferenceCodeSequence = Sequence([_code(*code)])
        cleaned = [copy.deepcopy(e) for e in earlier]
        for entry in cleaned:
            clean(entry, nested=True)
        out.ContributingEquipmentSequence = Sequence([*cleaned, item])
    out.Manufacturer = "medqdm"
    out.ManufacturerModelName = "medqdm"
    weights = f"weights {derivation.weights_id}"
    out.SoftwareVersions = [derivation.software_version[:64], weights[:64]]


def _describe_series(source: Dataset, out: Dataset, derivation: Derivation) -> None:
    out.Modality = "CT"
    out.SeriesInstanceUID = derivation.series_instance_uid
    out.SeriesNumber = derivation.series_number
    suffix = f" SRx{derivation.upscale} AI"
    if derivation.acquisition:
        suffix = f" #{derivation.acquisition}{suffix}"
    described = str(source.get("SeriesDescription") or "CT")
    out.SeriesDescription = described[: 64 - len(suffix)].rstrip() + suffix
    if derivation.made_at is not None:
        out.SeriesDate, out.SeriesTime = _date_and_time(source, derivation.made_at)
    if not out.get("BodyPartExamined"):
        out.setdefault("Laterality", None)  # type 2C: empty means unknown, absent means unpaired
    elif "Laterality" in out and not out.Laterality:
        del out.Laterality
    out.FrameOfReferenceUID = derivation.frame_of_reference_uid


def common_frame(sources: Iterable[Dataset]) -> str:
    """The FrameOfReferenceUID that most slices have; empty if none has one.

    A series has one frame of reference (PS3.3 C.7.4.1), though de-identified ones may have one for
    each slice. Of several that are as frequent it is the first one's in the order given.
    """
    frames = Counter(str(source.get("FrameOfReferenceUID") or "") for source in sources)
    del frames[""]
    return frames.most_common(1)[0][0] if frames else ""


def new_series_number(source: Dataset, upscale: int, digits: int) -> int:
    """Another number than the source's and other outputs', or old viewers interleave them.

    Args:
        source: header of a slice.
        upscale: in-plane factor.
        digits: the last four, which tell outputs of the same source number apart.

    Returns:
        The source's number, two digits for the factor, and the last four; without the source's
        number where it is none or too large.
    """
    try:
        number = int(source.get("SeriesNumber") or 0)
    except (ValueError, TypeError):
        number = 0
    most = _LARGEST_IS // 1_000_000 - 1
    new = ((number if 0 <= number <= most else 0) * 100 + upscale) * SERIES_DIGITS + digits
    return new + (new == number)


def _describe_image(source: Dataset, out: Dataset, derivation: Derivation, index: int) -> None:
    out.SOPClassUID = CTImageStorage
    out.ImageType = ["DERIVED", "SECONDARY", "AXIAL", *image_type(source)[3:]]
    if derivation.made_at is not None:
        date, time = _date_and_time(source, derivation.made_at)
        out.InstanceCreationDate, out.InstanceCreationTime = date, time
        out.ContentDate, out.ContentTime = date, time
    out.ContentQualification = "RESEARCH"
    number = source.get("InstanceNumber")
    if number is None or str(number) == "":  # 0 is a number too
        out.InstanceNumber = index + 1


def _describe_derivation(source: Dataset, out: Dataset, derivation: Derivation) -> None:
    before = str(source.get("DerivationDescription") or "")
    text = f"{before}; {derivation.description}" if before else derivation.description
    out.DerivationDescription = text[-1024:]
    for keyword in ("SourceImageSequence", "ReferencedImageSequence"):
        _drop_empty_references(out, keyword)
    earlier = list(out.get("DerivationCodeSequence") or [])
    out.DerivationCodeSequence = Sequence([*earlier, _code("113085", "Spatial resampling")])
    uid = str(source.get("SOPInstanceUID") or "")
    if not uid:  # a volume that was no DICOM has no instance to refer to
        return
    reference = _reference(source)
    reference.PurposeOfReferenceCodeSequence = Sequence(
        [_code("121322", "Source image for image processing operation")]
    )
    reference.SpatialLocationsPreserved = "NO"
    out.SourceImageSequence = Sequence([*(out.get("SourceImageSequence") or []), reference])
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedInstanceSequence = Sequence([_reference(source)])
    out.ReferencedSeriesSequence = Sequence([*_still_referenced(out, source), series])


def _still_referenced(out: Dataset, source: Dataset) -> list[Dataset]:
    """Of the series that the source refers to, those with images that the new slice names too."""
    named = {
        str(item.get("ReferencedSOPInstanceUID"))
        for keyword in ("SourceImageSequence", "ReferencedImageSequence")
        for item in out.get(keyword) or []
    }
    kept = []
    for item in out.get("ReferencedSeriesSequence") or []:
        images = [
            image
            for image in item.get("ReferencedInstanceSequence") or []
            if str(image.get("ReferencedSOPInstanceUID")) in named
        ]
        if images and item.get("SeriesInstanceUID") != source.SeriesInstanceUID:
            item.ReferencedInstanceSequence = Sequence(images)
            kept.append(item)
    return kept


def _drop_empty_references(out: Dataset, keyword: str) -> None:
    items = list(out.get(keyword) or [])
    kept = [item for item in items if item.get("ReferencedSOPInstanceUID")]
    if keyword in out and not kept:
        delattr(out, keyword)
    elif len(kept) < len(items):
        setattr(out, keyword, Sequence(kept))


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if source.SOPClassUID in ENHANCED:  # the reader says there which frame it is
        item.ReferencedFrameNumber = source.ConversionSourceAttributesSequence[
            0
        ].ReferencedFrameNumber
    return item


def _resample_geometry(source: Dataset, out: Dataset, upscale: int) -> None:
    """Smaller pixels between the same outer edges: the first centre moves, the edges do not."""
    spacing_y, spacing_x = (float(v) for v in source.PixelSpacing)
    axes = np.array(source.ImageOrientationPatient, dtype=np.float64)
    origin = np.array(source.ImagePositionPatient, dtype=np.float64)
    ratio = 1 / upscale
    origin += (axes[:3] * spacing_x + axes[3:] * spacing_y) * (ratio - 1) / 2
    out.Rows, out.Columns = int(source.Rows) * upscale, int(source.Columns) * upscale
    out.PixelSpacing = [format_number_as_ds(v * ratio) for v in (spacing_y, spacing_x)]
    out.ImagePositionPatient = [format_number_as_ds(float(v)) for v in origin]


def _describe_pixels(source: Dataset, out: Dataset) -> None:
    """Slope, intercept and sign stay; words grow to 16 bits only if padding needs them."""
    bits = max(12, int(source.BitsStored))
    padding = padding_ends(source)
    low, high = stored_range(source)
    if padding is not None and not (low <= min(padding) and max(padding) <= high):
        bits = _WORD_BITS
    out.SamplesPerPixel = 1
    out.BitsAllocated, out.BitsStored, out.HighBit = _WORD_BITS, bits, bits - 1
    out.RescaleType = "HU"
    if padding is None and "PixelPaddingRangeLimit" in out:
        del out.PixelPaddingRangeLimit  # means nothing without the value
    if padding is not None:
        vr = "SS" if out.PixelRepresentation else "US"
        keywords = ("PixelPaddingValue", "PixelPaddingRangeLimit")
        for keyword, value in zip(keywords, padding, strict=True):
            if keyword in out:
                out.add_new(keyword, vr, value)


def drop_narrow_mappings(out: Dataset, low: int, high: int) -> None:
    """Leave real world values out where they are not defined for all words of the new slice.

    Args:
        out: its header.
        low: its smallest word, padding aside.
        high: its largest.
    """
    kept = []
    for item in out.get("RealWorldValueMappingSequence") or []:
        first, last = (
            item.get(f"RealWorldValue{end}ValueMapped", item.get(f"DoubleFloatRealWorldValue{end}"
                                                                 "ValueMapped"))
            for end in ("First", "Last")
        )  # fmt: skip
        if first is not None and last is not None and first <= low and high <= last:
            kept.append(item)
    if "RealWorldValueMappingSequence" in out:
        del out.RealWorldValueMappingSequence
    if kept:
        out.RealWorldValueMappingSequence = Sequence(kept)


def _date_and_time(source: Dataset, made_at: datetime) -> tuple[str, str]:
    """TimezoneOffsetFromUTC governs every time in the object, so new ones follow it."""
    offset = str(source.get("TimezoneOffsetFromUTC") or "")
    when = made_at
    if re.fullmatch(r"[+-]([01]\d|2[0-3])[0-5]\d", offset, re.ASCII):
        delta = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:]))
        when = made_at.astimezone(timezone(delta if offset[0] == "+" else -delta))
    return when.strftime("%Y%m%d"), when.strftime("%H%M%S")


def image_type(source: Dataset) -> list[str]:
    """The values of ImageType, none if it is missing."""
    value = source.get("ImageType") or []
    return [value] if isinstance(value, str) else [str(v) for v in value]


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
