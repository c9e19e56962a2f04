import re
from pathlib import Path

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
    found = take_inventory(data)
    assert [(s.kind, s.path.relative_to(data).as_posix()) for s in found.series] == [
        ("dicom", "b/ct"),
        ("dicom", "b/scout"),
    ]
    assert found.skipped == {"Secondary Capture Image Storage": 1}
    ct, scout = found.series
    assert (ct.num_slices, ct.matrix, ct.spacing_mm) == (4, (48, 40), (2.5, 0.8, 0.6))
    assert (ct.series_instance_uid, ct.warnings, ct.problem) == ("1.2.3", (), None)
    assert "localizers only" in scout.problem
    assert read(ct.path, series=ct.series_instance_uid).shape == phantom.shape


def volume_files(folder, phantom):
    """A whole NIfTI and NRRD file, a segmentation, and a file that is none."""
    folder.mkdir()
    image = nibabel.Nifti1Image(phantom.transpose(2, 1, 0), np.diag([0.6, 0.6, 2.5, 1]))
    nibabel.save(image, folder / "scan.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(phantom), str(folder / "scan.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(phantom), str(folder / "liver.seg.nrrd"))
    (folder / "broken.nii").write_text("x")
    return folder


def test_volume_files_are_listed(phantom, tmp_path):
    data = volume_files(tmp_path / "data", phantom)
    found = take_inventory(data)
    assert [(s.kind, s.path.name) for s in found.series] == [
        ("nifti", "broken.nii"), ("nifti", "scan.nii.gz"), ("itk", "scan.nrrd"),
    ]  # fmt: skip
    assert found.skipped == {"segmentation": 1}
    broken, nifti, _ = found.series
    assert "broken.nii: must be a whole NIfTI file" in broken.problem
    assert (nifti.num_slices, nifti.matrix) == (4, (48, 40))
    np.testing.assert_allclose(nifti.spacing_mm, (2.5, 0.6, 0.6), atol=1e-6)


def test_volume_files_beside_a_series_are_counted_and_not_opened(
    ct_series, phantom, tmp_path, monkeypatch
):
    folder = ct_series(folder="data/ct")
    volume_files(tmp_path / "data" / "files", phantom)
    (folder / "mask.mha").write_bytes(b"ObjectType = Image\nNDims = 2147483648\n")
    opened = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: opened.append(self.name) or real(self, *a, **k)
    )
    found = take_inventory(tmp_path / "data")
    assert [s.kind for s in found.series] == ["dicom"]
    assert found.skipped == {
        "segmentation": 1, "NIfTI, NRRD or MetaImage file beside DICOM series": 4,
    }  # fmt: skip
    assert set(opened) == {"001", "002", "003", "004"}


def change(how, rng, image):
    """Edit a header, or its voxels, in one of several ways."""
    if how == "zooms":
        image.header.set_zooms(rng.uniform(0.3, 5, 3))
    elif how == "qform":
        image.set_qform(np.diag([*rng.uniform(0.3, 5, 3), 1]), 1)
    elif how == "isotropic":
        image.set_sform(np.diag([0.8, 0.8, 0.8, 1]), 1)
    elif how == "NaN":
        image.dataobj[0, 0, 0] = np.nan
    elif how == "flat":
        image.set_sform(np.diag([0.8, 0.8, 0, 1]), 1)
    elif how == "micron":
        image.header.set_xyzt_units("micron")


HOW = ["nothing", "zooms", "qform", "isotropic", "NaN", "flat", "micron"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("seed", range(4))
def test_a_summary_of_a_file_is_what_read_gives(phantom, tmp_path, how, seed):
    rng = np.random.default_rng(seed)
    axes = rng.permutation(3)
    voxels = phantom.transpose(axes).copy()
    steps = np.array([2.5, 0.8, 0.8])[axes] * rng.choice([-1, 1], 3)
    image = nibabel.Nifti1Image(voxels, np.diag([*steps, 1]))
    image.header.set_xyzt_units("mm")
    change(how, rng, image)
    nibabel.save(image, tmp_path / "scan.nii")
    assert_one_verdict(tmp_path / "scan.nii")


@pytest.mark.parametrize(
    "header",
    [
        "dimension: 4\nsizes: 1 8 8 4\nspace directions: none (0.7,0,0) (0,0.7,0) (0,0,2)\n"
        "kinds: list domain domain domain\n",
        "dimension: 4\nsizes: 8 8 4 1\nspace directions: (0.7,0,0) (0,0.7,0) (0,0,2) none\n"
        "kinds: domain domain domain list\n",
        "dimension: 4\nsizes: 2 8 8 2\nspace directions: none (0.7,0,0) (0,0.7,0) (0,0,2)\n"
        "kinds: list domain domain domain\n",
        "dimension: 3\nsizes: 8 8 4\nspace directions: (0.7,0,0) (0,0.7,0) (0,0,0.7)\n",
        "dimension: 2\nsizes: 16 16\n",
    ],
)
def test_a_summary_of_an_nrrd_file_is_what_read_gives(tmp_path, header):
    space = "" if "dimension: 2" in header else "space: left-posterior-superior\n"
    text = f"NRRD0004\ntype: short\nencoding: raw\nendian: little\n{header}"
    text = text.replace("sizes", f"{space}sizes")
    (tmp_path / "scan.nrrd").write_bytes(text.encode() + b"\n" + bytes(512))
    assert_one_verdict(tmp_path / "scan.nrrd")


def assert_one_verdict(path):
    """The summary says what ``read`` does, in the same words."""
    (summary,) = find_series(path)
    refusal = summary.problem or (summary.warnings[0] if summary.needs_slice_axis else None)
    if refusal is not None:
        with pytest.raises(MedQDMError, match=f"^{re.escape(refusal)}$"):
            read(path)
        return
    volume = read(path)
    assert (summary.num_slices, *summary.matrix) == volume.shape
    assert summary.warnings == volume.source.warnings
    between = np.linalg.norm(volume.z_steps_mm, axis=1)
    np.testing.assert_allclose(summary.spacing_mm, (between[0], *volume.spacing_mm), rtol=1e-9)


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
