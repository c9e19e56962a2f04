import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (its usual name)

from medqdm.errors import MedQDMError
from medqdm.io import dicom_scan, find_series, read, take_inventory


def test_a_data_folder_is_listed(ct_series, phantom, tmp_path):
    data = ct_series(folder="data/b/ct", SeriesInstanceUID="1.2.3").parent.parent
    ct_series(folder="data/b/scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    ct_series(folder="data/b/ct/sc", hu=phantom[:1], SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    (data / "a").mkdir()
    image = nibabel.Nifti1Image(phantom.transpose(2, 1, 0), np.diag([0.6, 0.6, 2.5, 1]))
    nibabel.save(image, data / "a" / "scan.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(phantom), str(data / "a" / "scan.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(phantom), str(data / "a" / "liver.seg.nrrd"))
    (data / "a" / "broken.nii").write_text("x")
    found = take_inventory(data)
    assert [(s.kind, s.path.relative_to(data).as_posix()) for s in found.series] == [
        ("nifti", "a/broken.nii"),
        ("nifti", "a/scan.nii.gz"),
        ("itk", "a/scan.nrrd"),
        ("dicom", "b/ct"),
        ("dicom", "b/scout"),
    ]
    assert found.skipped == {"segmentation": 1, "Secondary Capture Image Storage": 1}
    broken, nifti, _, ct, scout = found.series
    assert "cannot be read" in broken.problem
    assert (nifti.num_slices, nifti.matrix) == (4, (48, 40))
    np.testing.assert_allclose(nifti.spacing_mm, (2.5, 0.6, 0.6), atol=1e-6)
    assert (ct.num_slices, ct.matrix, ct.spacing_mm) == (4, (48, 40), (2.5, 0.8, 0.6))
    assert (ct.series_instance_uid, ct.warnings, ct.problem) == ("1.2.3", (), None)
    assert "localizers only" in scout.problem
    assert read(ct.path, series=ct.series_instance_uid).shape == phantom.shape


def test_oddities_are_told_without_patient_data(ct_series):
    folder = ct_series()
    (folder / "002").unlink()
    (summary,) = find_series(folder)
    assert "1 gap(s) between slices" in summary.warnings[0]
    assert "Phantom" not in repr(summary)


def test_a_file_is_an_inventory_of_one(ct_series):
    assert find_series(ct_series() / "001")[0].num_slices == 1


def test_nothing_there(tmp_path):
    with pytest.raises(MedQDMError, match="got nothing there; check the path"):
        find_series(tmp_path / "absent")
    assert find_series(tmp_path) == []


def test_what_the_reader_saw_is_summed_up(ct_series, phantom):
    def tilt(dataset, k):
        dataset.ImagePositionPatient = [0.0, round(k * np.tan(np.radians(15)) * 2.5, 6), 2.5 * k]

    hu = phantom.copy()
    hu[:, [0, 0, -1, -1], [0, -1, 0, -1]] = -3024
    folder = ct_series(np.concatenate([hu, hu]), edit=tilt)
    (folder / "005").unlink()
    (summary,) = find_series(folder)
    assert (summary.num_slices, summary.num_gaps, summary.tilt_degrees) == (7, 1, 15.0)
    assert summary.padding == "-3024 HU, not declared"
    assert summary.encoding == ("Explicit VR Little Endian",)
    larger = summary.enlarged(4)
    assert (larger.matrix, larger.spacing_mm) == ((192, 160), (0.2, 0.15))
    assert larger.num_bytes == pytest.approx(7 * 192 * 160 * 2, rel=0.1)
    small, view = summary.doubts()
    assert "40 x 48 pixels is small" in small
    assert "24 x 38 mm is unusual" in view


def test_each_acquisition_can_be_read_by_its_summary(ct_series, phantom):
    same = {"StudyInstanceUID": "1.2.8", "SeriesInstanceUID": "1.2.3",
            "FrameOfReferenceUID": "1.2.9"}  # fmt: skip
    folder = ct_series(folder="all/one", **same).parent
    ct_series(phantom + 7, folder="all/two", AcquisitionNumber=2, **same)
    first, second = find_series(folder)
    assert (first.acquisition, second.acquisition) == ("AcquisitionNumber 1", "AcquisitionNumber 2")
    for summary, hu in ((first, phantom), (second, phantom + 7)):
        volume = read(summary.path, series=summary.series_instance_uid)
        np.testing.assert_array_equal(volume.hu, hu)


def test_a_summary_names_the_files_that_read_needs(ct_series, phantom, monkeypatch):
    folder = ct_series(folder="all/one", SeriesInstanceUID="1.2.3")
    (folder / "torn").write_bytes((folder / "004").read_bytes()[:200])
    for file in ct_series(folder="two").iterdir():
        file.rename(folder / f"other{file.name}")
    one, two = (s for s in find_series(folder.parent) if s.num_slices == 4)
    if one.series_instance_uid != "1.2.3":
        one, two = two, one
    names = [file.name for file in one.files]
    assert names == ["001", "002", "003", "004", "torn"]
    assert [file.name for file in two.files][:2] == ["other001", "other002"]
    whole = read(folder, series="1.2.3")
    looked_into = []
    real = dicom_scan.read_header
    monkeypatch.setattr(
        dicom_scan, "read_header", lambda file: looked_into.append(file.name) or real(file)
    )
    found = read(one.path, series=one.series_instance_uid, files=one.files)
    assert looked_into == names
    assert found.source.warnings == whole.source.warnings != ()
    np.testing.assert_array_equal(found.hu, phantom)


def test_a_damaged_middle_slice_is_a_problem(ct_series):
    folder = ct_series()
    (folder / "002").write_bytes((folder / "002").read_bytes()[:-100])
    assert "002: a CT file must hold all its pixels" in find_series(folder)[0].problem


def test_the_slice_axis_of_a_file_is_found(phantom, tmp_path):
    image = nibabel.Nifti1Image(phantom, np.diag([2.5, 0.8, 0.6, 1]))
    nibabel.save(image, tmp_path / "unclear.nii")
    nibabel.save(nibabel.Nifti1Image(phantom, np.diag([2.5, 0.6, 0.6, 1])), tmp_path / "z.nii")
    unclear, found = find_series(tmp_path)
    assert (unclear.needs_slice_axis, found.needs_slice_axis) == (True, False)
    assert (found.num_slices, found.matrix, found.encoding) == (4, (40, 48), ("float32",))


def test_a_series_uid_for_each_slice_is_told(ct_series, phantom):
    def edit(dataset, k):
        dataset.SeriesInstanceUID = f"1.2.{k + 1}"

    folder = ct_series(edit=edit)
    found = take_inventory(folder)
    assert len(found.series) == len(phantom)
    (warning,) = found.warnings
    assert "4 series of one slice each have the same study" in warning
    assert take_inventory(ct_series(folder="one")).warnings == ()
    scouts = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    assert take_inventory(ct_series(folder="scouts", edit=edit, **scouts)).warnings == ()
