import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate_extended, generate_frames
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from medqdm.errors import MedQDMError
from medqdm.io import find_series, read, write_series
from medqdm.picture import upsample_bicubic

SETTINGS = {"upscale": 2, "description": "test", "software_version": "0", "weights_id": "w",
            "uid_entropy": []}  # fmt: skip


def _item(**tags):
    item = Dataset()
    for keyword, value in tags.items():
        setattr(item, keyword, value)
    return item


def _group(**sequences):
    return _item(**{name + "Sequence": [_item(**tags)] for name, tags in sequences.items()})


@pytest.fixture
def enhanced_ct(tmp_path, phantom):
    """A function that writes the phantom as one enhanced CT, last slice first, and gives its path.

    Slice k lies at 2.5 k mm and has a slope of its own; ``copies`` at the same places differ in
    FrameAcquisitionNumber and by 7 HU each.
    """

    def write(*, syntax=ExplicitVRLittleEndian, copies=1, edit=None, name="enhanced"):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = EnhancedCTImageStorage, generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), "1.2.3"
        dataset.FrameOfReferenceUID, dataset.Modality = generate_uid(), "CT"
        dataset.PatientName, dataset.PatientID = "Phantom^Ellipse", "0000"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        dataset.SamplesPerPixel, dataset.BitsAllocated = 1, 16
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 15, 0
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.Rows, dataset.Columns = phantom.shape[1:]
        frames, groups = [], []
        for copy in range(copies):
            for k in reversed(range(len(phantom))):
                slope = 1 + k % 2
                words = (phantom[k] + 7 * copy * slope + 1024) / slope
                frames.append(np.floor(words).astype("<u2"))
                groups.append(_group(
                    FrameContent={"FrameAcquisitionNumber": copy + 1,
                                  "FrameReferenceDateTime": "20200102030405.5+0100"},
                    PlanePosition={"ImagePositionPatient": [-11, -17, 30 + 2.5 * k]},
                    PixelValueTransformation={"RescaleSlope": slope, "RescaleIntercept": -1024,
                                              "RescaleType": "HU"},
                ))  # fmt: skip
        dataset.NumberOfFrames = len(frames)
        dataset.SharedFunctionalGroupsSequence = [
            _group(
                PlaneOrientation={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
                PixelMeasures={"PixelSpacing": [0.8, 0.6], "SliceThickness": 3},
                CTImageFrameType={"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]},
                CTReconstruction={"ConvolutionKernel": "B30f"},
                CTXRayDetails={"KVP": 120},
            )
        ]
        dataset.PerFrameFunctionalGroupsSequence = groups
        order = "<u2" if syntax.is_little_endian else ">u2"
        pixels = b"".join(frame.astype(order).tobytes() for frame in frames)
        dataset.add_new("PixelData", "OW", pixels)
        if edit is not None:
            edit(dataset)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        if syntax.is_encapsulated:
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(tmp_path / name, enforce_file_format=True)
        return tmp_path / name

    return write


def _expected(phantom):
    """The phantom as far as a slope of 2 can hold it."""
    slope = 1 + np.arange(len(phantom)) % 2
    return np.floor((phantom + 1024) / slope[:, None, None]) * slope[:, None, None] - 1024


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        RLELossless,
        JPEGLSLossless,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_frames_are_slices_in_spatial_order(enhanced_ct, phantom, syntax):
    volume = read(enhanced_ct(syntax=syntax))
    np.testing.assert_array_equal(volume.hu, _expected(phantom))
    np.testing.assert_allclose(volume.origins_mm[:, 2], 30 + 2.5 * np.arange(4))
    assert volume.spacing_mm == (0.8, 0.6)
    header = volume.source.headers[0]
    assert (header.ConvolutionKernel, header.KVP, header.AcquisitionNumber) == ("B30f", 120, 1)
    assert list(header.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert (header.AcquisitionDate, header.AcquisitionTime) == ("20200102", "030405.5")
    assert "PerFrameFunctionalGroupsSequence" not in header


def test_an_extended_offset_table_is_followed(enhanced_ct, phantom):
    path = enhanced_ct(syntax=RLELossless)
    dataset = pydicom.dcmread(path)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=4))
    packed = encapsulate_extended(frames)
    dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = packed
    dataset.save_as(path)
    np.testing.assert_array_equal(read(path).hu, _expected(phantom))


def test_written_as_single_frames_that_name_their_source(enhanced_ct, tmp_path):
    path = enhanced_ct()
    volume = read(path)
    out = tmp_path / "out"
    write_series(volume, (upsample_bicubic(hu, 2) for hu in volume.hu), out, **SETTINGS)
    files = sorted(out.glob("*.dcm"))
    written = [pydicom.dcmread(file) for file in files]
    assert [ds.SourceImageSequence[-1].ReferencedFrameNumber for ds in written] == [4, 3, 2, 1]
    source = pydicom.dcmread(path)
    for dataset in written:
        reference = dataset.SourceImageSequence[-1]
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert reference.ReferencedSOPClassUID == EnhancedCTImageStorage
        assert dataset.SOPClassUID == pydicom.uid.CTImageStorage
        assert "NumberOfFrames" not in dataset
        assert "ConversionSourceAttributesSequence" not in dataset
    np.testing.assert_allclose(read(out).corners_mm(), volume.corners_mm(), atol=1e-3)


def test_several_acquisitions_in_one_file(enhanced_ct, phantom):
    path = enhanced_ct(copies=2)
    with pytest.raises(MedQDMError, match=r"got 2: 1\.2\.3#1 \(AcquisitionNumber 1: 4 slices\)"):
        read(path)
    first, second = (np.asarray(read(path, series=f"1.2.3#{n}").hu) for n in (1, 2))
    assert (second - first).mean() == pytest.approx(7 * 1.5, abs=0.5)
    one, two = find_series(path.parent)
    assert (one.series_instance_uid, two.series_instance_uid) == ("1.2.3#1", "1.2.3#2")
    assert read(two.path, series=two.series_instance_uid).shape == phantom.shape


def test_localizer_frames_are_left_out(enhanced_ct):
    def scout(dataset):
        groups = dataset.PerFrameFunctionalGroupsSequence
        groups[0].CTImageFrameTypeSequence = [
            _item(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"])
        ]

    volume = read(enhanced_ct(edit=scout))
    assert volume.source.warnings == ("left out 1 localizer image(s)",)
    assert len(volume.hu) == 3


@pytest.mark.parametrize("count", [0, 3, 5, 2_000_000_000])
def test_a_frame_count_that_lies_is_refused(enhanced_ct, count):
    path = enhanced_ct(edit=lambda dataset: setattr(dataset, "NumberOfFrames", count))
    with pytest.raises(MedQDMError, match="1 x multi-frame CT whose frames are not described"):
        read(path)


def test_maps_of_another_quantity_are_refused(enhanced_ct):
    def blood_flow(dataset):
        code = _item(CodeValue="ml/100ml/s", CodingSchemeDesignator="UCUM", CodeMeaning="flow")
        mapping = _item(MeasurementUnitsCodeSequence=[code])
        dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = [mapping]

    with pytest.raises(MedQDMError, match="pixels must be in HU, got a map of another quantity"):
        read(enhanced_ct(edit=blood_flow))


def test_cut_files_are_named_with_the_frame(enhanced_ct):
    path = enhanced_ct()
    whole = path.read_bytes()
    path.write_bytes(whole[:-4000])  # more than a frame: the first slices
    with pytest.raises(
        MedQDMError,
        match=r"^enhanced#4: .*truncated.*2 of 4 slices are bad: enhanced#4, enhanced#3",
    ):
        read(path)
    volume = read(path, skip_bad=True)
    assert volume.source.warnings == ("left out 2 damaged slice(s): enhanced#3, enhanced#4",)
    assert [h.InstanceNumber for h in volume.source.headers] == [2, 1]
