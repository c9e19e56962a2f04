"""Metrics against their formulas."""

import numpy as np
import pytest
from numpy.typing import NDArray

from medqdm import metrics
from medqdm.window import Window

WINDOW = Window(center_hu=0, width_hu=2000)


@pytest.fixture
def slice_hu() -> NDArray[np.float32]:
    random = np.random.default_rng(0)
    return random.normal(0, 200, (24, 32)).astype(np.float32)


def test_psnr_of_a_constant_error_is_the_windows_width_over_it(
    slice_hu: NDArray[np.float32],
) -> None:
    assert metrics.psnr_db(slice_hu + 20, slice_hu, WINDOW) == pytest.approx(40, abs=1e-3)


def test_equal_images_are_perfect(slice_hu: NDArray[np.float32]) -> None:
    assert metrics.psnr_db(slice_hu, slice_hu, WINDOW) == float("inf")
    assert metrics.ssim(slice_hu, slice_hu, WINDOW) == pytest.approx(1)
    assert metrics.mae_hu(slice_hu, slice_hu) == 0


def test_psnr_and_ssim_do_not_see_what_is_outside_the_window_but_hu_errors_do() -> None:
    hr = np.full((16, 16), 1500, dtype=np.float32)
    sr = np.full((16, 16), 1900, dtype=np.float32)
    assert metrics.psnr_db(sr, hr, WINDOW) == float("inf")
    assert metrics.ssim(sr, hr, WINDOW) == pytest.approx(1)
    assert metrics.mae_hu(sr, hr) == metrics.bias_hu(sr, hr) == 400


def test_ssim_equals_its_formula_with_gaussian_weights(slice_hu: NDArray[np.float32]) -> None:
    hr = slice_hu.astype(np.float64)
    sr = hr + np.random.default_rng(1).normal(0, 100, hr.shape)
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    y, x = 12, 15
    a = np.clip(sr[y - 5 : y + 6, x - 5 : x + 6], -1000, 1000)
    b = np.clip(hr[y - 5 : y + 6, x - 5 : x + 6], -1000, 1000)
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    var_a, var_b = (weights * a**2).sum() - mean_a**2, (weights * b**2).sum() - mean_b**2
    covariance = (weights * a * b).sum() - mean_a * mean_b
    c1, c2 = (0.01 * 2000) ** 2, (0.03 * 2000) ** 2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)

    assert metrics.ssim_map(sr, hr, WINDOW)[y, x] == pytest.approx(expected, rel=1e-6)


def test_masks_leave_the_rest_out(slice_hu: NDArray[np.float32]) -> None:
    sr = slice_hu.copy()
    sr[:, 16:] += 100
    mask = np.zeros(slice_hu.shape, dtype=np.bool_)
    mask[:, :8] = True

    assert metrics.mae_hu(sr, slice_hu, mask) == metrics.bias_hu(sr, slice_hu, mask) == 0
    assert metrics.psnr_db(sr, slice_hu, WINDOW, mask) == float("inf")
    assert metrics.ssim(sr, slice_hu, WINDOW, mask) == pytest.approx(1)
    assert metrics.ssim(sr, slice_hu, WINDOW, ~mask) < 0.99
    assert metrics.mae_hu(sr, slice_hu, ~mask) == pytest.approx(100 * 2 / 3, rel=1e-5)


def test_bias_has_a_sign_and_mae_has_none() -> None:
    hr = np.zeros((2, 2), dtype=np.float32)
    sr = np.array([[-3, 1], [0, -2]], dtype=np.float32)
    assert metrics.bias_hu(sr, hr) == -1
    assert metrics.mae_hu(sr, hr) == 1.5


def test_lr_consistency_sees_shifts_of_lr_pixels_and_nothing_finer() -> None:
    lr = np.random.default_rng(2).normal(0, 100, (6, 8)).astype(np.float32)
    blocks = lr.repeat(4, axis=0).repeat(4, axis=1)
    detail = np.tile(np.array([[50, -50], [-50, 50]], dtype=np.float32), (12, 16))

    assert metrics.lr_consistency_hu(blocks + detail, lr) == pytest.approx(0, abs=1e-4)
    assert metrics.lr_consistency_hu(blocks + 7, lr) == pytest.approx(7, rel=1e-4)
    assert metrics.lr_consistency_hu(np.roll(blocks, 4, axis=1), lr) > 50


def test_area_reduction_averages_blocks_and_keeps_leading_axes() -> None:
    hu = np.arange(2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6)
    reduced = metrics.reduce_by_area(hu, 2)
    assert reduced.shape == (2, 2, 3)
    assert reduced[1, 1, 2] == hu[1, 2:4, 4:6].mean()
