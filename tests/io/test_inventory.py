import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (its usual name)

from medqdm.errors import MedQDMError
from medqdm.io import find_series, read, take_inventory


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
