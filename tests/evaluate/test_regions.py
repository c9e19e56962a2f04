"""Regions: the body of a phantom, and masks that meet their slices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (its usual name)
from numpy.typing import NDArray

from medqdm.config import load_task
from medqdm.data import prepare
from medqdm.errors import MedQDMError
from medqdm.evaluate import RoiFolder, body_mask, open_pairs
from medqdm.window import Window

TASK = load_task("tiny")
PX = TASK.slice_px
WINDOW = TASK.hu_window
Image = NDArray[np.float32]


def body() -> Image:
    """A disc of 40 HU in air, with a lung in it."""
    y, x = np.mgrid[:PX, :PX] - (PX - 1) / 2
    hu = np.full((PX, PX), -1000, dtype=np.float32)
    hu[np.hypot(y, x) < 0.4 * PX] = 40
    hu[np.hypot(y, x - 0.15 * PX) < 0.1 * PX] = -850
    return hu


def test_the_body_has_its_lung_and_not_the_couch() -> None:
    hr = body()
    hr[60:62] = 100  # a couch, apart from the disc
    mask = body_mask(hr, WINDOW)
    y, x = np.mgrid[:PX, :PX] - (PX - 1) / 2
    assert mask[32, 41]  # in the lung
    assert not mask[60:].any()
    assert (mask == (np.hypot(y, x) < 0.4 * PX)).all()


def test_air_has_no_body() -> None:
    assert not body_mask(np.full((16, 16), -1000, dtype=np.float32), WINDOW).any()


def test_a_window_above_the_threshold_still_shows_the_body() -> None:
    narrow = Window(center_hu=40.0, width_hu=400.0)
    assert body_mask(narrow.clip(body()), narrow).mean() == pytest.approx(0.5, abs=0.05)


def save_nifti(path: Path, voxels: NDArray[Any], *, ras_signs: tuple[int, int] = (-1, -1)) -> None:
    """``(z, y, x)`` with 0.7 mm pixels; signs of x and y in RAS, with the volume's place kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, height, width = voxels.shape
    affine = np.diag([ras_signs[0] * 0.7, ras_signs[1] * 0.7, 3.0, 1.0])
    stored = voxels.transpose(2, 1, 0)
    for axis, (sign, length) in enumerate(zip(ras_signs, (width, height), strict=True)):
        if sign > 0:
            stored = np.flip(stored, axis)
            affine[axis, 3] = -0.7 * (length - 1)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(stored).astype(np.int16), affine), path)


def save_nrrd(path: Path, voxels: NDArray[Any], *, origin_mm: float = 0.0) -> None:
    image = sitk.GetImageFromArray(voxels.astype(np.uint8))
    image.SetSpacing((0.7, 0.7, 3.0))
    image.SetOrigin((origin_mm, 0.0, 0.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def save_npz(path: Path, voxels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, mask=voxels)


SAVE: dict[str, Callable[[Path, NDArray[Any]], None]] = {
    "a.nii.gz": save_nifti,
    "a.nrrd": save_nrrd,
    "a.npz": save_npz,
}


@pytest.mark.parametrize("name", SAVE)
def test_masks_are_cropped_as_the_slices(
    name: str, volumes: Path, marked: NDArray[np.uint8], tmp_path: Path
) -> None:
    SAVE[name](tmp_path / "roi" / name, marked)
    rois = RoiFolder(tmp_path / "roi", volumes, PX)
    expected = np.zeros((PX, PX), dtype=np.bool_)
    expected[17:27, 23:43] = True  # (70 - 64) / 2 rows and (78 - 64) / 2 columns went
    assert (rois.mask("a", 1) == expected).all()
    assert not rois.mask("a", 0).any()


@pytest.mark.parametrize("ras_signs", [(1, -1), (-1, 1), (1, 1)])
def test_masks_with_axes_the_other_way_round_land_on_the_same_voxels(
    ras_signs: tuple[int, int], volumes: Path, marked: NDArray[np.uint8], tmp_path: Path
) -> None:
    save_nifti(tmp_path / "roi" / "a.nii.gz", marked, ras_signs=ras_signs)
    mask = RoiFolder(tmp_path / "roi", volumes, PX).mask("a", 1)
    assert mask[17:27, 23:43].all()
    assert mask.sum() == 200


def test_a_nifti_mask_lands_on_a_dicom_series(
    ct_series: Callable[..., Path], phantom: Image, tmp_path: Path
) -> None:
    spacing, origin = (2.5, 0.8, 0.6), (-11.0, -17.0, 30.0)
    ct_series(folder="data/patient", spacing_mm=spacing, origin_mm=origin)
    mask = np.zeros(phantom.shape, dtype=np.uint8)
    mask[2, 13, 27] = 1  # the marked voxel
    affine = np.diag([-0.6, 0.8, 2.5, 1.0])  # y runs forward, as dcm2niix writes it
    affine[:3, 3] = -origin[0], -(origin[1] + 47 * 0.8), origin[2]
    (tmp_path / "roi").mkdir()
    stored = np.ascontiguousarray(mask.transpose(2, 1, 0)[:, ::-1])
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "roi" / "patient.nii.gz")

    rois = RoiFolder(tmp_path / "roi", tmp_path / "data", PX)
    pairs = list(open_pairs(TASK, tmp_path / "data")[0])
    found = rois.mask("patient", 2)
    assert found.sum() == 1
    assert pairs[2]["hr_hu"][found] == WINDOW.high_hu  # 1500 HU, clipped
    assert not rois.mask("patient", 1).any()


def test_masks_with_equal_spacings_have_their_slices_on_the_last_axis(tmp_path: Path) -> None:
    mask = np.zeros((5, PX, PX), dtype=np.uint8)
    mask[3, 10:20, 30:50] = 1
    for name, values in (("data", 300.0 * mask - 500), ("roi", mask)):
        (tmp_path / name).mkdir()
        image = nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]))
        nibabel.save(image, tmp_path / name / "a.nii.gz")
    found = RoiFolder(tmp_path / "roi", tmp_path / "data", PX).mask("a", 3)
    assert (found == mask[3]).all()


def test_a_damaged_volume_is_refused_by_its_reader(
    ct_series: Callable[..., Path], tmp_path: Path
) -> None:
    series = ct_series(folder="data/patient")
    for file in series.iterdir():
        file.write_bytes(file.read_bytes()[:-500])
    save_npz(tmp_path / "roi" / "patient.npz", np.ones((4, 48, 40)))
    with pytest.raises(MedQDMError):
        RoiFolder(tmp_path / "roi", tmp_path / "data", PX)


def test_masks_of_large_volumes_are_reduced_with_them(tmp_path: Path) -> None:
    save_nifti(tmp_path / "data" / "a.nii.gz", np.zeros((2, 128, 128)))
    mask = np.zeros((2, 128, 128), dtype=np.bool_)
    mask[0, 40:60, 20:31] = True  # ends in the middle of an HR pixel: half counts
    save_npz(tmp_path / "roi" / "a.npz", mask)
    reduced = RoiFolder(tmp_path / "roi", tmp_path / "data", PX).mask("a", 0)
    assert reduced[20:30, 10:16].all()
    assert reduced.sum() == 60


def test_masks_that_do_not_fit_are_refused(
    volumes: Path, marked: NDArray[np.uint8], tmp_path: Path
) -> None:
    roi = tmp_path / "roi"
    with pytest.raises(MedQDMError, match="must be a folder with one mask file"):
        RoiFolder(roi, volumes, PX)
    roi.mkdir()
    with pytest.raises(MedQDMError, match="one mask for a, got none; name it a with"):
        RoiFolder(roi, volumes, PX)
    save_npz(roi / "a.npz", marked[:2])
    with pytest.raises(MedQDMError, match=r"shape \(3, 70, 78\), got \(2, 70, 78\)"):
        RoiFolder(roi, volumes, PX)
    save_nrrd(roi / "a.nrrd", marked, origin_mm=1.4)
    with pytest.raises(MedQDMError, match="one mask for a, got 2"):
        RoiFolder(roi, volumes, PX)
    (roi / "a.npz").unlink()
    with pytest.raises(MedQDMError, match=r"grid of the volume, got corners 1\.40 mm apart"):
        RoiFolder(roi, volumes, PX)
    save_nrrd(roi / "a.nrrd", marked[:, 1:])
    with pytest.raises(MedQDMError, match=r"shape \(3, 70, 78\), got \(3, 69, 78\)"):
        RoiFolder(roi, volumes, PX)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (b"no archive", "must be a NumPy archive"),
        ({"a": np.zeros((1, 2)), "b": np.zeros((1, 2))}, "one .z, y, x. array of numbers"),
        ({"a": np.zeros((3, 70, 78), dtype="U1")}, "one .z, y, x. array of numbers"),
    ],
)
def test_archives_without_a_mask_are_refused(
    arrays: Any, message: str, volumes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "roi" / "a.npz"
    path.parent.mkdir()
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    else:
        np.savez(path, **arrays)
    with pytest.raises(MedQDMError, match=message):
        RoiFolder(path.parent, volumes, PX)


def test_masks_need_the_volumes_themselves(
    volumes: Path, marked: NDArray[np.uint8], tmp_path: Path
) -> None:
    save_npz(tmp_path / "roi" / "a.npz", marked)
    prepare(TASK, volumes, tmp_path / "set")
    with pytest.raises(MedQDMError, match="must be a folder of volumes when masks are given"):
        RoiFolder(tmp_path / "roi", tmp_path / "set", PX)
    with pytest.raises(MedQDMError, match="stranger: slice 1 must have a mask"):
        RoiFolder(tmp_path / "roi", volumes, PX).mask("stranger", 0)
    (volumes / "b").mkdir()
    for name in ("one.nii.gz", "two.nii.gz"):
        save_nifti(volumes / "b" / name, 300.0 * marked - 500)
    save_npz(tmp_path / "roi" / "b.npz", marked)
    with pytest.raises(MedQDMError, match="b: must have one volume when masks are given, got 2"):
        RoiFolder(tmp_path / "roi", volumes, PX)
