"""Mutants: a good derived series spoilt in one way each; medqdm's own check catches every one.

``MEDQDM_MUTANTS=table`` prints who catches which, the tools of others included.
"""

import copy
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import DataElement, Dataset
from pydicom.config import disable_value_validation
from pydicom.sequence import Sequence

from medqdm import io
from medqdm.errors import MedQDMError
from medqdm.io.dicom_check import check_series, check_slice
from tests.test_judges import complaints, need

UPSCALE = 4
Edit = Callable[[list[Dataset], list[Dataset]], None]


def each(change: Callable[[Dataset], object]) -> Edit:
    """The same change to every slice."""

    def edit(slices: list[Dataset], _sources: list[Dataset]) -> None:
        for one in slices:
            change(one)

    return edit


def put(**tags: object) -> Edit:
    return each(lambda d: [setattr(d, k, v) for k, v in tags.items()])


def drop(*keywords: str) -> Edit:
    return each(lambda d: [delattr(d, k) for k in keywords if k in d])


def take_from_source(*keywords: str) -> Edit:
    def edit(slices: list[Dataset], sources: list[Dataset]) -> None:
        for one, source in zip(slices, sources, strict=True):
            for keyword in keywords:
                setattr(one, keyword, copy.deepcopy(source[keyword].value))
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID

    return edit


def as_vr(keyword: str, vr: str, value: Callable[[Dataset], object]) -> Edit:
    def change(d: Dataset) -> None:
        new = value(d)
        d[keyword] = DataElement(pydicom.datadict.tag_for_keyword(keyword), vr, new)

    return each(change)


def pixels(change: Callable[[NDArray[np.int16], Dataset], NDArray[np.int16]]) -> Edit:
    def edit(d: Dataset) -> None:
        words = np.frombuffer(d.PixelData, dtype="<i2").reshape(d.Rows, d.Columns).copy()
        d.PixelData = change(words, d).astype("<i2").tobytes()

    return each(edit)


def swap_pixels(slices: list[Dataset], _sources: list[Dataset]) -> None:
    slices[0].PixelData, slices[1].PixelData = slices[1].PixelData, slices[0].PixelData


def one_uid_twice(slices: list[Dataset], _sources: list[Dataset]) -> None:
    slices[1].SOPInstanceUID = slices[0].SOPInstanceUID
    slices[1].file_meta.MediaStorageSOPInstanceUID = slices[0].SOPInstanceUID


def one_number_twice(slices: list[Dataset], _sources: list[Dataset]) -> None:
    slices[1].InstanceNumber = slices[0].InstanceNumber


def two_series(slices: list[Dataset], _sources: list[Dataset]) -> None:
    slices[1].SeriesInstanceUID = "2.25.99"


def move(slice_: int, mm: tuple[float, float, float]) -> Edit:
    def edit(slices: list[Dataset], _sources: list[Dataset]) -> None:
        moved = np.array(slices[slice_].ImagePositionPatient, dtype=float) + mm
        slices[slice_].ImagePositionPatient = [f"{v:.6f}" for v in moved]

    return edit


def shift_in_pixels(pixels_: float) -> Edit:
    """All origins, by so many old pixels in both directions."""

    def change(d: Dataset) -> None:
        spacing_y, spacing_x = (float(v) * UPSCALE for v in d.PixelSpacing)
        x, y, z = (float(v) for v in d.ImagePositionPatient)
        d.ImagePositionPatient = [x + pixels_ * spacing_x, y + pixels_ * spacing_y, z]

    return each(change)


def smear(words: NDArray[np.int16], d: Dataset) -> NDArray[np.int16]:
    edge = np.argwhere(words == d.PixelPaddingValue).max(axis=0)
    words[edge[0] - 4 : edge[0] + 4, : edge[1]] = d.PixelPaddingValue + 30
    return words


def hit_padding(words: NDArray[np.int16], d: Dataset) -> NDArray[np.int16]:
    words[-20:-10, -20:-10] = d.PixelPaddingValue
    return words


def wrap(words: NDArray[np.int16], _d: Dataset) -> NDArray[np.int16]:
    words[90:100, 90:100] = 3000  # BitsStored 12 with sign ends at 2047
    return words


def in_item(keyword: str, change: Callable[[Dataset], object]) -> Edit:
    return each(lambda d: change(d[keyword].value[-1]))


def private(d: Dataset, *, creator: bool) -> None:
    if creator:
        d.add_new(0x00270010, "LO", "MAKER")
    d.add_new(0x00271042, "FL", 1.5)


def scanner_stays(slices: list[Dataset], sources: list[Dataset]) -> None:
    take_from_source("Manufacturer", "ManufacturerModelName", "StationName")(slices, sources)
    drop("ContributingEquipmentSequence")(slices, sources)


def swap_matrix(d: Dataset) -> None:
    d.Rows, d.Columns = d.Columns, d.Rows


def item_with_signature(d: Dataset) -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99X", "x"
    item.MACParametersSequence = Sequence([])
    d.ProcedureCodeSequence = Sequence([item])


MUTANTS: dict[str, Edit] = {
    # identity
    "SOPInstanceUID of the source": take_from_source("SOPInstanceUID"),
    "SeriesInstanceUID of the source": take_from_source("SeriesInstanceUID"),
    "a new StudyInstanceUID": put(StudyInstanceUID="2.25.7"),
    "another StudyID": put(StudyID="9"),
    "another StudyDate": put(StudyDate="20240101"),
    "another AccessionNumber": put(AccessionNumber="X"),
    "another PatientID": put(PatientID="9999"),
    "another PatientName": put(PatientName="Other^One"),
    "another birth date": put(PatientBirthDate="19500101"),
    "no PatientSex": drop("PatientSex"),
    "secondary capture class": each(
        lambda d: (
            (
                setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"),
                setattr(d.file_meta, "MediaStorageSOPClassUID", "1.2.840.10008.5.1.4.1.1.7"),
            )
        )
    ),
    "file meta of another instance": each(
        lambda d: setattr(d.file_meta, "MediaStorageSOPInstanceUID", "2.25.8")
    ),
    "one SOPInstanceUID twice": one_uid_twice,
    "two series": two_series,
    "UID with a leading zero": each(lambda d: setattr(d, "SeriesInstanceUID", "2.25.012")),
    "series number of the source": take_from_source("SeriesNumber"),
    "no SeriesNumber": drop("SeriesNumber"),
    "Modality MR": put(Modality="MR"),
    "no PatientPosition": drop("PatientPosition"),
    "another frame of reference": put(FrameOfReferenceUID="2.25.9"),
    "no frame of reference": drop("FrameOfReferenceUID"),
    "another character set": put(SpecificCharacterSet="ISO_IR 192"),
    # image, derivation, equipment
    "ImageType left ORIGINAL": put(ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5"]),
    "ImageType value 2 PRIMARY": put(ImageType=["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5"]),
    "ImageType without value 3": put(ImageType=["DERIVED", "SECONDARY"]),
    "ImageType with an invented value 4": put(
        ImageType=["DERIVED", "SECONDARY", "AXIAL", "SUPERRES"]
    ),
    "no InstanceNumber": drop("InstanceNumber"),
    "one instance number twice": one_number_twice,
    "no source image": drop("SourceImageSequence"),
    "source image without class": in_item(
        "SourceImageSequence", lambda i: delattr(i, "ReferencedSOPClassUID")
    ),
    "source image of another instance": in_item(
        "SourceImageSequence", lambda i: setattr(i, "ReferencedSOPInstanceUID", "2.25.5")
    ),
    "spatial locations preserved YES": in_item(
        "SourceImageSequence", lambda i: setattr(i, "SpatialLocationsPreserved", "YES")
    ),
    "no derivation code": drop("DerivationCodeSequence"),
    "no derivation description": drop("DerivationDescription"),
    "the scanner as maker": scanner_stays,
    "no contributing equipment": drop("ContributingEquipmentSequence"),
    "contributing equipment without maker": in_item(
        "ContributingEquipmentSequence", lambda i: delattr(i, "Manufacturer")
    ),
    "the scanner's SpatialResolution stays": put(SpatialResolution=0.35),
    "qualified as PRODUCT": put(ContentQualification="PRODUCT"),
    "no AcquisitionNumber": drop("AcquisitionNumber"),
    "no KVP": drop("KVP"),
    "AcquisitionDate overwritten": put(AcquisitionDate="20260101"),
    "private block kept": each(lambda d: private(d, creator=True)),
    "private element without creator": each(lambda d: private(d, creator=False)),
    "signature kept": put(DigitalSignaturesSequence=Sequence([Dataset()])),
    "signature kept in an item": each(item_with_signature),
    "performed step kept": put(PerformedProcedureStepID="17"),
    # geometry
    "origin not moved": shift_in_pixels((1 - 1 / UPSCALE) / 2),
    "origin moved the wrong way": shift_in_pixels(1 - 1 / UPSCALE),
    "half a new pixel off": shift_in_pixels(0.5 / UPSCALE),
    "spacing of the source": take_from_source("PixelSpacing"),
    "spacings swapped": each(lambda d: setattr(d, "PixelSpacing", d.PixelSpacing[::-1])),
    "no PixelSpacing": drop("PixelSpacing"),
    "orientation flipped": put(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0]),
    "orientation not orthogonal": put(ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]),
    "orientation without unit length": put(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]),
    "no ImagePositionPatient": drop("ImagePositionPatient"),
    "position in the wrong VR": as_vr(
        "ImagePositionPatient", "LO", lambda d: [str(v) for v in d.ImagePositionPatient]
    ),
    "position of more than 16 characters": as_vr(
        "ImagePositionPatient", "DS", lambda d: [f"{float(v):.17f}" for v in d.ImagePositionPatient]
    ),
    "one slice 1 mm too high": move(1, (0, 0, 1)),
    "two slices at one place": move(1, (0, 0, -2.5)),
    "one slice moved in plane": move(2, (0.3, 0, 0)),
    "another SliceThickness": put(SliceThickness=0.75),
    "aspect ratio left": put(PixelAspectRatio=["1", "1"]),
    "rows and columns swapped": each(swap_matrix),
    "rows of the source": take_from_source("Rows", "Columns"),
    # pixels
    "wrapped at 12 bits": pixels(wrap),
    "smeared padding": pixels(smear),
    "a measured pixel equals the padding": pixels(hit_padding),
    "padding value in the wrong VR": as_vr("PixelPaddingValue", "US", lambda _: 65136),
    "no padding value": drop("PixelPaddingValue"),
    "padding value of another number": put(PixelPaddingValue=-5),
    "another slope": put(RescaleSlope="2"),
    "another intercept": put(RescaleIntercept="0"),
    "no intercept": drop("RescaleIntercept"),
    "RescaleType US": put(RescaleType="US"),
    "wrong HighBit": put(HighBit=15),
    "BitsAllocated 8": put(BitsAllocated=8),
    "BitsStored below the source's": put(BitsStored=11, HighBit=10),
    "sign flipped": put(PixelRepresentation=0),
    "photometric interpretation flipped": put(PhotometricInterpretation="MONOCHROME1"),
    "three samples": put(SamplesPerPixel=3),
    "stale smallest and largest": each(
        lambda d: (
            (
                d.add_new("SmallestImagePixelValue", "SS", 0),
                d.add_new("LargestImagePixelValue", "SS", 9),
            )
        )
    ),
    "overlay of the old size": each(
        lambda d: (
            (
                d.add_new(0x60000010, "US", 48),
                d.add_new(0x60000011, "US", 40),
                d.add_new(0x60000040, "CS", "G"),
                d.add_new(0x60000050, "SS", [1, 1]),
                d.add_new(0x60000100, "US", 1),
                d.add_new(0x60000102, "US", 0),
                d.add_new(0x60003000, "OW", bytes(240)),
            )
        )
    ),
    "curve kept": each(lambda d: d.add_new(0x50000005, "US", 2)),
    "icon kept": put(IconImageSequence=Sequence([])),
    "lossy reset to 00": put(LossyImageCompression="00"),
    "lossy without ratio": drop("LossyImageCompressionRatio"),
    "pixels cut short": each(lambda d: setattr(d, "PixelData", d.PixelData[:-4000])),
    "pixels in the other byte order": pixels(lambda w, _: w.byteswap()),
    "image upside down": pixels(lambda w, _: w[::-1]),
    "image mirrored": pixels(lambda w, _: w[:, ::-1]),
    "HU stored without the intercept": pixels(lambda w, _: w - 400),
    "pixels of the neighbour": swap_pixels,
    "window of another image": put(WindowCenter="3000", WindowWidth="1"),
}
UNSEEN = (  # by every tool of others that the specification lists
    "wrapped at 12 bits",
    "smeared padding",
    "ImageType left ORIGINAL",
    "padding value in the wrong VR",
    "Modality MR",
    "overlay of the old size",
    "stale smallest and largest",
    "lossy without ratio",
)


class Written(NamedTuple):
    """A good series and all that its check needs."""

    folder: Path
    source: Path
    headers: list[Dataset]
    padding: list[NDArray[np.bool_]]
    words: list[NDArray[np.int16]]


@pytest.fixture
def written(ct_series, phantom, tmp_path) -> Written:
    hu = np.clip(phantom[:3], -1000, 1500)
    hu[:, :6, :6] = -2000
    source = ct_series(
        hu,
        bits=12,
        intercept=-400,
        PixelPaddingValue=-1600,
        LossyImageCompression="01",
        LossyImageCompressionRatio=10,
        LossyImageCompressionMethod="ISO_10918_1",
        WindowCenter=40,
        WindowWidth=400,
        SpecificCharacterSet="ISO_IR 100",
    )
    volume = io.read(source)
    images = [image.repeat(UPSCALE, 0).repeat(UPSCALE, 1) for image in volume.hu]
    io.write_series(
        volume, images, tmp_path / "good", upscale=UPSCALE, description="nearest neighbour, test",
        software_version="0", weights_id="none", uid_entropy=["test"],
    )  # fmt: skip
    files = sorted((tmp_path / "good").iterdir())
    assert volume.padding is not None
    return Written(
        tmp_path / "good",
        source,
        list(volume.source.headers),
        [m.repeat(UPSCALE, 0).repeat(UPSCALE, 1) for m in volume.padding],
        [pydicom.dcmread(f).pixel_array for f in files],
    )


def spoil(written: Written, edit: Edit, folder: Path) -> list[Path]:
    """The series with one fault, in a folder of its own."""
    folder.mkdir()
    files = sorted(written.folder.iterdir())
    with disable_value_validation():
        slices = [pydicom.dcmread(file) for file in files]
        edit(slices, written.headers)
        for one, file in zip(slices, files, strict=True):
            pydicom.dcmwrite(folder / file.name, one, enforce_file_format=False)
    return [folder / file.name for file in files]


def is_caught_by_us(written: Written, files: list[Path]) -> str:
    """What our own check says of a series; empty if it lets it pass."""
    try:
        with disable_value_validation():
            for k, file in enumerate(files):
                check_slice(file, written.headers[k], written.padding[k], words=written.words[k])
            check_series(files, written.headers)
    except MedQDMError as error:
        return str(error)
    return ""


def test_there_are_at_least_the_42_kinds_of_the_specification() -> None:
    assert len(MUTANTS) >= 42
    assert set(UNSEEN) <= set(MUTANTS)


def test_the_good_one_passes(written: Written) -> None:
    assert is_caught_by_us(written, sorted(written.folder.iterdir())) == ""


def test_every_mutant_is_caught_by_our_own_check(written: Written, tmp_path: Path) -> None:
    passed = {
        name
        for k, (name, edit) in enumerate(MUTANTS.items())
        if not is_caught_by_us(written, spoil(written, edit, tmp_path / str(k)))
    }
    assert passed == set()


class Judges:
    """What the tools of others say of a series beside its source."""

    def __init__(self, written: Written, scratch: Path) -> None:
        self._written, self._scratch = written, scratch
        self._sources = sorted(written.source.iterdir())
        self._known = self._all(sorted(written.folder.iterdir()), "good")

    def catch(self, files: list[Path], name: str) -> set[str]:
        """Those that see more than in the good series."""
        found = self._all(files, name)
        return {judge for judge, said in found.items() if said != self._known[judge]}

    def _all(self, files: list[Path], name: str) -> dict[str, object]:
        both = [*self._sources, *files]
        return {
            "dciodvfy": {m for f in files for m in complaints(need("dciodvfy"), [f], "-new")},
            "dcentvfy": set(complaints(need("dcentvfy"), both)),
            "highdicom": self._highdicom(files),
            "dcm2niix": self._dcm2niix(files[0].parent, name),
        }

    def _highdicom(self, files: list[Path]) -> object:
        try:
            with disable_value_validation():
                volume = highdicom.get_volume_from_series([highdicom.imread(f) for f in files])
            index = np.array([[0, -0.5, -0.5], [0, volume.shape[1] - 0.5, volume.shape[2] - 0.5]])
            edges = volume.map_indices_to_reference(index).round(3).tolist()
            return edges, volume.shape
        except Exception as error:  # whatever it says, it says something
            return type(error).__name__

    def _dcm2niix(self, folder: Path, name: str) -> object:
        out = self._scratch / f"nifti-{name}"
        out.mkdir()
        tool = need("dcm2niix")
        subprocess.run(
            [tool, "-z", "n", "-b", "n", "-f", "v", "-o", out, folder],
            check=False, capture_output=True,
        )  # fmt: skip
        found = []
        for file in sorted(out.iterdir()):
            image = nibabel.load(file)
            index = np.array([[-0.5, -0.5, 0, 1], [*(n - 0.5 for n in image.shape[:2]), 0, 1]])
            found.append((file.name, image.shape, (image.affine @ index.T).round(2).tolist()))
        return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_the_tools_of_others_catch(written: Written, tmp_path: Path) -> None:
    for tool in ("dciodvfy", "dcentvfy", "dcm2niix"):
        need(tool)
    judges = Judges(written, tmp_path)
    caught = {}
    for k, (name, edit) in enumerate(MUTANTS.items()):
        caught[name] = judges.catch(spoil(written, edit, tmp_path / str(k)), str(k))
    by_judge = {
        j: sum(j in c for c in caught.values()) for j in sorted(set().union(*caught.values()))
    }
    if os.environ.get("MEDQDM_MUTANTS") == "table":
        for name, who in caught.items():
            print(f"{name}: {', '.join(sorted(who)) or 'nobody but us'}")  # noqa: T201
        seen = sum(bool(who) for who in caught.values())
        print(f"{len(MUTANTS)} mutants, {seen} caught by others: {by_judge}")  # noqa: T201
    assert sum(bool(who) for who in caught.values()) >= 42
    assert by_judge["dciodvfy"] >= 20
    assert [name for name in UNSEEN if caught[name]] == []
