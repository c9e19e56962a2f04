"""Blocks: neighbouring slices, one degradation for all of them, at their own places."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medqdm.config import load_task
from medqdm.data import prepare
from medqdm.errors import MedQDMError
from medqdm.evaluate.regions import read_volume
from studies.samplers import Block, open_blocks

TASK = load_task("tiny", ["autoencoder.latent_scale=1"])
NO_NOISE = [
    "test_degradation.gaussian_probability=1",
    "test_degradation.gaussian_sigma=[0, 0]",
]


def write(folder: Path, name: str, *, slices: int, same: bool = True) -> None:
    """A volume of one random slice, repeated, or of different ones, 3 mm apart."""
    random = np.random.default_rng(0)
    drawn = random.normal(0, 200, (1 if same else slices, 64, 64))
    hu = np.broadcast_to(drawn, (slices, 64, 64)).transpose(2, 1, 0).astype(np.int16)
    folder.mkdir(exist_ok=True)
    affine = np.diag([-0.7, -0.7, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(hu, affine), folder / f"{name}.nii.gz")


def open_all(data: Path, *settings: str, limit: int | None = None, seed: int = 0) -> list[Block]:
    task = load_task("tiny", ["autoencoder.latent_scale=1", *settings])
    return open_blocks(task, data, limit=limit, seed=seed)


def test_slices_are_the_middle_ones_of_each_volume(tmp_path: Path) -> None:
    write(tmp_path, "a", slices=20, same=False)
    write(tmp_path, "b", slices=5, same=False)
    first, second = open_all(tmp_path)
    assert (first.patient, first.first, len(first)) == ("a", 2, 16)
    assert (second.patient, second.first, len(second)) == ("b", 0, 5)
    volume = read_volume(tmp_path / "a.nii.gz")
    expected = TASK.hu_window.clip(np.asarray(volume.hu)[2:18])
    assert (first.hr_hu == expected).all()
    assert first.lr.shape == (16, 16, 16)


@pytest.mark.parametrize(("limit", "counts"), [(2, [2]), (3, [3]), (5, [3, 2]), (40, [20, 5])])
def test_a_limit_is_spread_over_patients_and_leaves_each_two(
    limit: int, counts: list[int], tmp_path: Path
) -> None:
    write(tmp_path, "a", slices=20)
    write(tmp_path, "b", slices=5)
    assert [len(block) for block in open_all(tmp_path, limit=limit)] == counts


def test_one_degradation_for_all_slices_so_that_the_input_does_not_flicker(tmp_path: Path) -> None:
    write(tmp_path, "a", slices=4)
    write(tmp_path, "b", slices=4)
    first, second = open_all(tmp_path, *NO_NOISE)
    assert first.degradation.kernel != "none"
    for k in range(1, 4):
        assert (first.lr.hu[k] == first.lr.hu[0]).all()
    assert first.degradation != second.degradation
    assert open_all(tmp_path, seed=1)[0].degradation != first.degradation


def test_noise_differs_from_slice_to_slice_and_comes_back_with_the_seed(tmp_path: Path) -> None:
    write(tmp_path, "a", slices=3)
    noisy = ["test_degradation.gaussian_probability=1"]
    [block] = open_all(tmp_path, *noisy)
    [again] = open_all(tmp_path, *noisy)
    assert block.degradation.noise == "gaussian"
    assert np.abs(block.lr.hu[0] - block.lr.hu[1]).mean() > 1
    assert (block.lr.hu == again.lr.hu).all()


def test_input_slices_lie_where_the_volumes_slices_do(tmp_path: Path) -> None:
    write(tmp_path, "a", slices=20)
    [block] = open_all(tmp_path)
    volume = read_volume(tmp_path / "a.nii.gz")
    assert block.lr.origins_mm.shape == (16, 3)
    middle = [
        v.origins_mm + (v.shape[1] - 1) / 2 * v.y_step_mm + (v.shape[2] - 1) / 2 * v.x_step_mm
        for v in (block.lr, volume)
    ]
    assert middle[0] == pytest.approx(middle[1][2:18])
    assert block.lr.spacing_mm == pytest.approx((2.8, 2.8))
    assert block.spacing_mm == pytest.approx(0.7)


def test_a_single_slice_has_no_neighbours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a", slices=1)
    with pytest.raises(MedQDMError, match="volume of 2 slices or more"):
        open_all(tmp_path)
    write(tmp_path, "b", slices=2)
    assert [block.patient for block in open_all(tmp_path)] == ["b"]
    assert "a has a single slice" in caplog.text


def test_prepared_sets_and_a_limit_of_one_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", "a", slices=3)
    prepare(TASK, tmp_path / "data", tmp_path / "set")
    with pytest.raises(MedQDMError, match="folder of volumes to compare samplers, got a prepared"):
        open_all(tmp_path / "set")
    with pytest.raises(MedQDMError, match="--limit: must be 2 slices or more"):
        open_all(tmp_path / "data", limit=1)
