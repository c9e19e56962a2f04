"""The identity of a source: it changes with all that an output carries on."""

import copy
from dataclasses import replace

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  (its usual name)
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medqdm.io import read
from medqdm.io.identity import digest_source
from medqdm.volume import slice_digests


def nested(text: str) -> Sequence:
    inner, outer = Dataset(), Dataset()
    inner.CodeMeaning, inner.CodeValue = text, "1"
    outer.PatientName = "Other^Name"
    outer.PurposeOfReferenceCodeSequence = Sequence([inner])
    return Sequence([outer, Dataset()])


@pytest.fixture(
    params=[ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"]
)
def folder(ct_series, request):
    tags = {
        "OtherPatientIDsSequence": nested("kept"), "PatientWeight": 70.5, "Exposure": 12,
        "OtherPatientNames": ["One^A", "Two^B"], "PatientComments": "none",
        "SpecificCharacterSet": "ISO_IR 100", "WindowCenter": [40, 400], "WindowWidth": [400, 1500],
    }  # fmt: skip
    return ct_series(np.zeros((3, 8, 8)), syntax=request.param, **tags)


def everything(dataset: Dataset) -> None:
    for element in dataset.iterall():
        str(element.value)


def changed(value: object, random: np.random.Generator) -> object:
    """Another value of the same kind."""
    if isinstance(value, pydicom.multival.MultiValue):
        values = list(value)
        k = int(random.integers(len(values)))
        return [changed(v, random) if n == k else v for n, v in enumerate(values)]
    if isinstance(value, int | float):
        return type(value)(float(value) + 1)
    text = str(value or "20200102")
    return text[:-1] + ("7" if text[-1:] != "7" else "6")


def change_one(dataset: Dataset, random: np.random.Generator) -> str:
    """Change, add or delete one element, at any depth; its name."""
    element = list(dataset)[int(random.integers(len(dataset)))]
    kind = random.choice(["change", "delete", "add"], p=[0.7, 0.15, 0.15])
    if kind == "add":
        dataset.add_new(0x00104000 if "PatientComments" not in dataset else 0x00102203, "LT", "x")
    elif kind == "delete":
        del dataset[element.tag]
    elif element.VR != "SQ":
        element.value = changed(element.value, random)  # a text of its own length, as dates have
    elif len(element.value[0]):
        return f"{element.keyword} > {change_one(element.value[0], random)}"
    return f"{kind} {element.keyword}"


def test_any_element_of_any_slice_counts(folder) -> None:
    volume = read(folder)
    before = digest_source(volume)
    assert digest_source(read(folder)) == before
    random = np.random.default_rng(0)
    for _ in range(60):
        headers = copy.deepcopy(volume.source.headers)
        what = change_one(headers[int(random.integers(3))], random)
        assert digest_source(replace(volume, source=replace(volume.source, headers=headers))) != (
            before
        ), what


def test_it_does_not_matter_what_was_looked_at_before(folder) -> None:
    volume, seen = read(folder), read(folder)
    for header in seen.source.headers:
        everything(header)
    assert digest_source(seen) == digest_source(volume)
    # and looking leaves what is merely kept as it was
    raw = volume.source.headers[0].get_item("PatientComments")
    assert isinstance(raw, RawDataElement)


def test_names_that_their_character_set_cannot_decode_differ(ct_series) -> None:
    """Both would be shown as two question marks."""
    folder = ct_series(np.zeros((1, 8, 8)), SpecificCharacterSet="ISO_IR 192", PatientName="AB")
    (file,) = folder.iterdir()
    whole, found = file.read_bytes(), set()
    for name in (b"\xb0\xb1", b"\xb2\xb3"):
        file.write_bytes(whole.replace(b"PN\2\0AB", b"PN\2\0" + name))
        found.add(digest_source(read(folder)))
    assert len(found) == 2


@pytest.mark.parametrize("lazy", [False, True])
def test_pixels_padding_and_geometry_count(folder, lazy) -> None:
    volume = read(folder)
    if not lazy:
        volume = replace(volume, hu=np.asarray(volume.hu))
    random = np.random.default_rng(0)
    mask = random.random(volume.shape) < 0.5
    hu = np.asarray(volume.hu).copy()
    hu[tuple(random.integers(s) for s in volume.shape)] += 1
    other = mask.copy()
    other[tuple(random.integers(s) for s in volume.shape)] ^= True
    shift = np.zeros(3)
    shift[random.integers(3)] = 1e-9
    variants = [
        volume, replace(volume, hu=hu), replace(volume, padding=mask),
        replace(volume, padding=other), replace(volume, origins_mm=volume.origins_mm + shift),
        replace(volume, x_step_mm=volume.x_step_mm + shift),
        replace(volume, y_step_mm=volume.y_step_mm + shift),
        replace(volume, source=replace(volume.source, acquisition=2)),
    ]  # fmt: skip
    assert len({digest_source(v) for v in variants}) == len(variants)


def test_padding_of_a_series_counts_without_decoding_it_again(ct_series) -> None:
    """The same values, of which other words are padding."""
    found = []
    for folder, value in (("none", -500), ("some", -1000)):
        hu = np.zeros((2, 8, 8))
        hu[:, :, :2] = -1000
        tags = {"PixelPaddingValue": value + 1024, "SeriesInstanceUID": "1.2.3"}
        found.append(read(ct_series(hu, folder=folder, **tags)))
    assert found[0].padding is None
    padding = np.stack(list(found[1].padding))
    assert found[1].padding.digests == slice_digests(padding) != slice_digests(~padding)


def test_fields_of_a_nifti_file_count(tmp_path) -> None:
    def write(name: str, **fields: object) -> str:
        image = nibabel.Nifti1Image(np.zeros((8, 8, 3), np.int16), np.diag([0.7, 0.7, 2, 1]))
        for key, value in fields.items():
            if key == "extension":
                image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", value))
            else:
                image.header[key] = value
        image.to_filename(tmp_path / name)
        return digest_source(read(tmp_path / name))

    assert write("a.nii") == write("b.nii.gz")
    fields = [{}, {"aux_file": b"x"}, {"intent_name": b"CT"}, {"extension": b"one"},
              {"extension": b"two"}, {"sform_code": 1}, {"toffset": 3}]  # fmt: skip
    assert len({write("c.nii", **each) for each in fields}) == len(fields)


def test_fields_of_an_itk_file_count(tmp_path) -> None:
    def write(**fields: str) -> str:
        image = sitk.GetImageFromArray(np.zeros((3, 8, 8), np.int16))
        image.SetSpacing((0.7, 0.7, 2))
        for key, value in fields.items():
            image.SetMetaData(key, value)
        sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
        return digest_source(read(tmp_path / "a.nrrd"))

    assert write() == write()
    fields = [{}, {"patient": "one"}, {"patient": "two"}, {"other": "one"}]
    assert len({write(**each) for each in fields}) == len(fields)
