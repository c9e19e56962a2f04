"""Tissue: what is what, and errors that show in one tissue alone."""

import numpy as np
import pytest
from numpy.typing import NDArray

from medqdm import metrics
from medqdm.config import load_task
from medqdm.data import Pair
from medqdm.evaluate import TISSUES, Evaluation, Truth, body_mask, tissue_masks
from medqdm.evaluate.tissue import deep_in

Image = NDArray[np.float32]
TASK = load_task("tiny", ["slice_px=128"])
LEVELS_HU = {"air": -1000, "soft tissue": 40, "lung": -850, "fat": -100, "bone": 700}


def stripes(noise_hu: float = 0.0) -> Image:
    """Air, then four tissues side by side, 25 pixels wide each, in a frame of bone."""
    hu = np.empty((128, 128))
    for k, level in enumerate(LEVELS_HU.values()):
        hu[:, 25 * k :] = level
    hu[:10, 25:] = hu[-10:, 25:] = 700
    return (hu + np.random.default_rng(0).normal(0, noise_hu, hu.shape)).astype(np.float32)


def test_each_tissue_is_found_where_it_is_and_a_pixel_inside() -> None:
    masks = tissue_masks(stripes())
    assert list(masks) == list(TISSUES)
    for k, name in enumerate(LEVELS_HU):
        first, end = 25 * k, 25 * (k + 1) if k < 4 else 128
        expected = np.zeros((128, 128), dtype=np.bool_)
        expected[:, first + (k > 0) : end - (k < 4)] = True
        assert (masks[name] == expected)[16:-16].all(), name


def test_a_mattress_is_no_lung_but_air_is_air_anywhere() -> None:
    hr = stripes()
    hr[:, 5:15] = -800  # outside of the body
    masks = tissue_masks(hr, body_mask(hr, TASK.hu_window))
    assert masks["air"][64, 2]
    assert masks["lung"][64, 62]
    assert not masks["lung"][:, :25].any()
    assert tissue_masks(hr)["lung"][64, 10]


def test_what_lies_between_two_ranges_is_no_tissue() -> None:
    assert tissue_masks(np.full((16, 16), -300, dtype=np.float32)) == {}
    assert tissue_masks(np.full((16, 16), 200, dtype=np.float32)) == {}


def test_noise_of_the_truth_does_not_look_like_bias_of_a_smooth_output() -> None:
    noisy, smooth = stripes(noise_hu=30), stripes()
    for name, mask in tissue_masks(noisy).items():
        assert metrics.bias_hu(smooth, noisy, mask) == pytest.approx(0, abs=2.5), name
    # near the end of a range too, where pixels picked by their own noisy value would
    noisy = np.random.default_rng(0).normal(-40, 30, (128, 128)).astype(np.float32)
    smooth = np.full_like(noisy, -40)
    assert metrics.bias_hu(smooth, noisy, tissue_masks(noisy)["fat"]) == pytest.approx(0, abs=4)
    assert metrics.bias_hu(smooth, noisy, (noisy >= -190) & (noisy < -30)) > 15


def scored(patient: str, biases: dict[str, float], slices: int = 1) -> Evaluation:
    """An evaluation of outputs that are off by a constant in each tissue."""
    found = Evaluation({}, TASK.hu_window)
    for k in range(slices):
        hr = stripes()
        sr = hr.copy()
        for name, mask in tissue_masks(hr).items():
            sr[mask] += biases[name]
        pair = Pair(
            hr_hu=hr, lr_hu=metrics.reduce_by_area(hr, 4), patient=patient, slice=k, spacing_mm=0.7
        )
        found.add(Truth(pair, TASK), "medqdm", sr, {})
    return found


def test_a_constant_bias_of_each_tissue_is_found() -> None:
    biases = {"air": 9.0, "lung": -7.0, "fat": 5.0, "soft tissue": -3.0, "bone": 20.0}
    found = scored("a", biases)
    for name, bias in biases.items():
        measured = found.mean("bias_hu", "medqdm", name)
        assert measured is not None
        assert measured.mean == pytest.approx(bias, abs=1e-4)
        error = found.mean("mae_hu", "medqdm", name)
        assert error is not None
        assert error.mean == pytest.approx(abs(bias), abs=1e-4)


def test_slices_weigh_by_their_pixels_of_a_tissue() -> None:
    found = scored("a", dict.fromkeys(LEVELS_HU, 0.0))
    hr = stripes()
    hr[10:-10, 75:90] = 40  # of fat, 10 columns are left
    first, second = (int(tissue_masks(h)["fat"].sum()) for h in (stripes(), hr))
    assert second < first / 2
    sr = hr.copy()
    sr[tissue_masks(hr)["fat"]] += 10
    pair = Pair(hr_hu=hr, lr_hu=metrics.reduce_by_area(hr, 4), patient="a", slice=1, spacing_mm=0.7)
    found.add(Truth(pair, TASK), "medqdm", sr, {})
    measured = found.patient_means("bias_hu", "medqdm", "fat")["a"]
    assert measured == pytest.approx(10 * second / (first + second), abs=1e-4)


def test_a_few_pixels_of_a_tissue_are_not_scored() -> None:
    hr = np.full((128, 128), 40, dtype=np.float32)
    hr[60:69, 60:69] = 700
    pair = Pair(hr_hu=hr, lr_hu=metrics.reduce_by_area(hr, 4), patient="a", slice=0, spacing_mm=0.7)
    found = Evaluation({}, TASK.hu_window)
    found.add(Truth(pair, TASK), "medqdm", hr, {})
    assert 0 < tissue_masks(hr)["bone"].sum() < 50
    assert "bone" not in found.regions


def test_inside_is_farther_than_an_input_pixel_from_the_border() -> None:
    """An output that is wrong within an input pixel of the borders is right inside."""
    hr, factor = stripes(), TASK.upscale
    wrong = hr.copy()
    for k in range(1, len(LEVELS_HU)):
        wrong[:, 25 * k - factor : 25 * k + factor] += 500
    wrong[: 10 + factor] += 500
    wrong[-10 - factor :] += 500
    pair = Pair(hr_hu=hr, lr_hu=hr[::factor, ::factor], patient="p", slice=0, spacing_mm=0.7)
    found = Evaluation({}, TASK.hu_window)
    found.add(Truth(pair, TASK), "wrong", wrong, {})
    for name in ("soft tissue", "lung", "fat"):
        assert found.mean("bias_hu", "wrong", name).mean > 50
        assert found.mean("bias_hu", "wrong", deep_in(name)).mean == 0
    found.add(Truth(pair, TASK), "shifted", hr + 7, {})
    assert found.mean("bias_hu", "shifted", deep_in("lung")).mean == pytest.approx(7)
