"""Metrics against their formulas."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

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
    a = np.clip(sr[y - 5 : y + 6, x - 5 : x + 6], -1000, 1000) + 1000
    b = np.clip(hr[y - 5 : y + 6, x - 5 : x + 6], -1000, 1000) + 1000
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    var_a, var_b = (weights * a**2).sum() - mean_a**2, (weights * b**2).sum() - mean_b**2
    covariance = (weights * a * b).sum() - mean_a * mean_b
    c1, c2 = (0.01 * 2000) ** 2, (0.03 * 2000) ** 2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)

    assert metrics.ssim_map(sr, hr, WINDOW)[y, x] == pytest.approx(expected, rel=1e-6)


def test_ssim_does_not_depend_on_where_the_scale_of_hu_begins() -> None:
    """20 HU more are as much in water, at 0 HU, as in muscle; a sign that changes is nothing."""
    flat = np.zeros((32, 32), dtype=np.float32)
    water, muscle = (metrics.ssim(flat + hu + 20, flat + hu, WINDOW) for hu in (-10, 50))
    assert water == pytest.approx(muscle, abs=1e-4)
    assert water > 0.999


def test_ssim_leaves_the_border_out(slice_hu: NDArray[np.float32]) -> None:
    sr = slice_hu + np.random.default_rng(1).normal(0, 100, slice_hu.shape).astype(np.float32)
    inner = metrics.ssim_map(sr, slice_hu, WINDOW)[5:-5, 5:-5]
    assert metrics.ssim(sr, slice_hu, WINDOW) == pytest.approx(inner.mean())


def test_masks_leave_the_rest_out(slice_hu: NDArray[np.float32]) -> None:
    sr = slice_hu.copy()
    sr[:, 16:] += 100
    mask = np.zeros(slice_hu.shape, dtype=np.bool_)
    mask[:, :8] = True

    assert metrics.mae_hu(sr, slice_hu, mask) == metrics.bias_hu(sr, slice_hu, mask) == 0
    assert metrics.psnr_db(sr, slice_hu, WINDOW, mask) == float("inf")
    assert metrics.ssim(sr, slice_hu, WINDOW, mask) == pytest.approx(1)
    shifted = metrics.ssim_map(sr, slice_hu, WINDOW)[~mask].mean()
    assert metrics.ssim(sr, slice_hu, WINDOW, ~mask) == pytest.approx(shifted)
    assert shifted < 0.995  # 100 HU more are little where only the mean differs
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


# slice to slice, and planes


def test_lr_difference_is_the_output_minus_the_input() -> None:
    lr = np.random.default_rng(3).normal(0, 100, (2, 3, 4)).astype(np.float32)
    sr = lr.repeat(2, axis=1).repeat(2, axis=2)
    sr[1] += 9
    difference = metrics.lr_difference_hu(sr, lr)
    assert difference[0] == pytest.approx(0, abs=1e-4)
    assert difference[1] == pytest.approx(9, abs=1e-3)


def test_flicker_is_the_mean_step_between_neighbours() -> None:
    levels = np.array([0, 30, -10, -10], dtype=np.float32)
    stack = np.broadcast_to(levels[:, None, None], (4, 5, 6))
    assert metrics.flicker_hu(stack) == pytest.approx((30 + 40 + 0) / 3)
    noise = np.random.default_rng(4).normal(0, 20, (40, 50, 50)).astype(np.float32)
    assert metrics.flicker_hu(noise) == pytest.approx(20 * 2 / np.pi**0.5, rel=0.01)
    assert metrics.flicker_hu(np.broadcast_to(noise[0], (3, 50, 50))) == 0


@pytest.mark.parametrize("axis", [1, 2])
def test_plane_psnr_is_the_mean_over_planes_that_cut_the_body(axis: int) -> None:
    hr = np.zeros((4, 6, 7), dtype=np.float32)
    sr = hr + 20
    first, second = [(slice(None),) * axis + (k,) for k in (0, 1)]
    sr[second] = 200
    mask = np.zeros(hr.shape, dtype=np.bool_)
    mask[first] = mask[second] = True

    assert metrics.plane_psnr_db(sr, hr, WINDOW, axis, mask) == pytest.approx((40 + 20) / 2)
    mask[second] = False
    assert metrics.plane_psnr_db(sr, hr, WINDOW, axis, mask) == pytest.approx(40)
    sr[first] = 0
    assert metrics.plane_psnr_db(sr, hr, WINDOW, axis, mask) == float("inf")
    assert np.isnan(metrics.plane_psnr_db(sr, hr, WINDOW, axis, mask & False))


# edges


def edge(sigma_px: float, *, angle: float = 0.4, shift_px: float = 0.0) -> NDArray[np.float32]:
    """A straight edge from -800 to 40 HU, blurred by a Gaussian."""
    y, x = np.mgrid[:96, :96] - 47.3
    across = np.cos(angle) * x + np.sin(angle) * y - shift_px
    return (-800 + 840 * ndtr(across / sigma_px)).astype(np.float32)


@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0, 4.0])
@pytest.mark.parametrize("sigma_px", [1.2, 2.0, 3.0])
def test_a_gaussian_edge_rises_within_2563_deviations(angle: float, sigma_px: float) -> None:
    edges = metrics.find_edges(edge(0.8, angle=angle))
    rises = metrics.edge_rises_px(edge(sigma_px, angle=angle), edges)
    assert len(rises) > 50
    assert np.median(rises) == pytest.approx(2.563 * sigma_px, rel=0.01)
    assert rises == pytest.approx(2.563 * sigma_px, rel=0.02)  # every one of them


def test_edges_are_found_where_they_are_with_their_plateaus() -> None:
    edges = metrics.find_edges(edge(0.8, angle=0.4))
    across = np.array([np.sin(0.4), np.cos(0.4)])
    assert np.abs((edges.places_px - 47.3) @ across).max() < 1
    assert edges.directions == pytest.approx(np.tile(across, (len(edges), 1)), abs=0.03)
    assert edges.low_hu == pytest.approx(-800, abs=0.5)
    assert edges.high_hu == pytest.approx(40, abs=0.5)


def test_noise_moves_the_median_rise_little_and_a_shift_not_at_all() -> None:
    noise = np.random.default_rng(5).normal(0, 20, (96, 96)).astype(np.float32)
    edges = metrics.find_edges(edge(1.0) + noise)
    noisy = np.median(metrics.edge_rises_px(edge(2.0) + noise, edges))
    moved = np.median(metrics.edge_rises_px(edge(2.0, shift_px=1.5), edges))
    assert noisy == pytest.approx(2.563 * 2, rel=0.05)
    assert moved == pytest.approx(2.563 * 2, rel=0.01)


def test_an_edge_that_never_reaches_the_truths_step_counts_as_the_whole_reach() -> None:
    edges = metrics.find_edges(edge(0.8))
    faint = -800 + (edge(0.8) + 800) / 2
    assert (metrics.edge_rises_px(faint, edges) == 16).all()
    assert (metrics.edge_rises_px(np.zeros((96, 96), np.float32), edges) == 16).all()


def test_weak_steps_thin_structures_and_texture_are_no_strong_edges() -> None:
    thin = np.full((64, 64), 40, dtype=np.float32)
    thin[:, 30:33] = 1000
    weak = np.full((64, 64), -50, dtype=np.float32)
    weak[:, 32:] = 200
    texture = np.random.default_rng(6).normal(0, 200, (64, 64)).astype(np.float32)
    tiny = np.zeros((12, 12), dtype=np.float32)
    for image in (thin, weak, texture, tiny):
        edges = metrics.find_edges(image)
        assert len(edges) == 0
        assert len(metrics.edge_rises_px(image, edges)) == 0
