import base64
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from medqdm.errors import MedQDMError
from medqdm.io import read


def test_read_gives_hu_and_geometry(ct_series, phantom):
    volume = read(ct_series())
    np.testing.assert_array_equal(volume.hu, phantom)
    np.testing.assert_allclose(volume.position_mm(2, 13, 27), [-11 + 27 * 0.6, -17 + 13 * 0.8, 35])
    assert volume.spacing_mm == (0.8, 0.6)
    assert volume.source.warnings == ()
    assert [h.InstanceNumber for h in volume.source.headers] == [1, 2, 3, 4]
    assert "PixelData" not in volume.source.headers[0]


def test_slices_are_sorted_along_the_normal_of_a_coronal_series(ct_series, phantom):
    volume = read(ct_series(orientation=(1, 0, 0, 0, 0, -1)))  # R x C points to +y
    assert (np.diff(volume.origins_mm[:, 1]) > 0).all()
    np.testing.assert_array_equal(volume.hu, phantom)


def test_each_slice_has_its_own_rescale(ct_series, phantom):
    volume = read(ct_series(slope=[1, 0.5, 0.25, 2], intercept=[-1024, -1000, -500, 4]))
    np.testing.assert_allclose(volume.hu, phantom, atol=1)
    np.testing.assert_array_equal(volume.hu[:3], phantom[:3])


@pytest.mark.parametrize("signed", [True, False])
def test_words_wider_than_bits_stored_are_masked(ct_series, phantom, signed):
    def junk(dataset, k):
        words = np.frombuffer(dataset.PixelData, "<u2").copy()
        words = words & 0x0FFF | 0x5000
        dataset.PixelData = words.tobytes()

    intercept = 0 if signed else -1024
    volume = read(ct_series(bits=12, signed=signed, intercept=intercept, edit=junk))
    np.testing.assert_array_equal(volume.hu, phantom)


def _disc(shape):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2 > (min(shape) / 2) ** 2


@pytest.mark.parametrize(
    ("hu_code", "tags"),
    [
        (-2000, {"PixelPaddingValue": -976}),
        (-1020, {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 10}),
        (-3024, {}),
    ],
)
def test_padding_is_masked_and_filled_with_the_nearest_value(ct_series, phantom, hu_code, tags):
    outside = _disc(phantom.shape[1:])
    hu = phantom + 40
    hu[:, outside] = hu_code
    volume = read(ct_series(hu, **tags))
    np.testing.assert_array_equal(volume.padding, np.broadcast_to(outside, hu.shape))
    np.testing.assert_array_equal(volume.hu[:, ~outside], hu[:, ~outside])
    assert volume.hu[outside[None].repeat(4, 0)].min() == hu[0][~outside].min()
    declared = "PixelPaddingValue" in tags
    assert bool(volume.source.warnings) != declared
    assert "PixelPaddingValue" in volume.source.headers[0]


def test_padding_code_outside_of_bits_stored_is_seen(ct_series, phantom):
    hu = phantom + 40
    hu[:, _disc(hu.shape[1:])] = -3024  # 63536 as a word of unsigned 16 bits
    volume = read(ct_series(hu, bits=12, signed=False, PixelPaddingValue=63536))
    np.testing.assert_array_equal(volume.padding[0], _disc(hu.shape[1:]))


def test_air_at_the_floor_is_no_padding(ct_series, phantom):
    assert read(ct_series(np.full_like(phantom, -1024))).padding is None


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_transfer_syntaxes(ct_series, phantom, syntax):
    folder = ct_series(bits=12, signed=False, syntax=syntax)
    np.testing.assert_array_equal(read(folder).hu, phantom)


def test_high_throughput_jpeg_2000_is_read(ct_series):
    """medqdm writes none, but scanners and archives do: 8 x 8 words, by OpenJPH."""
    stream = base64.b64decode(
        "/0//UQApQAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB"
        "/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAFQAAf+TwAAmy/0Ch3QA"
        "AADAABLAABKA9ACHdACOAgd0AMAAEsAAEwAYAAJ0AMCBAGNUAMAAJ4AAVQCIiKCnwnUAxkaj8cAhAey2AP/Z"
    )
    hu = (np.add.outer(np.arange(8) * 100, np.arange(8) * 13) - 1000)[None]
    folder = ct_series(hu, intercept=0)
    (file,) = folder.iterdir()
    dataset = pydicom.dcmread(file)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.save_as(file)
    np.testing.assert_array_equal(read(folder).hu, hu)


def test_jpeg_2000_of_pydicom_is_read():
    volume = read(get_testdata_file("693_J2KI.dcm"))
    assert volume.shape == (1, 512, 512)
    assert volume.source.warnings == (
        "pixels were compressed with loss; artefacts may be sharpened",
        *volume.source.warnings[1:],
    )


def test_file_without_preamble_and_meta(ct_series, phantom):
    folder = ct_series()
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.file_meta
        bare = pydicom.Dataset(dataset)
        pydicom.dcmwrite(file, bare, implicit_vr=True, little_endian=True)
        assert file.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read(folder).hu, phantom)


def test_stray_files_nested_folders_and_other_objects_are_passed_over(ct_series, phantom):
    folder = ct_series()
    ct_series(phantom[:1], folder="series/deeper", SOPClassUID=SecondaryCaptureImageStorage)
    (folder / "readme.txt").write_text("not an image")
    (folder / "deeper" / "empty").touch()
    nested = folder / "a" / "b"
    nested.mkdir(parents=True)
    (folder / "001").rename(nested / "last")
    np.testing.assert_array_equal(read(folder).hu, phantom)


def test_several_series_are_listed_and_one_is_chosen(ct_series, phantom):
    ct_series(folder="both/first", SeriesInstanceUID="1.2.3")
    folder = ct_series(folder="both/second", hu=phantom[:2], SeriesInstanceUID="1.2.4").parent
    with pytest.raises(MedQDMError, match=r"got 2: 1\.2\.3 \(4 slices\), 1\.2\.4.*--series"):
        read(folder)
    assert len(read(folder, series="1.2.4").hu) == 2
    with pytest.raises(MedQDMError, match=r"--series must be one of 1\.2\.3"):
        read(folder, series="1.2.5")
    assert len(read(folder, series=".4").hu) == 2  # the end is enough
    with pytest.raises(MedQDMError, match="--series must be one of"):
        read(folder, series="")


def test_links_are_followed_and_no_folder_is_read_twice(ct_series, phantom, tmp_path):
    elsewhere = ct_series(folder="elsewhere")
    root = tmp_path / "root"
    root.mkdir()
    for name in ("one", "other"):
        (root / name).symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(tmp_path)
    volume = read(root)
    np.testing.assert_array_equal(volume.hu, phantom)
    assert volume.source.warnings == ()
    (tmp_path / "link").symlink_to(root)
    np.testing.assert_array_equal(read(tmp_path / "link").hu, phantom)


def test_nothing_there(tmp_path):
    with pytest.raises(MedQDMError, match="got nothing there; check the path"):
        read(tmp_path / "absent")
    with pytest.raises(MedQDMError, match=r"must hold a CT series, got none \(no files\)"):
        read(tmp_path)


def test_no_ct_says_what_is_there_instead(ct_series):
    folder = ct_series(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1")
    with pytest.raises(MedQDMError, match="4 x multi-frame CT whose frames are not described"):
        read(folder)
    shutil.rmtree(folder)
    folder = ct_series(SOPClassUID=SecondaryCaptureImageStorage)
    (folder / "notes").write_text("hello")
    with pytest.raises(MedQDMError, match="4 x Secondary Capture Image Storage; 1 x not DICOM"):
        read(folder)


def test_localizers_are_left_out(ct_series, phantom):
    def scout(dataset, k):
        if k == 0:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    volume = read(ct_series(edit=scout))
    np.testing.assert_array_equal(volume.hu, phantom[1:])
    assert volume.source.warnings == ("left out 1 localizer image(s)",)
    with pytest.raises(MedQDMError, match="4 localizers only"):
        read(ct_series(folder="scouts", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))


def test_slices_of_another_orientation_are_left_out(ct_series, phantom):
    def turned(dataset, k):
        if k == 1:
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    volume = read(ct_series(edit=turned))
    np.testing.assert_array_equal(volume.hu, phantom[[0, 2, 3]])
    assert volume.source.warnings[0] == "left out 1 image(s) of another plane, taken for scouts"
    assert volume.source.left_out == 0

    def half(dataset, k):
        if k > 1:
            dataset.PixelSpacing = [1, 1]

    with pytest.raises(MedQDMError, match="2 groups of 2, 2"):
        read(ct_series(folder="half", edit=half))


def test_identical_duplicates_are_dropped_and_contradictions_refused(ct_series, phantom):
    folder = ct_series()
    shutil.copy(folder / "002", folder / "copy")
    volume = read(folder)
    np.testing.assert_array_equal(volume.hu, phantom)
    assert volume.source.warnings == ("left out 1 duplicate file(s)",)
    dataset = pydicom.dcmread(folder / "copy")
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(folder / "copy")
    with pytest.raises(MedQDMError, match="002 and copy: files with one SOPInstanceUID"):
        read(folder)


ONE_SERIES = {
    "StudyInstanceUID": "1.2.8", "SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.9",
}  # fmt: skip


def test_two_acquisitions_at_the_same_places_need_a_choice(ct_series, phantom):
    folder = ct_series(**ONE_SERIES)
    ct_series(phantom + 7, folder="series/again", AcquisitionNumber=2, **ONE_SERIES)
    with pytest.raises(
        MedQDMError,
        match=r"must hold one acquisition, got 2: 1\.2\.3#1 \(AcquisitionNumber 1: 4 slices\), "
        r"1\.2\.3#2 \(AcquisitionNumber 2: 4 slices\); choose one with --series",
    ):
        read(folder)
    np.testing.assert_array_equal(read(folder, series="1.2.3#1").hu, phantom)
    np.testing.assert_array_equal(read(folder, series="1.2.3#2").hu, phantom + 7)
    with pytest.raises(MedQDMError, match="must hold one acquisition, got 2"):
        read(folder, series="1.2.3#3")


def test_file_names_do_not_decide_which_acquisition_is_the_first(ct_series, phantom):
    folder = ct_series(folder="series/b", AcquisitionNumber=9, **ONE_SERIES).parent
    ct_series(phantom + 7, folder="series/a", AcquisitionNumber=10, **ONE_SERIES)
    first, second = (read(folder, series=f"1.2.3#{n}") for n in (1, 2))
    assert (first.source.acquisition, second.source.acquisition) == (1, 2)
    np.testing.assert_array_equal(first.hu, phantom)
    np.testing.assert_array_equal(second.hu, phantom + 7)


@pytest.mark.parametrize("tags", [{"StudyInstanceUID": "1.2.7"}, {"PatientID": "0001"}], ids=str)
def test_series_of_two_patients_under_one_uid_are_refused(ct_series, phantom, tags):
    folder = ct_series(**ONE_SERIES)
    other = ONE_SERIES | tags
    ct_series(folder="series/other", origin_mm=(-11.0, -17.0, 90.0), **other)
    with pytest.raises(MedQDMError, match=r"must belong to one (study|patient), got 2"):
        read(folder)
    assert read(folder / "other").shape == phantom.shape


@pytest.mark.parametrize(
    "tags",
    [
        {"ConvolutionKernel": "B70f"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM7"]},
        {"TriggerTime": "400"},
    ],
    ids=str,
)
def test_two_reconstructions_are_told_apart(ct_series, phantom, tags):
    def number_each_slice(dataset, k):
        dataset.AcquisitionNumber, dataset.ContentTime = k + 1, f"03040{k}"

    folder = ct_series(edit=number_each_slice, TriggerTime="1", **ONE_SERIES)
    second = {"TriggerTime": "1", **ONE_SERIES, **tags}
    ct_series(phantom + 7, folder="series/again", edit=number_each_slice, **second)
    for number, hu in (("1", phantom), ("2", phantom + 7)):
        np.testing.assert_array_equal(read(folder, series=f"1.2.3#{number}").hu, hu)


def test_two_acquisitions_by_two_kernels_are_four(ct_series, phantom):
    folder = ct_series(**ONE_SERIES)
    for acquisition, kernel in ((1, "B70f"), (2, "B30f"), (2, "B70f")):
        ct_series(folder=f"series/{acquisition}{kernel}", AcquisitionNumber=acquisition,
                  ConvolutionKernel=kernel, **ONE_SERIES)  # fmt: skip
    with pytest.raises(MedQDMError, match="must hold one acquisition, got 4"):
        read(folder)
    assert read(folder, series="1.2.3#4").shape == phantom.shape


def test_what_no_tag_tells_apart_is_refused(ct_series):
    folder = ct_series(**ONE_SERIES)
    ct_series(folder="series/again", **ONE_SERIES)
    with pytest.raises(MedQDMError, match=r"4 that share one .*1: 8.*no tag tells apart"):
        read(folder)


def test_varying_exposure_and_acquisition_numbers_split_nothing(ct_series, phantom):
    def vary(dataset, k):
        dataset.XRayTubeCurrent, dataset.AcquisitionNumber = 100 + k, k // 2 + 1

    np.testing.assert_array_equal(read(ct_series(edit=vary)).hu, phantom)


def test_a_gap_is_kept_and_told(ct_series, phantom):
    folder = ct_series(np.concatenate([phantom, phantom]))
    (folder / "004").unlink()  # the fifth slice
    volume = read(folder)
    assert volume.source.warnings == (
        "1 gap(s) between slices: 5.000 mm between slices 4 and 5, usually 2.500 mm; "
        "slices may be missing",
    )
    np.testing.assert_allclose(volume.origins_mm[:, 2], 30 + 2.5 * np.array([0, 1, 2, 3, 5, 6, 7]))


@pytest.mark.parametrize(
    "keyword",
    ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
     "PixelRepresentation"],
)  # fmt: skip
def test_what_hu_and_place_depend_on_must_be_there(ct_series, keyword):
    folder = ct_series(edit=lambda ds, k: delattr(ds, keyword) if k == 2 else None)
    with pytest.raises(MedQDMError, match=f"002: a CT slice must have {keyword}"):
        read(folder)


def test_damaged_geometry_is_refused(ct_series):
    with pytest.raises(MedQDMError, match=r"PixelSpacing must be above 0 mm, got \[0.0, 1.0\]"):
        read(ct_series(folder="flat", PixelSpacing=[0, 1]))
    with pytest.raises(MedQDMError, match="two unit vectors at a right angle"):
        read(ct_series(folder="skew", ImageOrientationPatient=[1, 0, 0, 1, 0, 0]))


def test_units_other_than_hu_are_refused(ct_series):
    with pytest.raises(MedQDMError, match="RescaleType must be HU, got Z_EFF"):
        read(ct_series(RescaleType="Z_EFF"))


def test_colour_is_refused(ct_series):
    with pytest.raises(MedQDMError, match="one sample of 16 bits, got 3 of 16"):
        read(ct_series(SamplesPerPixel=3))


def test_truncated_files_are_named(ct_series):
    folder = ct_series()
    whole = (folder / "003").read_bytes()
    (folder / "003").write_bytes(whole[:-100])
    with pytest.raises(MedQDMError, match=r"^003: .*got a truncated"):
        read(folder)


def test_truncated_compressed_files_are_named(ct_series):
    folder = ct_series(bits=12, signed=False, syntax=JPEGLSLossless)
    dataset = pydicom.dcmread(folder / "003")
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([frame[:200]])
    dataset.save_as(folder / "003")
    with pytest.raises(MedQDMError, match=r"^003: .*got a truncated"):
        read(folder)


def test_a_dicomdir_leads_to_its_files(ct_series, phantom):
    folder = ct_series(folder="medium/IMAGES").parent
    ct_series(folder="medium/LEFTOVER")
    directory = Dataset()
    directory.SOPClassUID = MediaStorageDirectoryStorage
    directory.SOPInstanceUID = generate_uid()
    directory.DirectoryRecordSequence = [Dataset() for _ in range(5)]  # a patient and four images
    for record, name in zip(directory.DirectoryRecordSequence[1:], "1234", strict=True):
        record.ReferencedFileID = ["IMAGES", f"00{name}"]
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    np.testing.assert_array_equal(read(folder / "DICOMDIR").hu, phantom)
    with pytest.raises(MedQDMError, match="must hold one CT series, got 2"):
        read(folder)
    (folder / "IMAGES" / "003").unlink()
    with pytest.raises(MedQDMError, match="got 1 missing, first 003"):
        read(folder / "DICOMDIR")


def test_lossy_sources_are_marked_by_their_transfer_syntax(ct_series):
    folder = ct_series()
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.compress(JPEGLSLossless, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.81"
        dataset.save_as(file)
    volume = read(folder)
    assert volume.source.headers[0].LossyImageCompression == "01"
    assert float(volume.source.headers[0].LossyImageCompressionRatio) > 1
    assert "compressed with loss" in volume.source.warnings[0]


def test_slices_are_read_when_asked_for(ct_series, phantom):
    folder = ct_series()
    volume = read(folder)
    (folder / "004").unlink()  # the first slice
    np.testing.assert_array_equal(volume.hu[2], phantom[2])
    volume.hu[2][:] = 0  # a copy of its own
    np.testing.assert_array_equal(volume.hu[2], phantom[2])
    with pytest.raises(MedQDMError, match="004: a CT file must hold its pixels"):
        volume.hu[0]


def test_a_file_that_changed_since_is_refused(ct_series):
    folder = ct_series()
    volume = read(folder)
    dataset = pydicom.dcmread(folder / "003")
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(folder / "003")
    with pytest.raises(MedQDMError, match="003: a CT file must not change while its series is"):
        volume.hu[1]


def test_infinite_hu_are_refused(ct_series):
    def overflow(dataset, k):
        dataset.RescaleIntercept = "1e39" if k == 1 else "0"

    with pytest.raises(MedQDMError, match=r"^003: voxels must be finite HU, got 1920 NaN or inf"):
        read(ct_series(intercept=0, edit=overflow))


def test_threads_may_read_at_once(ct_series, phantom):
    volume = read(ct_series(np.tile(phantom, (4, 1, 1)), RegionOfResidence="\u00e4"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda z: volume.hu[z], range(len(volume.hu))))
    np.testing.assert_array_equal(found, np.asarray(volume.hu))


def test_messages_name_no_patient(ct_series):
    folder = ct_series(RescaleType="Z_EFF")
    with pytest.raises(MedQDMError) as caught:
        read(folder)
    assert "Phantom" not in str(caught.value)


def test_missing_instance_uids_are_told(ct_series):
    folder = ct_series(SeriesInstanceUID=generate_uid())
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = ""
        dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.save_as(file)
    assert read(folder).source.warnings == ("4 slice(s) without SOPInstanceUID",)


@pytest.mark.parametrize("orientation", [(-1, 0, 0, 0, -1, 0), (1, 0, 0, 0, -1, 0)])
def test_prone_and_flipped_series_keep_their_places(ct_series, phantom, orientation):
    volume = read(ct_series(orientation=orientation))
    normal = np.cross(orientation[:3], orientation[3:])
    assert (np.diff(volume.origins_mm @ normal) > 0).all()
    np.testing.assert_array_equal(volume.hu, phantom)
    np.testing.assert_allclose(volume.x_step_mm, 0.6 * np.array(orientation[:3]))


def test_monochrome1_inverts_nothing(ct_series, phantom):
    volume = read(ct_series(PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(volume.hu, phantom)
    assert volume.source.headers[0].PhotometricInterpretation == "MONOCHROME1"


def test_pet_is_passed_over(ct_series):
    folder = ct_series(SOPClassUID="1.2.840.10008.5.1.4.1.1.128")
    with pytest.raises(MedQDMError, match="4 x Positron Emission Tomography Image Storage"):
        read(folder)


def test_burned_in_text_and_metal_are_told(ct_series, phantom):
    hu = phantom.copy()
    hu[1, 20, 20] = 3500
    assert read(ct_series(hu, BurnedInAnnotation="YES")).source.warnings == (
        "text is burned into the image and will be redrawn",
        "1 slice(s) with values above 3000 HU (up to 3500); metal and its streaks may be sharpened",
    )


def test_an_unknown_transfer_syntax_names_the_decoders(ct_series):
    folder = ct_series(bits=12, signed=False, syntax=JPEGLSLossless)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.53"
        dataset.save_as(file)
    with pytest.raises(
        MedQDMError, match=r"decoder of JPEG Spectral Selection.*pip install pylibjpeg"
    ):
        read(folder)


def test_bad_slices_are_all_named_and_left_out_only_if_asked(ct_series, phantom):
    folder = ct_series()
    for name in ("002", "003"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    with pytest.raises(MedQDMError, match=r"2 of 4 slices are bad: 003, 002 \(--skip-bad leaves"):
        read(folder)
    volume = read(folder, skip_bad=True)
    np.testing.assert_array_equal(volume.hu, phantom[[0, 3]])
    assert volume.source.warnings == ("left out 2 damaged slice(s): 002, 003",)
    assert volume.source.left_out == 2
    for name in ("001", "004"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    with pytest.raises(MedQDMError, match="got a truncated"):
        read(folder, skip_bad=True)


def test_files_that_may_be_slices_are_named(ct_series):
    folder = ct_series()
    (folder / "torn").write_bytes((folder / "004").read_bytes()[:200])
    source = read(folder).source
    assert source.warnings == ("1 file(s) may be slices but are damaged: torn",)
    assert (source.left_out, source.losses) == (1, source.warnings)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ending", ["", ".dcm", ".IMA", ".17"])
def test_a_slice_that_lost_its_beginning_is_counted(ct_series, ending, seed) -> None:
    folder = ct_series(np.zeros((5, 8, 8)))
    draw = np.random.default_rng(seed)
    victim = sorted(folder.iterdir())[draw.integers(5)]
    whole = victim.read_bytes()
    victim.unlink()
    lost = [b"", bytes(len(whole)), whole[: draw.integers(1, 128)]]
    if ending in (".dcm", ".IMA"):
        lost.append(b"<html>not found</html>")
    (folder / f"{victim.name}{ending}").write_bytes(lost[seed % len(lost)])
    (folder / "notes.txt").write_bytes(b"")
    (folder / "._001.dcm").write_bytes(b"\0\5\x16\7" + bytes(200))
    (folder / "Thumbs.db").write_bytes(bytes(600))
    volume = read(folder)
    assert len(volume.hu) == 4
    assert volume.source.left_out == 1
    assert any("1 file(s) may be slices" in warning for warning in volume.source.warnings)
