"""Frames: an enhanced multi-frame CT as single slices with headers of their own."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from medqdm.errors import MedQDMError
from medqdm.io.dicom_open import check_syntax, one_line_for, read_whole, shallow_copy

ENHANCED = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
MOST_FRAMES = 50_000

# What single-frame CT knows of the functional groups; an arrow gives its name there.
_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation",
                            "VOILUTFunction"),
    "CTImageFrameTypeSequence": ("FrameType->ImageType",),
    "FrameContentSequence": ("FrameAcquisitionNumber->AcquisitionNumber",
                             "FrameReferenceDateTime->AcquisitionDateTime",
                             "TemporalPositionIndex->TemporalPositionIdentifier", "ImageComments"),
    "CTReconstructionSequence": ("ConvolutionKernel", "ReconstructionDiameter"),
    "CTXRayDetailsSequence": ("KVP", "FilterType", "FocalSpots"),
    "CTAcquisitionDetailsSequence": ("GantryDetectorTilt", "TableHeight", "RotationDirection",
                                     "RevolutionTime", "SingleCollimationWidth",
                                     "TotalCollimationWidth", "DataCollectionDiameter"),
    "CTTableDynamicsSequence": ("TableSpeed", "TableFeedPerRotation", "SpiralPitchFactor"),
    "CTExposureSequence": ("ExposureModulationType", "EstimatedDoseSaving", "CTDIvol"),
    "IrradiationEventIdentificationSequence": ("IrradiationEventUID",),
}  # fmt: skip
_TOP_LEVEL_GROUPS = ("DerivationImageSequence", "ReferencedImageSequence",
                     "RealWorldValueMappingSequence")  # fmt: skip
_CONVERTED = ("UnassignedSharedConvertedAttributesSequence",
              "UnassignedPerFrameConvertedAttributesSequence")  # fmt: skip
_OF_MULTI_FRAMES = (
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "NumberOfFrames",
    "DimensionOrganizationSequence", "DimensionIndexSequence", "DimensionOrganizationType",
    "ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber",
    "ConcatenationFrameOffsetNumber", "SOPInstanceUIDOfConcatenationSource",
    "FrameIncrementPointer", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "PixelPresentation", "VolumetricProperties", "VolumeBasedCalculationTechnique",
    "StackID", "IconImageSequence", "ContributingSOPInstancesReferenceSequence",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Slice:
    """One CT slice: a file, or a frame of one.

    Args:
        path: where the file lies.
        header: its dataset without pixels, file meta included; for a frame, its functional groups
            are spread out as in single-frame CT, and ``ConversionSourceAttributesSequence`` names
            the frame.
        frame: index of the frame, from 0; None for single-frame CT.
        num_frames: of the file.
        position: of PixelData in the file, in bytes.
    """

    path: Path
    header: Dataset
    frame: int | None = None
    num_frames: int = 1
    position: int = 0

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.path.name if self.frame is None else f"{self.path.name}#{self.frame + 1}"


def split_frames(file: Path, header: Dataset, position: int) -> list[Slice]:
    """The frames of an enhanced CT, in the order of the file.

    Args:
        file: where it lies.
        header: its dataset without pixels.
        position: of PixelData, in bytes.

    Raises:
        MedQDMError: the frames are not described one by one.
    """
    with one_line_for(file.name):
        groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])
        count = int(header.get("NumberOfFrames") or 0)
        if not 0 < count == len(groups) <= MOST_FRAMES:
            raise MedQDMError(
                f"{file.name}: a multi-frame CT must describe each of its {count} frames, got "
                f"{len(groups)} descriptions; it is damaged, export it as single-frame CT"
            )
        (shared,) = list(header.get("SharedFunctionalGroupsSequence") or [Dataset()])[:1]
        common = shallow_copy(header)
        for keyword in _OF_MULTI_FRAMES:
            if keyword in common:
                delattr(common, keyword)
        return [
            Slice(file, _frame_header(common, (shared, group), k), k, count, position)
            for k, group in enumerate(groups)
        ]


def _frame_header(common: Dataset, groups: tuple[Dataset, Dataset], k: int) -> Dataset:
    out = shallow_copy(common)
    for group in groups:
        _spread(group, out)
    image_type = [str(v) for v in out.get("ImageType") or []]
    if len(image_type) > 2 and image_type[2] == "VOLUME":
        image_type[2] = "AXIAL"  # single-frame CT calls any cross-section so
    _set(out, "ImageType", [v for n, v in enumerate(image_type) if n < 3 or v != "NONE"])
    stamp = str(out.get("AcquisitionDateTime") or "")
    if stamp:
        _set(out, "AcquisitionDate", stamp[:8])
        _set(out, "AcquisitionTime", re.split(r"[+-]", stamp[8:])[0])
    _set(out, "InstanceNumber", k + 1)
    item = Dataset()
    item.ReferencedSOPClassUID = common.SOPClassUID
    item.ReferencedSOPInstanceUID = common.get("SOPInstanceUID")
    item.ReferencedFrameNumber = k + 1
    _set(out, "ConversionSourceAttributesSequence", Sequence([item]))
    return out


def _spread(group: Dataset, out: Dataset) -> None:
    """Write functional groups into a header; the ones given later (of the frame) win."""
    for keyword in _CONVERTED:
        for item in group.get(keyword) or []:
            for element in item:
                out[element.tag] = element
    for sequence, names in _GROUPS.items():
        for item in list(group.get(sequence) or [])[:1]:
            _rename(item, names, out)
    for keyword in _TOP_LEVEL_GROUPS:
        if group.get(keyword):
            _set(out, keyword, group.get(keyword))


def _rename(item: Dataset, names: tuple[str, ...], out: Dataset) -> None:
    for name in names:
        source, _, target = name.partition("->")
        if item.get(source) is not None:
            _set(out, target or source, item.get(source))


def _set(out: Dataset, keyword: str, value: Any) -> None:
    """A new element: the old one may be shared with other frames."""
    tag = tag_for_keyword(keyword)
    assert tag is not None  # the keywords are written in this file
    out[tag] = DataElement(tag, dictionary_VR(tag), value)


def read_slice(item: Slice) -> Dataset:
    """The dataset of a slice with its pixels; of a multi-frame file, that frame alone is read.

    Raises:
        MedQDMError: the file is damaged.
    """
    check_syntax(item.header, where=item.name)
    if item.frame is None:
        return read_whole(item.path)
    syntax = item.header.file_meta.TransferSyntaxUID
    if syntax.is_deflated:
        raise MedQDMError(
            f"{item.path.name}: a multi-frame CT must not be deflated, got {syntax.name}; "
            "convert it to Explicit VR Little Endian with another tool"
        )
    dataset = shallow_copy(item.header)
    try:
        with one_line_for(item.name), item.path.open("rb") as stream:
            dataset.add_new("PixelData", "OW", _read_frame(item, stream))
    except OSError:
        raise MedQDMError(
            f"{item.name}: a CT file must hold its pixels, got one that cannot be opened; "
            "start again when it is there"
        ) from None
    return dataset


def _read_frame(item: Slice, stream: BinaryIO) -> bytes:
    header, frame = item.header, item.frame or 0
    syntax = header.file_meta.TransferSyntaxUID
    stream.seek(item.position)
    tag = stream.read(4)
    if tag not in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
        raise MedQDMError(
            f"{item.path.name}: a CT file must hold its pixels, got a truncated or damaged file; "
            "copy it again, or take it out of the series"
        )
    stream.seek(4 if syntax.is_implicit_VR else 8, 1)
    if syntax.is_encapsulated:
        return encapsulate([get_frame(stream, frame, number_of_frames=item.num_frames)])
    size = int(header.Rows) * int(header.Columns) * int(header.BitsAllocated) // 8
    stream.seek(frame * size, 1)
    return stream.read(size)
