"""Multi-frame DICOM objects on the pixels of a derived series: its overlays.

highdicom describes the frames; their pixels are written one by one, so that memory does not grow
with the series, and are read back and compared before they count.
"""

import copy
import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.valuerep import format_number_as_ds

from medqdm.errors import MedQDMError
from medqdm.io.dicom_scan import tolerant
from medqdm.io.dicom_uid import make_uid

_MOST_BYTES = 1 << 30  # of pixels in one object: many tools end at 2 GiB, DICOM itself at 4

# As in the slices: patient (with clinical trial and de-identification), study, place and time.
_SHARED_GROUPS = (0x0010, 0x0012)
_SHARED = (
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "StudyInstanceUID", "StudyDate", "StudyTime",
    "StudyID", "StudyDescription", "AccessionNumber", "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy",
    "ProcedureCodeSequence", "ReasonForPerformedProcedureCodeSequence",
    "ReferencedStudySequence", "AdmittingDiagnosesDescription", "AdmissionID",
    "LongitudinalTemporalInformationModified", "SeriesDate", "SeriesTime", "BodyPartExamined",
    "Laterality", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "Manufacturer", "ManufacturerModelName",
    "SoftwareVersions", "ContributingEquipmentSequence", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod", "InstanceCreationDate",
    "InstanceCreationTime", "ContentDate", "ContentTime",
)  # fmt: skip
_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "PositionReferenceIndicator",
)  # fmt: skip
_PLACE = {
    "PlanePositionSequence": "ImagePositionPatient",
    "PlaneOrientationSequence": "ImageOrientationPatient",
    "PixelMeasuresSequence": "PixelSpacing",
}


@dataclass(frozen=True)
class Uids:
    """Derived from the enhanced series and the object's pixels, so the same run gives the same.

    Args:
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        number: InstanceNumber.
    """

    series: str
    instance: str
    number: int

    def options(self) -> dict[str, object]:
        """The same as highdicom calls them."""
        return {
            "series_instance_uid": self.series,
            "sop_instance_uid": self.instance,
            "instance_number": self.number,
        }


@dataclass(frozen=True)
class Overlay:
    """What is written.

    Args:
        name: what its series' UID is derived from, besides the enhanced one.
        keyword: of the element with the pixels.
        vr: of that element.
        bits: of a pixel.
        frame: index of a slice -> its ``(rows, columns)``, or more of them.
        describe: sources of one pixel, the first slice's header and UIDs -> the object.
        read: reads such a file, with ``lazy_frame_retrieval``, and refuses others.
    """

    name: str
    keyword: str
    vr: bytes
    bits: int
    frame: Callable[[int], NDArray[np.generic]]
    describe: Callable[[Sequence[Dataset], Dataset, Uids], Dataset]
    read: Callable[..., Dataset]


def write_overlay(slices: Sequence[Path], file: Path, overlay: Overlay) -> tuple[Path, ...]:
    """Write an overlay of a derived series, with one frame for each slice.

    At most 1 GiB of pixels goes into a file; more of them are numbered and share a series.

    Args:
        slices: the files of the enhanced series, in slice order.
        file: to be written.
        overlay: what.

    Returns:
        The files.

    Raises:
        MedQDMError: what lies on the disk does not lie on its series.
    """
    with tolerant():
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in slices]
        frame_bits = int(headers[0].Rows) * int(headers[0].Columns) * overlay.bits
        most = max(1, _MOST_BYTES * 8 // frame_bits)
        starts = range(0, len(headers), most)
        files = []
        for number, start in enumerate(starts, start=1):
            name = file.stem if len(starts) == 1 else f"{file.stem}-{number:02d}"
            path = file.with_name(f"{name}{file.suffix}")
            _write_part(headers, range(len(headers))[start : start + most], path, overlay, number)
            files.append(path)
    return tuple(files)


def _write_part(
    headers: Sequence[Dataset], part: range, file: Path, overlay: Overlay, number: int
) -> None:
    first = headers[part[0]]
    rows, columns = int(first.Rows), int(first.Columns)

    def frame(z: int) -> NDArray[np.generic]:
        return overlay.frame(z)[:rows, :columns]

    digest = hashlib.sha256()
    for z in part:
        digest.update(np.ascontiguousarray(frame(z)).tobytes())
    series = make_uid(overlay.name, str(first.SeriesInstanceUID))
    uids = Uids(series, make_uid("instance", series, digest.hexdigest()), number)
    thickness = _thickness_mm(headers)
    made = overlay.describe([_skeleton(headers[z], first, thickness) for z in part], first, uids)
    order = _slices_of_frames(made, {str(headers[z].SOPInstanceUID): z for z in part})
    _complete(made, headers, order, uids)
    delattr(made, overlay.keyword)
    length = (len(part) * rows * columns * overlay.bits + 7) // 8
    with file.open("wb") as stream:
        made.save_as(stream, enforce_file_format=True)
        element, even = Tag(overlay.keyword), length + length % 2
        stream.write(struct.pack("<HH2sHL", element.group, element.element, overlay.vr, 0, even))
        for block in _stored(map(frame, order), overlay.bits):
            stream.write(block)
        stream.write(b"\0" * (even - length))
    _check(file, headers, order, overlay, _stored(map(frame, order), overlay.bits))


def _skeleton(header: Dataset, first: Dataset, thickness_mm: float) -> Dataset:
    """What highdicom needs of a slice, with a single pixel: it describes frames, and sees none.

    Patient and study are taken over afterwards, byte for byte: highdicom refuses what it does not
    think valid, and a study may hold it all the same.
    """
    out = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
                    "FrameOfReferenceUID", "ImagePositionPatient"):  # fmt: skip
        out[keyword] = header[keyword]
    for keyword in ("ImageOrientationPatient", "PixelSpacing"):
        out[keyword] = first[keyword]
    out.Modality = "CT"
    out.SliceThickness = format_number_as_ds(thickness_mm)
    out.Rows = out.Columns = 1
    for keyword in _EMPTY:
        setattr(out, keyword, None)
    return out


def _thickness_mm(headers: Sequence[Dataset]) -> float:
    """That of the slices; where it is not known, their distance, as readers insist on a number."""
    known = headers[0].get("SliceThickness")
    if known:
        return float(known)
    places = np.array([header.ImagePositionPatient for header in headers], dtype=np.float64)
    if len(places) == 1:
        return float(headers[0].PixelSpacing[0])
    return float(np.median(np.linalg.norm(np.diff(places, axis=0), axis=1)))


def _slices_of_frames(made: Dataset, slices: dict[str, int]) -> list[int]:
    """The slice of each frame: highdicom puts frames in the order of their places."""
    return [
        slices[str(item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)]
        for item in made.PerFrameFunctionalGroupsSequence
    ]


def _complete(made: Dataset, headers: Sequence[Dataset], order: Sequence[int], uids: Uids) -> None:
    """Put in what the skeletons lacked, and take out what differs from run to run."""
    first = headers[order[0]]
    made.Rows, made.Columns = int(first.Rows), int(first.Columns)
    made.file_meta.ImplementationClassUID = make_uid("medqdm", "implementation class")
    made.file_meta.ImplementationVersionName = f"MEDQDM_{first.SoftwareVersions[0]}"[:16]
    dimension = make_uid("dimension", uids.instance)
    made.DimensionOrganizationSequence[0].DimensionOrganizationUID = dimension
    for item in made.DimensionIndexSequence:
        item.DimensionOrganizationUID = dimension
    for name in ("InstanceCreationDate", "InstanceCreationTime", "ContributingEquipmentSequence"):
        if name in made:
            delattr(made, name)
    made.ContentDate, made.ContentTime = _content_date(first, made)
    for element in first:
        if element.tag.group in _SHARED_GROUPS or element.keyword in _SHARED:
            made[element.tag] = copy.deepcopy(element)
    if "Laterality" in made and made.Modality == "SEG":
        del made.Laterality  # a segmentation tells it by its segments, if at all
    _place_frames(made, headers, order)


def _content_date(first: Dataset, made: Dataset) -> tuple[str, str]:
    """Objects must have a date; where slices kept a source's without, that of the source."""
    for kind in ("Content", "Series", "Acquisition", "Study"):
        if first.get(f"{kind}Date"):
            return str(first[f"{kind}Date"].value), str(first.get(f"{kind}Time") or "000000")
    return str(made.ContentDate), str(made.ContentTime)


def _place_frames(made: Dataset, headers: Sequence[Dataset], order: Sequence[int]) -> None:
    """Slices may differ by rounding in direction and spacing: then each frame has its own."""
    shared = made.SharedFunctionalGroupsSequence[0]
    for macro, keyword in _PLACE.items():
        if macro not in shared or len({str(headers[z][keyword].value) for z in order}) == 1:
            continue
        common = shared[macro]
        del shared[macro]
        for item, z in zip(made.PerFrameFunctionalGroupsSequence, order, strict=True):
            item[macro] = copy.deepcopy(common)
            setattr(item[macro].value[0], keyword, headers[z][keyword].value)


def _stored(frames: Iterable[NDArray[np.generic]], bits: int) -> Iterator[bytes]:
    """The bytes of frames one after another; single bits do not stop at the end of a frame."""
    if bits > 1:
        yield from (np.ascontiguousarray(frame).tobytes() for frame in frames)
        return
    rest = np.zeros(0, dtype=np.bool_)
    for frame in frames:
        line = np.concatenate([rest, frame.ravel().astype(np.bool_)])
        whole = len(line) // 8 * 8
        yield np.packbits(line[:whole], bitorder="little").tobytes()
        rest = line[whole:]
    yield np.packbits(rest, bitorder="little").tobytes()


def _check(
    file: Path,
    headers: Sequence[Dataset],
    order: Sequence[int],
    overlay: Overlay,
    blocks: Iterator[bytes],
) -> None:
    """Refuse an object that, read back from the disk, does not lie on its series."""
    found = overlay.read(file, lazy_frame_retrieval=True)
    for is_right, what in chain(
        _findings(found, headers, order), [(_ends_with(file, blocks), "hold the very pixels")]
    ):
        if not is_right:
            raise MedQDMError(
                f"{file.name}: an object beside a series must {what}, got another; "
                "nothing was written, please report this"
            )


def _findings(
    found: Dataset, headers: Sequence[Dataset], order: Sequence[int]
) -> Iterator[tuple[bool, str]]:
    first = headers[order[0]]
    yield int(found.NumberOfFrames) == len(order), f"have {len(order)} frames"
    yield (found.Rows, found.Columns) == (first.Rows, first.Columns), "have the series' pixels"
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        same = str(found.get(keyword) or "") == str(first.get(keyword) or "")
        yield same, f"have the {keyword} of its series"
    yield found.SeriesInstanceUID != first.SeriesInstanceUID, "have a series of its own"
    shared = found.SharedFunctionalGroupsSequence[0]
    items = found.PerFrameFunctionalGroupsSequence
    for k, (item, z) in enumerate(zip(items, order, strict=True), start=1):
        for macro, keyword in _PLACE.items():
            held = (item if macro in item else shared)[macro].value[0][keyword].value
            same = [float(v) for v in held] == [float(v) for v in headers[z][keyword].value]
            yield same, f"have frame {k} at the place of its slice"


def _ends_with(file: Path, blocks: Iterator[bytes]) -> bool:
    """Whether the file ends with these bytes, and a zero where their number is odd."""
    digest, length = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        length += len(block)
    held, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as stream:
        stream.seek(size - length - length % 2)
        while left := size - length % 2 - stream.tell():
            held.update(stream.read(min(left, 1 << 20)))
    return held.digest() == digest.digest()
