import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (its usual name)

from medqdm.errors import MedQDMError
from medqdm.io import read, write


@pytest.fixture
def image(phantom):
    image = sitk.GetImageFromArray(phantom.astype(np.int16))
    image.SetSpacing((0.6, 0.8, 2.5))
    image.SetOrigin((-30.5, 12.25, 400.0))
    image.SetDirection((0.8, 0, 0.6, 0, 1, 0, -0.6, 0, 0.8))
    image.SetMetaData("Scanner", "phantom")
    return image


def _enhance(volume, upscale=4):
    return volume.with_pixels(volume.hu.repeat(upscale, 1).repeat(upscale, 2))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_round_trip_keeps_edges_mark_and_metadata(image, tmp_path, phantom, ending):
    sitk.WriteImage(image, str(tmp_path / f"scan{ending}"))
    volume = read(tmp_path / f"scan{ending}", slice_axis=2)
    np.testing.assert_array_equal(volume.hu, phantom)
    write(volume, _enhance(volume), tmp_path / f"out{ending}")
    after = sitk.ReadImage(str(tmp_path / f"out{ending}"))
    assert after.GetSize() == (160, 192, 4)
    assert after.GetPixelID() == sitk.sitkInt16
    expected = sitk.Expand(image, (4, 4, 1), sitk.sitkNearestNeighbor)
    np.testing.assert_allclose(after.GetOrigin(), expected.GetOrigin(), atol=1e-9)
    np.testing.assert_allclose(after.GetSpacing(), expected.GetSpacing(), atol=1e-9)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), sitk.GetArrayFromImage(expected))
    mark = np.argwhere(sitk.GetArrayFromImage(after) == 1500).mean(axis=0)[::-1]
    np.testing.assert_allclose(
        after.TransformContinuousIndexToPhysicalPoint(mark.tolist()),
        image.TransformIndexToPhysicalPoint((27, 13, 2)),
    )
    assert after.GetMetaData("Scanner") == "phantom"


def test_the_odd_spacing_is_the_slice_axis(image, tmp_path, phantom):
    image.SetSpacing((0.7, 0.7, 2.5))
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    assert read(tmp_path / "scan.nrrd").shape == phantom.shape
    image.SetSpacing((1, 1, 1))
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    with pytest.raises(MedQDMError, match="--slice-axis"):
        read(tmp_path / "scan.nrrd")


def test_detached_headers_are_read_but_not_written(image, tmp_path, phantom):
    sitk.WriteImage(image, str(tmp_path / "scan.mhd"))
    volume = read(tmp_path / "scan.mhd", slice_axis=2)
    np.testing.assert_array_equal(volume.hu, phantom)
    with pytest.raises(MedQDMError, match=r"must end in .nrrd or .mha, got .mhd"):
        write(volume, _enhance(volume), tmp_path / "out.mhd")


def test_vectors_and_four_dimensions_are_refused(image, tmp_path):
    sitk.WriteImage(sitk.Compose(image, image), str(tmp_path / "vector.nrrd"))
    with pytest.raises(MedQDMError, match=r"with 2 value\(s\) each"):
        read(tmp_path / "vector.nrrd")
    sitk.WriteImage(sitk.JoinSeries(image, image), str(tmp_path / "time.nrrd"))
    with pytest.raises(MedQDMError, match=r"got size \(40, 48, 4, 2\)"):
        read(tmp_path / "time.nrrd")


def test_damaged_files_are_refused(image, tmp_path):
    (tmp_path / "scan.nrrd").write_text("NRRD0004\nnothing")
    with pytest.raises(MedQDMError, match=r"scan.nrrd: must be a whole NRRD or MetaImage file"):
        read(tmp_path / "scan.nrrd")
