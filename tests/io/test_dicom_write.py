from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ImplicitVRLittleEndian

from medqdm.errors import MedQDMError
from medqdm.io import read, write_series
from medqdm.io.dicom_check import check_slice
from medqdm.io.dicom_header import new_series_number
from medqdm.volume import Volume, check_same_edges

DATA = Path(__file__).parent.parent / "data"


def _nearest(volume, upscale):
    return [image.repeat(upscale, 0).repeat(upscale, 1) for image in volume.hu]


def _write(volume, folder, slices=None, *, upscale=4, entropy=("seed 0",), **options):
    return write_series(
        volume,
        _nearest(volume, upscale) if slices is None else slices,
        folder,
        upscale=upscale,
        description="In-plane super-resolution, test",
        software_version="0.1.0",
        weights_id="sha256:abc",
        uid_entropy=entropy,
        **options,
    )


def _headers(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(file) for file in sorted(folder.glob("*.dcm"))]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 0.8, -0.6), (0.6, 0.8, 0, 0, 0, -1)]
)
@pytest.mark.parametrize("upscale", [2, 4, 8])
def test_a_marked_voxel_and_the_edges_stay_where_they_are(ct_series, out, orientation, upscale):
    volume = read(ct_series(orientation=orientation))
    report = _write(volume, out, upscale=upscale)
    enhanced = read(out)
    assert report.num_slices == 4
    assert report.files == ("IM0001.dcm", "IM0002.dcm", "IM0003.dcm", "IM0004.dcm")
    assert enhanced.shape == (4, 48 * upscale, 40 * upscale)
    mark = np.argwhere(enhanced.hu == 1500).mean(axis=0)
    np.testing.assert_allclose(
        enhanced.position_mm(round(mark[0]), mark[1], mark[2]),
        volume.position_mm(*np.argwhere(volume.hu == 1500)[0]),
        atol=1e-6,
    )
    check_same_edges(volume.corners_mm(), enhanced.corners_mm(), where="test")


def test_hu_come_back(ct_series, out):
    volume = read(ct_series(slope=[1, 0.5, 0.25, 1], intercept=[-1024, -1000, -500, 0]))
    _write(volume, out, upscale=2)
    np.testing.assert_array_equal(read(out).hu, np.stack(_nearest(volume, 2)))
    assert [float(h.RescaleSlope) for h in _headers(out)] == [1, 0.5, 0.25, 1]


def test_highdicom_sees_the_volume(ct_series, out):
    volume = read(ct_series())
    _write(volume, out)
    seen = highdicom.get_volume_from_series(_headers(out))
    assert seen.spatial_shape == (4, 192, 160)
    np.testing.assert_allclose(seen.spacing, (2.5, 0.2, 0.15), atol=1e-9)


def test_what_is_kept_and_what_is_new(ct_series, out):
    source = ct_series(AcquisitionTime="010203", WindowCenter=40, WindowWidth=400)
    volume = read(source)
    report = _write(volume, out)
    before, after = volume.source.headers[2], _headers(out)[2]
    for keyword in (
        "PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID",
        "ImageOrientationPatient", "SliceThickness", "AcquisitionTime", "AcquisitionDate", "KVP",
        "WindowCenter", "ConvolutionKernel", "InstanceNumber", "PatientPosition", "Modality",
    ):  # fmt: skip
        assert after[keyword].value == before[keyword].value, keyword
    assert after.SeriesInstanceUID == report.series_instance_uid != before.SeriesInstanceUID
    assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID
    assert list(after.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5"]
    assert after.SeriesNumber // 10_000 == 304
    assert after.SeriesDescription == "Thorax SRx4 AI"
    assert after.ContentQualification == "RESEARCH"
    assert after.DerivationDescription == "In-plane super-resolution, test"
    assert after.DerivationCodeSequence[0].CodeValue == "113085"
    reference = after.SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert reference.SpatialLocationsPreserved == "NO"
    referenced = after.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == before.SeriesInstanceUID
    assert referenced.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == (
        before.SOPInstanceUID
    )


def test_the_scanner_becomes_contributing_equipment(ct_series, out):
    _write(read(ct_series(SpatialResolution=0.35, GantryID="G", InstitutionName="Clinic")), out)
    after = _headers(out)[0]
    assert (after.Manufacturer, after.ManufacturerModelName) == ("medqdm", "medqdm")
    assert list(after.SoftwareVersions) == ["0.1.0", "weights sha256:abc"]
    item = after.ContributingEquipmentSequence[0]
    assert (item.Manufacturer, item.StationName, item.SoftwareVersions) == ("Maker", "CT1", "VB10")
    assert (item.SpatialResolution, item.InstitutionName) == (0.35, "Clinic")
    assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert not {"StationName", "SpatialResolution", "GantryID"} & set(after.dir())


def test_a_derived_source_counts_as_processed_and_keeps_its_history(ct_series, out, tmp_path):
    _write(read(ct_series()), out, upscale=2)
    _write(read(out), tmp_path / "twice", upscale=2)
    after = _headers(tmp_path / "twice")[0]
    codes = [
        i.PurposeOfReferenceCodeSequence[0].CodeValue for i in after.ContributingEquipmentSequence
    ]
    assert codes == ["109101", "109102"]
    assert len(after.SourceImageSequence) == len(after.DerivationCodeSequence) == 2
    assert after.DerivationDescription.count("super-resolution") == 2


def test_what_described_the_old_pixels_is_gone(ct_series, out):
    def burden(dataset, k):
        dataset.private_block(0x0027, "MAKER", create=True).add_new(0x42, "FL", 1.5)
        nested = Dataset()
        nested.private_block(0x0029, "MAKER", create=True).add_new(0x01, "LO", "x")
        nested.CodeValue, nested.CodingSchemeDesignator = "1", "99X"
        nested.CodeMeaning = "kept"
        dataset.ProcedureCodeSequence = Sequence([nested])
        dataset.OtherPatientIDsSequence = Sequence([nested])
        dataset.SmallestImagePixelValue, dataset.LargestImagePixelValue = -1000, 2000
        dataset.add_new(0x60000010, "US", 48)
        dataset.add_new(0x60003000, "OW", bytes(240))
        dataset.add_new(0x50000005, "US", 2)
        dataset.DigitalSignaturesSequence = Sequence([Dataset()])
        dataset.PixelAspectRatio = [1, 1]
        dataset.OperatorsName = "Somebody"
        dataset.PerformedProcedureStepID = "17"

    _write(read(ct_series(edit=burden)), out)
    after = _headers(out)[0]
    tags = {element.tag for element in after.iterall()}
    assert not any(tag.is_private or 0x5000 <= tag.group <= 0x60FF for tag in tags)
    for keyword in (
        "SmallestImagePixelValue", "LargestImagePixelValue", "DigitalSignaturesSequence",
        "PixelAspectRatio", "OperatorsName", "PerformedProcedureStepID",
    ):  # fmt: skip
        assert keyword not in after
    assert after.ProcedureCodeSequence[0].CodeMeaning == "kept"
    assert after.OtherPatientIDsSequence[0].CodeMeaning == "kept"
    assert after.ContributingEquipmentSequence[0].OperatorsName == "Somebody"


def test_padding_is_put_back_and_nothing_else_equals_it(ct_series, phantom, out):
    hu = phantom.copy()
    hu[:, :6, :6] = -2000
    volume = read(ct_series(hu, PixelPaddingValue=-976))
    slices = _nearest(volume, 4)
    slices[0][30:40, 30:40] = -2000  # a network that hits the code by chance
    _write(volume, out, slices)
    enhanced, after = read(out), _headers(out)[0]
    expected = np.zeros((4, 192, 160), dtype=bool)
    expected[:, :24, :24] = True
    np.testing.assert_array_equal(enhanced.padding, expected)
    assert after.pixel_array[0, 0] == -976
    assert after.pixel_array[30, 30] == -975
    assert after["PixelPaddingValue"].VR == "SS"


def test_undeclared_padding_is_declared(ct_series, phantom, out):
    hu = phantom.copy()
    hu[:, [0, 0, -1, -1], [0, -1, 0, -1]] = -3024
    _write(read(ct_series(hu)), out, upscale=2)
    after = _headers(out)[0]
    assert after.PixelPaddingValue == -2000
    assert (after.pixel_array == -2000).sum() == 4 * 4
    assert read(out).source.warnings == ()


def test_padding_beyond_bits_stored_widens_the_words(ct_series, phantom, out):
    hu = phantom.copy()
    hu[:, :6, :6] = -3024
    volume = read(ct_series(hu, bits=12, signed=False, PixelPaddingValue=63536))
    _write(volume, out, upscale=2)
    after = _headers(out)[0]
    assert (after.BitsStored, after.HighBit, after.PixelPaddingValue) == (16, 15, 63536)
    np.testing.assert_array_equal(read(out).hu, np.stack(_nearest(volume, 2)))


def test_overshoot_is_clipped_and_counted(ct_series, out):
    volume = read(ct_series(bits=12, signed=False))
    slices = _nearest(volume, 2)
    slices[1][10, 10:13] = 5000
    slices[1][11, 10:12] = -3000
    report = _write(volume, out, slices, upscale=2)
    assert report.num_clipped == 5
    enhanced = read(out)
    assert (enhanced.hu[1, 10, 10], enhanced.hu[1, 11, 10]) == (3071, -1024)


def test_the_same_run_gives_the_same_uids_and_other_pixels_do_not(ct_series, tmp_path):
    volume = read(ct_series())
    changed = _nearest(volume, 4)
    changed[3][5, 5] += 1
    runs = {
        "first": _write(volume, tmp_path / "first"),
        "second": _write(volume, tmp_path / "second"),
        "changed": _write(volume, tmp_path / "changed", changed),
        "seed": _write(volume, tmp_path / "seed", entropy=["seed 1"]),
    }
    uids = {name: [h.SOPInstanceUID for h in _headers(tmp_path / name)] for name in runs}
    assert uids["first"] == uids["second"]
    assert runs["first"].series_instance_uid == runs["second"].series_instance_uid
    assert uids["first"][:3] == uids["changed"][:3]
    assert uids["first"][3] != uids["changed"][3]
    assert not set(uids["first"]) & set(uids["seed"])
    assert runs["first"].series_instance_uid != runs["seed"].series_instance_uid
    every = {uid for name in uids for uid in uids[name]}
    assert all(uid.is_valid and len(uid) <= 64 for uid in every)
    assert not every & {h.SOPInstanceUID for h in volume.source.headers}


class TestSeriesNumber:
    @pytest.fixture
    def acquisitions(self, ct_series, phantom):
        """Two acquisitions of one series at the same places."""
        same = {"StudyInstanceUID": "1.2.8", "SeriesInstanceUID": "1.2.3",
                "FrameOfReferenceUID": "1.2.9"}  # fmt: skip
        folder = ct_series(folder="both/one", **same).parent
        ct_series(phantom + 7, folder="both/two", AcquisitionNumber=2, **same)
        return [read(folder, series=f"1.2.3#{n}") for n in (1, 2)]

    def test_acquisitions_are_neighbours_and_say_which_they_are(self, acquisitions, tmp_path):
        found = []
        for run in ("once", "again"):
            for n, volume in enumerate(acquisitions, 1):
                _write(volume, tmp_path / run / str(n), dates="source")
            found.append([_headers(tmp_path / run / str(n))[0] for n in (1, 2)])
        first, second = found[0]
        assert (second.SeriesNumber - first.SeriesNumber) % 10_000 == 1
        assert (first.SeriesDescription, second.SeriesDescription) == (
            "Thorax #1 SRx4 AI", "Thorax #2 SRx4 AI",
        )  # fmt: skip
        assert first.SeriesInstanceUID != second.SeriesInstanceUID
        assert found[0] == found[1]

    def test_series_of_one_number_and_other_runs_differ(self, ct_series, tmp_path):
        volume, other = (read(ct_series(folder=name, StudyInstanceUID="1.2.8",
                                        SeriesInstanceUID=uid))
                         for name, uid in (("a", "1.2.3"), ("b", "1.2.4")))  # fmt: skip
        _write(volume, tmp_path / "1")
        _write(other, tmp_path / "2")
        _write(volume, tmp_path / "3", entropy=["seed 1"])
        _write(volume, tmp_path / "4", upscale=2)
        found = [int(_headers(tmp_path / str(k))[0].SeriesNumber) for k in (1, 2, 3, 4)]
        assert [number // 10_000 for number in found] == [304, 304, 304, 302]
        assert len(set(found)) == 4

    @pytest.mark.parametrize(
        ("number", "expected"),
        [("2146", 21460400), ("2147", 400), ("", 400), ("-3", 400), (str(2**31 - 1), 400)],
    )
    def test_it_is_an_integer_string(self, number, expected):
        header = Dataset()
        header.SeriesNumber = number
        for digits in (0, 9999):
            new = new_series_number(header, 4, digits)
            assert new == expected * 100 + digits < 2**31

    def test_it_is_never_that_of_the_source(self):
        header = Dataset()
        header.SeriesNumber = 47351  # too large to go before the other digits
        assert new_series_number(header, 4, 7351) == 47352


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_encodings_keep_their_values(ct_series, out, syntax):
    tags = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "M\u00fcller", "PatientWeight": 70}
    volume = read(ct_series(syntax=syntax, RegionOfResidence="K\u00f6ln", **tags))
    _write(volume, out, upscale=2)
    after = _headers(out)[0]
    assert (after.PatientName, after.RegionOfResidence) == ("M\u00fcller", "K\u00f6ln")
    assert (after.PatientWeight, after.KVP, after.InstanceNumber) == (70, 120, 1)
    np.testing.assert_array_equal(read(out).hu, np.stack(_nearest(volume, 2)))


def test_lossy_sources_stay_lossy(ct_series, out):
    tags = {"LossyImageCompression": "01", "LossyImageCompressionRatio": 12.5}
    _write(read(ct_series(**tags)), out)
    after = _headers(out)[0]
    assert (after.LossyImageCompression, after.LossyImageCompressionRatio) == ("01", 12.5)


def test_new_times_follow_the_objects_offset(ct_series, out):
    _write(read(ct_series(TimezoneOffsetFromUTC="+1400")), out)
    _write(read(ct_series(folder="west", TimezoneOffsetFromUTC="-1000")), out / "west")
    east, west = _headers(out)[0], _headers(out / "west")[0]
    assert east.InstanceCreationDate != west.InstanceCreationDate


def test_nothing_appears_if_a_slice_fails(ct_series, tmp_path, out):
    volume = read(ct_series())

    def slices():
        yield from _nearest(volume, 4)[:2]
        raise RuntimeError("out of memory")

    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RuntimeError, match="out of memory"):
        _write(volume, out / "deep", slices())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda s: [*s[:3], np.full_like(s[3], np.nan)], "slice 4 must be finite HU"),
        (lambda s: [s[0][:-1], *s[1:]], r"slice 1 must be finite HU of shape \(192, 160\)"),
    ],
)
def test_bad_slices_are_refused(ct_series, out, spoil, match):
    volume = read(ct_series())
    with pytest.raises(MedQDMError, match=match):
        _write(volume, out, spoil(_nearest(volume, 4)))
    assert not out.exists()


def test_too_few_slices_are_a_bug(ct_series, out):
    volume = read(ct_series())
    with pytest.raises(ValueError, match="shorter"):
        _write(volume, out, _nearest(volume, 4)[:3])
    assert not out.exists()


def test_slices_are_pulled_as_they_are_written(ct_series, phantom, out, tmp_path):
    volume = read(ct_series(np.concatenate([phantom, phantom])))
    written = []

    def slices():
        for image in _nearest(volume, 2):
            written.append(len(list(tmp_path.glob(".out.*/new/*.dcm"))))
            yield image

    _write(volume, out, slices(), upscale=2)
    assert len(written) == 8
    assert all(k - 3 <= done <= k for k, done in enumerate(written))


def test_a_filled_folder_is_refused_and_replaced_only_at_the_end(ct_series, out):
    volume = read(ct_series())
    out.mkdir()
    (out / "old.txt").write_text("mine")
    with pytest.raises(MedQDMError, match=r"must be empty, got files in it.*--overwrite"):
        _write(volume, out)
    with pytest.raises(MedQDMError, match="finite"):
        _write(volume, out, [np.full((192, 160), np.nan)] * 4, overwrite=True)
    assert (out / "old.txt").read_text() == "mine"
    _write(volume, out, overwrite=True)
    assert len(_headers(out)) == 4
    assert not (out / "old.txt").exists()


def test_the_input_is_never_overwritten(ct_series):
    folder = ct_series()
    with pytest.raises(MedQDMError, match="must not be the input's"):
        _write(read(folder), folder, overwrite=True)
    assert len(read(folder).hu) == 4


def test_extra_files_appear_with_the_series_or_nothing_does(ct_series, out, tmp_path):
    volume = read(ct_series())

    def broken(folder, report):
        (folder / "run.json").write_text("{")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        _write(volume, out, extra=broken)
    assert not out.exists()
    _write(volume, out, extra=lambda folder, r: (folder / "n.txt").write_text(str(r.num_slices)))
    assert (out / "n.txt").read_text() == "4"
    assert not list(tmp_path.glob(".*"))


def test_a_source_without_study_is_refused(ct_series, out):
    volume = read(ct_series(StudyInstanceUID=""))
    with pytest.raises(MedQDMError, match="must have StudyInstanceUID"):
        _write(volume, out)


def test_gaps_and_tilt_keep_their_positions(ct_series, out):
    def tilted(dataset, k):
        dataset.ImagePositionPatient = [0.0, 3.0 * k, [0.0, 1.0, 5.0, 6.0][k]]

    volume = read(ct_series(edit=tilted))
    _write(volume, out)
    check_same_edges(volume.corners_mm(), read(out).corners_mm(), where="test")


def test_a_volume_without_headers_becomes_a_new_series(phantom, out):
    hu = phantom.copy()
    volume = Volume.from_spacing(hu, (2.5, 0.8, 0.6))
    _write(volume, out)
    enhanced, after = read(out), _headers(out)
    check_same_edges(volume.corners_mm(), enhanced.corners_mm(), where="test")
    np.testing.assert_array_equal(enhanced.hu, np.stack(_nearest(volume, 4)))
    assert len({h.StudyInstanceUID for h in after}) == len({h.FrameOfReferenceUID for h in after})
    assert after[0].PatientName == ""
    assert "SourceImageSequence" not in after[0]
    assert after[0].SpacingBetweenSlices == 2.5
    assert after[0].Modality == "CT"


def test_missing_type_2_facts_are_present_but_empty(ct_series, out):
    def bare(dataset, k):
        for keyword in ("PatientID", "KVP", "AcquisitionNumber", "SeriesNumber", "InstanceNumber",
                        "FrameOfReferenceUID", "BodyPartExamined", "Manufacturer"):  # fmt: skip
            delattr(dataset, keyword)

    _write(read(ct_series(edit=bare)), out)
    after = _headers(out)
    assert all(not after[0][k].value for k in ("PatientID", "KVP", "AcquisitionNumber"))
    assert [h.InstanceNumber for h in after] == [1, 2, 3, 4]
    assert after[0].SeriesNumber // 10_000 == 4
    assert len({h.FrameOfReferenceUID for h in after}) == 1
    assert "Laterality" in after[0]
    assert after[0].ContributingEquipmentSequence[0].Manufacturer == "unknown"


def test_padding_without_headers(phantom, out):
    padding = np.zeros(phantom.shape, dtype=bool)
    padding[:, :4] = True
    volume = replace(Volume.from_spacing(phantom, (2.5, 0.8, 0.6)), padding=padding)
    _write(volume, out, upscale=2)
    assert _headers(out)[0].PixelPaddingValue == -2048
    np.testing.assert_array_equal(read(out).padding, padding.repeat(2, 1).repeat(2, 2))


def test_a_sheared_slice_has_no_dicom_orientation(phantom, out):
    volume = replace(
        Volume.from_spacing(phantom, (2.5, 0.8, 0.6)), y_step_mm=np.array([0.1, 0.8, 0])
    )
    with pytest.raises(MedQDMError, match="axes of a slice must be at a right angle"):
        _write(volume, out)


def test_ct_small_of_pydicom_meets_every_required_attribute(out):
    volume = read(get_testdata_file("CT_small.dcm"))
    _write(volume, out)
    before, after = volume.source.headers[0], _headers(out)[0]
    assert after.SpecificCharacterSet == before.SpecificCharacterSet
    assert after.TimezoneOffsetFromUTC == before.TimezoneOffsetFromUTC
    module_map = highdicom._standard_utils.get_iod_module_map()["ct-image"]
    for module in module_map:
        if module["usage"] == "M":
            highdicom._standard_utils.check_required_attributes(after, module=module["key"])


def _item(**tags):
    item = Dataset()
    for keyword, value in tags.items():
        setattr(item, keyword, value)
    return item


def _code(value="1", scheme="99X", meaning="x"):
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


KEPT = {
    "StudyDescription": "Thorax", "AdditionalPatientHistory": "none", "PatientWeight": 70,
    "BodyPartExamined": "CHEST", "ProtocolName": "ThxRoutine", "PatientPosition": "FFP",
    "PositionReferenceIndicator": "XY", "SpecificCharacterSet": "ISO_IR 100",
    "AcquisitionDate": "20200102", "AcquisitionTime": "030405", "AcquisitionNumber": 7,
    "AcquisitionDateTime": "20200102030405", "IrradiationEventUID": "1.2.3",
    "TimezoneOffsetFromUTC": "-0500", "BurnedInAnnotation": "NO",
    "RecognizableVisualFeatures": "YES", "QualityControlImage": "NO",
    "DeidentificationMethod": "test", "PatientIdentityRemoved": "YES",
    "LongitudinalTemporalInformationModified": "MODIFIED", "SpacingBetweenSlices": 2.5,
    "SliceLocation": 30, "ReconstructionDiameter": 24, "DataCollectionDiameter": 500,
    "GantryDetectorTilt": 0, "TableHeight": 150, "WindowCenter": [40, -600],
    "WindowWidth": [400, 1500], "WindowCenterWidthExplanation": ["A", "B"],
    "VOILUTFunction": "LINEAR", "PresentationLUTShape": "IDENTITY", "KVP": 120,
    "ConvolutionKernel": "B30f", "ExposureTime": 500, "XRayTubeCurrent": 200, "CTDIvol": 5.5,
    "ContrastBolusAgent": "Agent", "InstitutionName": "Clinic", "Laterality": "L",
    "RequestAttributesSequence": Sequence([_item(RequestedProcedureID="1")]),
    "OriginalAttributesSequence": Sequence([_item(SourceOfPreviousValues="x")]),
    "RelatedSeriesSequence": Sequence([_item(StudyInstanceUID="1.2", SeriesInstanceUID="1.3")]),
    "ReferencedImageSequence": Sequence(
        [_item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID="1.9")]
    ),
}  # fmt: skip
GONE = {
    "SeriesDescriptionCodeSequence": Sequence([_code()]), "OperatorsName": "O",
    "PerformingPhysicianName": "P", "PerformedProcedureStepStartDate": "20200102",
    "PerformedProcedureStepID": "1", "InstanceCreatorUID": "1.2", "SOPInstanceStatus": "AO",
    "SOPAuthorizationComment": "x", "InstanceCoercionDateTime": "20200102", "QueryRetrieveView":
    "CLASSIC", "DigitalSignaturesSequence": Sequence([Dataset()]),
    "MACParametersSequence": Sequence([]), "EncryptedAttributesSequence": Sequence([]),
    "DataSetTrailingPadding": b"\0\0", "PixelAspectRatio": ["1", "1"],
    "ImagerPixelSpacing": [1, 1], "IconImageSequence": Sequence([]), "StationName": "CT1",
    "GantryID": "G", "SpatialResolution": 0.35, "DateOfLastCalibration": "20200101",
    "TimeOfLastCalibration": "010101", "DeviceSerialNumber": "9",
    "ReferencedPerformedProcedureStepSequence": Sequence(
        [_item(ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID="1.3")]
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A header with all of them, before and after."""
    folder = tmp_path_factory.mktemp("tags")
    volume = read(get_testdata_file("CT_small.dcm"))
    header = volume.source.headers[0]
    for keyword, value in {**KEPT, **GONE}.items():
        setattr(header, keyword, value)
    _write(volume, folder / "out", upscale=2)
    return header, _headers(folder / "out")[0]


class TestTagByTag:
    @pytest.mark.parametrize("keyword", KEPT)
    def test_kept(self, pair, keyword):
        before, after = pair
        assert after[keyword].value == before[keyword].value

    @pytest.mark.parametrize("keyword", GONE)
    def test_gone(self, pair, keyword):
        assert keyword not in pair[1]

    def test_what_names_the_scanner_is_in_its_item(self, pair):
        (item,) = pair[1].ContributingEquipmentSequence
        assert (item.StationName, item.GantryID, item.DeviceSerialNumber) == ("CT1", "G", "9")
        assert (item.OperatorsName, item.DateOfLastCalibration) == ("O", "20200101")
        assert item.Manufacturer == "GE MEDICAL SYSTEMS"

    def test_the_file_meta_is_its_own(self, pair):
        meta = pair[1].file_meta
        assert meta.MediaStorageSOPClassUID == pair[1].SOPClassUID == CTImageStorage
        assert meta.ImplementationVersionName == "MEDQDM_0.1.0"
        assert {e.keyword for e in meta} == {
            "FileMetaInformationGroupLength", "FileMetaInformationVersion",
            "MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID",
            "ImplementationClassUID", "ImplementationVersionName",
        }  # fmt: skip

    def test_numbers_fit_into_16_characters(self, ct_series, out):
        third = 0.333333333333
        volume = read(
            ct_series(spacing_mm=(2.5, 0.976562512345, third), origin_mm=(-third, 2 * third, 1e3))
        )
        _write(volume, out, upscale=8)
        for keyword in ("PixelSpacing", "ImagePositionPatient"):
            assert all(len(str(v)) <= 16 for v in _headers(out)[0][keyword].value)

    def test_dates_are_new_or_those_of_the_source(self, ct_series, out, tmp_path):
        tags = {"SeriesDate": "20200102", "SeriesTime": "01", "ContentDate": "20200102",
                "ContentTime": "02", "InstanceCreationDate": "20200103"}  # fmt: skip
        volume = read(ct_series(**tags))
        _write(volume, out)
        _write(volume, tmp_path / "source", dates="source")
        new, same = _headers(out)[0], _headers(tmp_path / "source")[0]
        for keyword in ("SeriesDate", "ContentDate", "InstanceCreationDate"):
            assert new[keyword].value > "2026"
            assert same[keyword].value == tags[keyword]
        assert (new.StudyDate, new.AcquisitionDate) == ("20200102", "20200102")
        _write(volume, tmp_path / "again", dates="source")
        for file in (tmp_path / "again").iterdir():
            assert file.read_bytes() == (tmp_path / "source" / file.name).read_bytes()
        with pytest.raises(MedQDMError, match="--dates: must be one of now, source"):
            _write(volume, tmp_path / "x", dates="tomorrow")

    def test_a_volume_without_dates_has_none(self, phantom, out):
        _write(Volume.from_spacing(phantom, (2.5, 0.8, 0.6)), out, dates="source")
        after = _headers(out)[0]
        assert (after.StudyDate, after.get("SeriesDate")) == (None, None) or after.StudyDate == ""

    def test_a_long_description_keeps_its_mark(self, ct_series, out):
        _write(read(ct_series(SeriesDescription="x" * 64, SeriesNumber=2**31 - 1)), out)
        after = _headers(out)[0]
        assert len(after.SeriesDescription) == 64
        assert after.SeriesDescription.endswith("x SRx4 AI")
        assert after.SeriesNumber // 10_000 == 4

    @pytest.mark.parametrize(("body", "expected"), [("CHEST", False), ("", True)])
    def test_an_empty_laterality_stands_only_where_the_part_is_unknown(
        self, ct_series, out, body, expected
    ):
        _write(read(ct_series(Laterality="", BodyPartExamined=body)), out)
        assert ("Laterality" in _headers(out)[0]) == expected

    def test_references_to_series_are_rebuilt(self, ct_series, out):
        def image(uid):
            return _item(
                ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID=uid
            )

        def series(uid, *images):
            return _item(SeriesInstanceUID=uid, ReferencedInstanceSequence=Sequence(images))

        stale, alive = series("1.1", image("1.11")), series("1.2", image("1.21"), image("1.22"))
        volume = read(
            ct_series(
                ReferencedImageSequence=Sequence([image("1.21")]),
                ReferencedSeriesSequence=Sequence([stale, alive]),
            )
        )
        _write(volume, out)
        found = _headers(out)[0].ReferencedSeriesSequence
        assert [s.SeriesInstanceUID for s in found] == [
            "1.2", volume.source.headers[0].SeriesInstanceUID,
        ]  # fmt: skip
        (kept,) = found[0].ReferencedInstanceSequence
        assert kept.ReferencedSOPInstanceUID == "1.21"

    @pytest.mark.parametrize(("last", "stays"), [(4095, True), (1500, False)])
    def test_real_world_values_stay_where_they_cover_all_words(self, ct_series, out, last, stays):
        mapping = _item(
            RealWorldValueFirstValueMapped=-1000, RealWorldValueLastValueMapped=last,
            RealWorldValueSlope=1.0, RealWorldValueIntercept=-1024.0, LUTExplanation="HU",
            LUTLabel="HU", MeasurementUnitsCodeSequence=Sequence([_code("[hnsf'U]", "UCUM", "HU")]),
        )  # fmt: skip
        for keyword in ("RealWorldValueFirstValueMapped", "RealWorldValueLastValueMapped"):
            mapping[keyword].VR = "SS"
        _write(read(ct_series(RealWorldValueMappingSequence=Sequence([mapping]))), out)
        assert ("RealWorldValueMappingSequence" in _headers(out)[0]) == stays

    def test_a_padding_limit_without_a_value_means_nothing(self, ct_series, out):
        _write(read(ct_series(PixelPaddingRangeLimit=-2000)), out)
        assert "PixelPaddingRangeLimit" not in _headers(out)[0]

    def test_padding_ranges_stay(self, ct_series, phantom, out):
        hu = phantom.copy()
        hu[:, :6, :6] = -2000
        hu[:, :3, :3] = -2010
        _write(read(ct_series(hu, PixelPaddingValue=-976, PixelPaddingRangeLimit=-990)), out)
        after = _headers(out)[0]
        assert (after.PixelPaddingValue, after.PixelPaddingRangeLimit) == (-976, -990)
        assert after["PixelPaddingRangeLimit"].VR == "SS"
        assert (after.pixel_array[:24, :24] == -976).all()

    def test_inverse_display_does_not_touch_the_values(self, ct_series, out):
        volume = read(ct_series(PhotometricInterpretation="MONOCHROME1"))
        _write(volume, out, upscale=2)
        assert _headers(out)[0].PhotometricInterpretation == "MONOCHROME1"
        np.testing.assert_array_equal(read(out).hu, np.stack(_nearest(volume, 2)))

    def test_a_lossy_transfer_syntax_is_recorded(self, out):
        _write(read(DATA / "odd" / "jpeg-baseline"), out)
        after = _headers(out)[0]
        assert (after.LossyImageCompression, after.LossyImageCompressionMethod) == (
            "01", "ISO_10918_1",
        )  # fmt: skip
        assert float(np.atleast_1d(after.LossyImageCompressionRatio)[-1]) > 1
        assert (after.BitsAllocated, after.BitsStored, after.HighBit) == (16, 12, 11)

    def test_no_image_is_larger_than_dicom_knows(self, ct_series, out):
        volume = read(ct_series(np.zeros((1, 16, 4100))))
        with pytest.raises(MedQDMError, match="must have 65535 rows and columns at the most"):
            _write(volume, out, [np.zeros((256, 65600), np.float32)], upscale=16)

    @pytest.mark.parametrize("syntax", ["jpeg-ls", "jpeg2000", "rle"])
    @pytest.mark.parametrize(("signed", "bits"), [(True, 16), (True, 12), (False, 12), (False, 16)])
    def test_every_transfer_syntax_keeps_every_bit(
        self, ct_series, phantom, out, syntax, signed, bits
    ):
        hu = np.clip(phantom, -1000, 1000)
        hu[:, :6, :6] = -1024 if not signed else -1900
        code = 0 if not signed else -1900
        volume = read(ct_series(hu, signed=signed, bits=bits, intercept=-1024 * (not signed),
                                PixelPaddingValue=code))  # fmt: skip
        _write(volume, out, upscale=2, transfer_syntax=syntax)
        np.testing.assert_array_equal(read(out).hu, np.stack(_nearest(volume, 2)))
        np.testing.assert_array_equal(
            read(out).padding, np.stack([m.repeat(2, 0).repeat(2, 1) for m in volume.padding])
        )

    def test_unknown_transfer_syntaxes_are_refused(self, ct_series, out):
        with pytest.raises(MedQDMError, match="--transfer-syntax: must be one of explicit"):
            _write(read(ct_series()), out, transfer_syntax="jpeg")


class TestCheckSlice:
    """Each fault that no conformance tool sees is caught on the written file."""

    @pytest.fixture
    def written(self, ct_series, phantom, out):
        hu = phantom.copy()
        hu[:, :6, :6] = -2000
        tags = {"LossyImageCompression": "01", "LossyImageCompressionRatio": 10}
        volume = read(ct_series(hu, bits=14, PixelPaddingValue=-976, **tags))
        _write(volume, out, upscale=2)
        padding = volume.padding[0].repeat(2, 0).repeat(2, 1)
        return out / "IM0001.dcm", volume.source.headers[0], padding

    def test_a_good_one_passes(self, written):
        check_slice(*written)

    @pytest.mark.parametrize(
        ("spoil", "match"),
        [
            (lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"]), "be DERIVED"),
            (lambda ds: setattr(ds, "Modality", "MR"), "Modality CT"),
            (lambda ds: ds.add_new("PixelPaddingValue", "US", 64560), "PixelPaddingValue as SS"),
            (lambda ds: ds.add_new(0x60000010, "US", 48), "no overlay"),
            (
                lambda ds: ds.add_new("SmallestImagePixelValue", "SS", 0),
                "nothing about the old pixels",
            ),
            (lambda ds: delattr(ds, "LossyImageCompressionRatio"), "record of lossy"),
            (lambda ds: setattr(ds, "PixelData", b"\x00\x40" * 7680), "within BitsStored"),
            (lambda ds: setattr(ds, "PixelData", b"\x00\x00" * 7680), "hold padding exactly"),
            (lambda ds: setattr(ds, "PixelSpacing", [0.4, 0.3001]), "outer edges must stay"),
            (lambda ds: setattr(ds, "ImagePositionPatient", [-11, -17, 30]), "outer edges"),
        ],
    )
    def test_a_spoilt_one_does_not(self, written, spoil, match):
        file, header, padding = written
        dataset = pydicom.dcmread(file)
        spoil(dataset)
        dataset.save_as(file)
        with pytest.raises(MedQDMError, match=match):
            check_slice(file, header, padding)

    def test_a_reused_uid_is_caught(self, written):
        file, header, padding = written
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = header.SOPInstanceUID
        dataset.save_as(file)
        with pytest.raises(MedQDMError, match="UIDs of its own"):
            check_slice(file, header, padding)


@pytest.mark.parametrize("seed", range(4))
def test_instance_numbers_from_0_and_missing_ones(ct_series, tmp_path, seed) -> None:
    draw = np.random.default_rng(seed)
    numbers = draw.permutation(5)
    missing = set(draw.choice(5, size=seed, replace=False).tolist())

    def edit(dataset, k):
        dataset.InstanceNumber = None if k in missing else int(numbers[k])

    source = read(ct_series(np.zeros((5, 8, 8)), edit=edit))
    _write(source, tmp_path / "out")
    written = _headers(tmp_path / "out")
    for before, after in zip(source.source.headers, written, strict=True):
        if before.get("InstanceNumber") is not None:
            assert after.InstanceNumber == before.InstanceNumber
        else:
            assert after.InstanceNumber is not None
