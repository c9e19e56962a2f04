import re
import struct

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from medqdm.errors import MedQDMError
from medqdm.io import read, write, write_series

OBLIQUE = np.array(
    [[-0.58, 0.12, 0.3, 80.0], [-0.1, -0.57, 0.6, 95.0], [0.13, 0.14, 2.4, -300.0], [0, 0, 0, 1.0]]
)
STRAIGHT = np.diag([-0.7, -0.7, 2.5, 1.0])
ROTATED = STRAIGHT.copy()
ROTATED[:3, :3] = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]]) @ np.diag([-0.7, -0.7, 2.5])
ROTATED[:3, 3] = 10, -20, 30


@pytest.fixture
def nifti(tmp_path, phantom):
    """A function that writes the phantom as (x, y, z) NIfTI and gives its path."""

    def save(affine=ROTATED, *, voxels=None, name="scan.nii.gz", sform=1, qform=1, edit=None):
        voxels = phantom.transpose(2, 1, 0) if voxels is None else voxels
        image = nibabel.Nifti1Image(voxels.astype(np.float32), affine)
        image.set_sform(affine, sform)
        image.set_qform(affine, qform)
        image.header.set_xyzt_units("mm")
        if edit:
            edit(image)
        nibabel.save(image, tmp_path / name)
        return tmp_path / name

    return save


def _enhance(volume, upscale=4):
    hu = np.asarray(volume.hu).repeat(upscale, 1).repeat(upscale, 2)
    return volume.with_pixels(hu)


def _corners(affine, shape):
    ends = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in shape])).reshape(3, -1).T
    return apply_affine(affine, ends)


def test_ras_becomes_lps(nifti, phantom):
    volume = read(nifti(STRAIGHT))
    np.testing.assert_array_equal(volume.hu, phantom)
    np.testing.assert_allclose(volume.position_mm(2, 13, 27), [27 * 0.7, 13 * 0.7, 5], atol=1e-6)


@pytest.mark.parametrize("affine", [STRAIGHT, ROTATED])
def test_edges_and_mark_stay_in_mm(nifti, tmp_path, affine, phantom):
    path = nifti(affine)
    volume = read(path)
    write(volume, _enhance(volume), tmp_path / "out.nii.gz")
    before, after = nibabel.load(path), nibabel.load(tmp_path / "out.nii.gz")
    assert after.shape == (160, 192, 4)
    np.testing.assert_allclose(
        _corners(after.affine, after.shape), _corners(before.affine, before.shape), atol=1e-4
    )
    mark = np.argwhere(np.asarray(after.dataobj) == 1500).mean(axis=0)
    np.testing.assert_allclose(
        apply_affine(after.affine, mark), apply_affine(before.affine, [27, 13, 2]), atol=1e-4
    )
    np.testing.assert_array_equal(
        after.get_fdata(), phantom.transpose(2, 1, 0).repeat(4, 0).repeat(4, 1)
    )


def test_written_as_plain_int16(nifti, tmp_path):
    def describe(image):
        image.header["descrip"] = b"a scan"
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"kept"))

    volume = read(nifti(edit=describe))
    write(volume, _enhance(volume), tmp_path / "out.nii")
    header = nibabel.load(tmp_path / "out.nii").header
    assert header.get_data_dtype() == np.int16
    assert header.get_slope_inter() in [(1, 0), (None, None)]
    assert header.get_xyzt_units()[0] == "mm"
    assert bytes(header["descrip"]).startswith(b"medqdm ")
    assert not volume.source.is_enhanced
    assert read(tmp_path / "out.nii").source.is_enhanced
    assert header.extensions[0].get_content() == b"kept"
    np.testing.assert_allclose(header.get_zooms(), (0.175, 0.175, 2.5), atol=1e-6)


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 1), (0, 1), (4, 0), (0, 0)])
def test_form_codes_are_the_sources(nifti, tmp_path, sform, qform):
    volume = read(nifti(STRAIGHT, sform=sform, qform=qform))
    assert (len(volume.source.warnings) == 1) == (sform == qform == 0)
    write(volume, _enhance(volume), tmp_path / "out.nii")
    header = nibabel.load(tmp_path / "out.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (sform, qform)


def test_forms_that_differ_are_both_resampled(nifti, tmp_path):
    def differ(image):
        image.set_sform(ROTATED, 2)
        image.set_qform(STRAIGHT, 1)

    volume = read(nifti(edit=differ))
    write(volume, _enhance(volume), tmp_path / "out.nii")
    header = nibabel.load(tmp_path / "out.nii").header
    for form, affine in ((header.get_sform(), ROTATED), (header.get_qform(), STRAIGHT)):
        np.testing.assert_allclose(
            _corners(form, (160, 192, 4)), _corners(affine, (40, 48, 4)), atol=1e-4
        )


@pytest.mark.parametrize("seed", range(8))
def test_forms_that_disagree_are_told_and_the_sform_counts(nifti, seed):
    """By the form, the spacing, the place or the angle, alone or together."""
    rng = np.random.default_rng(seed)
    other = ROTATED.copy()
    other[:3, 3] += rng.normal(0, 5, 3)
    other[:3, :3] *= rng.uniform(0.5, 2, 3)

    def differ(image):
        image.set_sform(ROTATED, rng.integers(1, 5))
        image.set_qform(other, rng.integers(1, 5))

    volume = read(nifti(edit=differ))
    corners = np.linalg.norm(_corners(ROTATED, (40, 48, 4)) - _corners(other, (40, 48, 4)), axis=1)
    (warning,) = volume.source.warnings
    spacing = " x ".join(f"{v:.4g}" for v in np.linalg.norm(other[:3, :3], axis=0))
    assert f"sform and qform disagree: spacing 0.7 x 0.7 x 2.5 mm and {spacing} mm" in warning
    assert float(re.search(r"up to ([\d.]+) mm apart", warning)[1]) == pytest.approx(
        corners.max(), rel=0.01
    )
    np.testing.assert_allclose(volume.spacing_mm, (0.7, 0.7), rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_forms_that_differ_by_rounding_are_not_told(nifti, seed):
    rng = np.random.default_rng(seed)

    def differ(image):
        image.set_sform(np.round(ROTATED, 5), 1)
        image.set_qform(ROTATED + np.pad(rng.normal(0, 0.01, (3, 1)), ((0, 1), (3, 0))), 1)

    assert read(nifti(edit=differ)).source.warnings == ()


def test_pixdim_that_disagrees_with_the_sform_is_told(nifti):
    def differ(image):
        image.set_sform(STRAIGHT, 1)
        image.set_qform(None, 0)
        image.header["pixdim"][1:4] = 1, 1, 2.5

    (warning,) = read(nifti(edit=differ)).source.warnings
    assert "sform and pixdim disagree: spacing 0.7 x 0.7 x 2.5 mm and 1 x 1 x 2.5 mm" in warning


def test_a_damaged_qform_is_told_and_not_carried_on(nifti, tmp_path):
    def damage(image):
        image.set_sform(STRAIGHT, 1)
        image.header["quatern_b"] = image.header["quatern_c"] = 3

    volume = read(nifti(edit=damage))
    assert volume.source.warnings == ("the qform is damaged; the sform counts",)
    write(volume, _enhance(volume), tmp_path / "out.nii")
    header = nibabel.load(tmp_path / "out.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)


@pytest.mark.parametrize("qform", [0, 1])
def test_shear_is_kept_in_the_sform_alone(nifti, tmp_path, qform):
    path = nifti(OBLIQUE, qform=qform)
    volume = read(path, slice_axis=2)
    write(volume, _enhance(volume), tmp_path / "out.nii")
    after = nibabel.load(tmp_path / "out.nii")
    assert (int(after.header["sform_code"]), int(after.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(
        _corners(after.affine, after.shape), _corners(OBLIQUE, (40, 48, 4)), atol=1e-4
    )


def test_the_odd_spacing_is_the_slice_axis(nifti, phantom, tmp_path):
    affine = np.diag([2.5, 0.7, 0.7, 1])
    path = nifti(affine, voxels=phantom.transpose(0, 2, 1))  # slices first
    volume = read(path)
    np.testing.assert_array_equal(volume.hu, phantom)
    write(volume, _enhance(volume, 2), tmp_path / "out.nii")
    after = nibabel.load(tmp_path / "out.nii")
    assert after.shape == (4, 80, 96)
    np.testing.assert_allclose(
        _corners(after.affine, after.shape), _corners(affine, (4, 40, 48)), atol=1e-4
    )


def test_equal_spacings_need_the_slice_axis(nifti, phantom):
    path = nifti(np.eye(4))
    with pytest.raises(MedQDMError, match="got 1 x 1 x 1 mm; say which with --slice-axis"):
        read(path)
    assert read(path, slice_axis=0).shape == (40, 4, 48)
    assert read(path, slice_axis=2).shape == phantom.shape
    with pytest.raises(MedQDMError, match="--slice-axis: must be 0, 1 or 2, got 3"):
        read(path, slice_axis=3)


def test_four_dimensions_are_refused(nifti, phantom):
    voxels = phantom.transpose(2, 1, 0)
    assert read(nifti(voxels=voxels[..., None])).shape == phantom.shape
    with pytest.raises(MedQDMError, match=r"one three-dimensional volume.*got shape"):
        read(nifti(voxels=np.stack([voxels, voxels], axis=-1)))


def test_other_units_are_refused(nifti):
    with pytest.raises(MedQDMError, match="lengths must be in mm, got micron"):
        read(nifti(edit=lambda image: image.header.set_xyzt_units("micron")))


def test_values_unlike_hu_are_told(nifti, phantom):
    hu = phantom.transpose(2, 1, 0)
    (warning,) = read(nifti(voxels=hu + 1024)).source.warnings
    assert "shifted by 1000 or 1024" in warning
    normalised = nifti(voxels=(hu + 1024) / 4000)
    with pytest.raises(MedQDMError, match=r"got normalised values of 0\.006 to 0\.631"):
        read(normalised)
    assert "normalised" in read(normalised, any_values=True).source.warnings[0]


def test_damaged_files_are_refused(nifti, tmp_path):
    path = nifti()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MedQDMError, match=r"scan.nii.gz: must be a whole NIfTI file"):
        read(path)
    (tmp_path / "text.nii").write_text("nothing")
    with pytest.raises(MedQDMError, match=r"text.nii: must be a whole NIfTI file"):
        read(tmp_path / "text.nii")


def test_nan_is_refused(nifti, phantom):
    voxels = phantom.transpose(2, 1, 0).copy()
    voxels[0, 0, 0] = np.nan
    with pytest.raises(MedQDMError, match="finite HU, got 1 NaN"):
        read(nifti(voxels=voxels))


def test_padding_keeps_its_value(nifti, phantom, tmp_path):
    hu = phantom.copy()
    hu[:, [0, 0, -1, -1], [0, -1, 0, -1]] = -3024
    volume = read(nifti(voxels=hu.transpose(2, 1, 0)))
    assert volume.padding.sum() == 16
    assert volume.hu.min() >= -1000
    write(volume, _enhance(volume, 2), tmp_path / "out.nii")
    after = np.asarray(nibabel.load(tmp_path / "out.nii").dataobj)
    assert (after == -3024).sum() == 64


def test_dicom_to_nifti(ct_series, tmp_path):
    volume = read(ct_series())
    write(volume, _enhance(volume), tmp_path / "out.nii.gz")
    back = read(tmp_path / "out.nii.gz", slice_axis=2)
    np.testing.assert_allclose(back.corners_mm(), volume.corners_mm(), atol=1e-4)
    header = nibabel.load(tmp_path / "out.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)


def test_tilted_dicom_to_nifti_keeps_the_shear(ct_series, tmp_path):
    def tilt(dataset, k):
        dataset.ImagePositionPatient = [0.0, 1.5 * k, 2.5 * k]

    volume = read(ct_series(edit=tilt))
    write(volume, _enhance(volume), tmp_path / "out.nii.gz")
    image = nibabel.load(tmp_path / "out.nii.gz")
    assert int(image.header["qform_code"]) == 0
    np.testing.assert_allclose(
        read(tmp_path / "out.nii.gz", slice_axis=2).corners_mm(), volume.corners_mm(), atol=1e-4
    )


def test_uneven_dicom_has_no_affine(ct_series, tmp_path):
    folder = ct_series()
    (folder / "002").unlink()
    volume = read(folder)
    with pytest.raises(MedQDMError, match=r"evenly spaced for one affine.*write DICOM instead"):
        write(volume, _enhance(volume), tmp_path / "out.nii")
    assert not (tmp_path / "out.nii").exists()


def test_nifti_to_dicom(nifti, tmp_path):
    volume = read(nifti())
    write_series(
        volume, _enhance(volume).hu, tmp_path / "out", upscale=4, description="test",
        software_version="0", weights_id="w", uid_entropy=[],
    )  # fmt: skip
    back = read(tmp_path / "out")
    np.testing.assert_allclose(back.corners_mm(), volume.corners_mm(), atol=1e-3)


def test_existing_files_are_not_replaced_unasked(nifti, tmp_path):
    volume = read(nifti())
    (tmp_path / "out.nii").write_text("mine")
    with pytest.raises(MedQDMError, match="must not exist yet, got a file"):
        write(volume, _enhance(volume), tmp_path / "out.nii")
    assert (tmp_path / "out.nii").read_text() == "mine"
    write(volume, _enhance(volume), tmp_path / "out.nii", overwrite=True)
    assert nibabel.load(tmp_path / "out.nii").shape == (160, 192, 4)


def test_a_moved_edge_stops_the_write(nifti, tmp_path):
    volume = read(nifti())
    moved = _enhance(read(nifti(ROTATED @ np.diag([1, 1, 1.001, 1]), name="moved.nii")))
    with pytest.raises(MedQDMError, match="outer edges must stay within"):
        write(volume, moved, tmp_path / "out.nii")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["moved.nii", "scan.nii.gz"]


def test_other_endings_are_refused(nifti, tmp_path):
    volume = read(nifti())
    with pytest.raises(MedQDMError, match=r"must end in .nii, .nii.gz, .nrrd or .mha, got .png"):
        write(volume, _enhance(volume), tmp_path / "out.png")


def test_scaled_values_are_read_as_hu_and_written_unscaled(nifti, phantom, tmp_path):
    words = np.floor((phantom + 1024) / 2)
    path = nifti(voxels=words.transpose(2, 1, 0), name="scan.nii")
    with path.open("r+b") as file:
        file.seek(112)  # scl_slope and scl_inter
        file.write(struct.pack("<2f", 2, -1024))
    volume = read(path)
    np.testing.assert_array_equal(volume.hu, 2 * words - 1024)
    write(volume, _enhance(volume), tmp_path / "out.nii")
    header = nibabel.load(tmp_path / "out.nii").header
    assert header.get_slope_inter() in [(1, 0), (None, None)]


def test_axes_in_one_plane_are_refused(nifti):
    flat = STRAIGHT.copy()
    flat[:3, 1] = flat[:3, 0]
    with pytest.raises(MedQDMError, match="must span a volume, got axes in one plane"):
        read(nifti(flat, qform=0), slice_axis=2)
