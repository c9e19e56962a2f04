"""The degradation: what it must keep, what it must draw, and that a seed fixes it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from medqdm.config import DEGRADATIONS, DegradationSection
from medqdm.degrade import DegradationParams, DegradeD, degrade, draw, kernel

MODES = ("area", "bilinear", "bicubic")


def texture(height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, height, width, generator=generator) * 2 - 1


def draw_many(name: str, num: int = 1500) -> list[DegradationParams]:
    random_state = np.random.RandomState(0)
    return [draw(DEGRADATIONS[name], random_state) for _ in range(num)]


def share(params: list[DegradationParams], **wanted: object) -> float:
    return float(np.mean([all(getattr(p, k) == v for k, v in wanted.items()) for p in params]))


# what it keeps


def test_clean_at_factor_one_is_the_identity() -> None:
    hr = texture()
    params = draw(DEGRADATIONS["clean"], np.random.RandomState(3))
    assert torch.equal(degrade(hr, params, 1), hr)


def test_clean_is_the_mean_of_each_block() -> None:
    hr = texture(32, 48)
    lr = degrade(hr, DegradationParams(), 4)
    blocks = hr.reshape(1, 8, 4, 12, 4).mean(dim=(2, 4))
    torch.testing.assert_close(lr, blocks)


@pytest.mark.parametrize("seed", range(12))
def test_a_flat_region_keeps_its_mean(seed: int) -> None:
    params = draw(DEGRADATIONS["paper-train"], np.random.RandomState(seed))
    params = replace(params, noise="none", round_to_8_bit=False)
    lr = degrade(torch.full((1, 64, 64), 0.04), params, 4)
    # 1 / 255 is the step of JPEG: half of it is 3.9 HU of a window of 2000 HU
    assert abs(float(lr.mean()) - 0.04) * 1000 < 4.0
    if params.jpeg_quality:
        lr = degrade(torch.full((1, 64, 64), 0.04), replace(params, jpeg_quality=0), 4)
    assert abs(float(lr.mean()) - 0.04) * 1000 < 0.01


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [0.5, 0.61, 1.0, 1.37])
@pytest.mark.parametrize("upscale", [1, 4, 8])
def test_a_centred_impulse_stays_centred(mode: str, scale: float, upscale: int) -> None:
    hr = torch.full((1, 64, 64), -1.0)
    hr[:, 24:40, 24:40] = 0.5
    params = DegradationParams(
        kernel="isotropic", kernel_px=7, sigma_px=(1.5, 1.5), resize_scale=scale, resize_mode=mode
    )
    lr = degrade(hr, params, upscale)[0]
    torch.testing.assert_close(lr, lr.flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(lr, lr.flip(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(lr, lr.T, atol=1e-5, rtol=0)


def test_values_and_shape_of_a_non_square_slice() -> None:
    hr = texture(64, 96)
    for params in draw_many("paper-train", 40):
        lr = degrade(hr, params, 8)
        assert lr.shape == (1, 8, 12)
        assert lr.dtype == torch.float32
        assert lr.min() >= -1
        assert lr.max() <= 1


def test_the_hr_slice_is_left_as_it_was() -> None:
    hr = texture()
    before = hr.clone()
    for params in draw_many("paper-train", 20):
        degrade(hr, params, 4)
    assert torch.equal(hr, before)


# seeds


def test_the_same_parameters_give_the_same_bits() -> None:
    hr = texture()
    for params in draw_many("paper-train", 20):
        assert torch.equal(degrade(hr, params, 4), degrade(hr, params, 4))


def test_a_seed_fixes_the_transform() -> None:
    transform = DegradeD([(DegradationSection(), 1.0)], upscale=4)
    first = transform.set_random_state(seed=5)({"hr": texture()})["lr"]
    params = transform.params
    transform({"hr": texture()})
    again = transform.set_random_state(seed=5)({"hr": texture()})["lr"]
    other = transform.set_random_state(seed=6)({"hr": texture()})["lr"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, degrade(texture(), params, 4))


def test_a_mixture_draws_each_degradation_by_its_share() -> None:
    shares = [(DegradationSection(), 0.25), (DEGRADATIONS["clean"], 0.75)]
    transform = DegradeD(shares, upscale=4).set_random_state(seed=0)
    clean = []
    for _ in range(200):
        transform.randomize()
        clean.append(transform.params == DegradationParams())
    assert 130 <= sum(clean) <= 170


def test_a_noise_seed_changes_the_noise_alone() -> None:
    params = DegradationParams(noise="gaussian", noise_strength=0.02, noise_seed=1)
    hr = torch.zeros(1, 64, 64)
    first, second = degrade(hr, params, 1), degrade(hr, replace(params, noise_seed=2), 1)
    assert not torch.equal(first, second)
    assert float(first.std()) == pytest.approx(float(second.std()), rel=0.05)


# what is drawn


@pytest.mark.parametrize("name", ["paper-train", "paper-test"])
def test_draws_stay_in_the_ranges_of_the_preset(name: str) -> None:
    section = DEGRADATIONS[name]
    for params in draw_many(name):
        assert params.kernel_px in section.true_kernel_sizes
        assert params.resize_mode in section.resize_modes
        assert section.resize_range[0] <= params.resize_scale <= section.resize_range[1]
        assert section.jpeg_quality[0] <= params.jpeg_quality <= section.jpeg_quality[1]
        assert params.round_to_8_bit
        if params.kernel == "sinc":
            assert np.pi / 3 <= params.cut_off_rad <= np.pi
        else:
            assert section.blur_sigma_px[0] <= min(params.sigma_px)
            assert max(params.sigma_px) <= section.blur_sigma_px[1]
        limits = section.gaussian_sigma if params.noise == "gaussian" else section.poisson_scale
        assert limits[0] <= params.noise_strength <= limits[1]


def test_draws_have_the_shares_of_the_paper() -> None:
    params = draw_many("paper-train", 6000)
    gaussian_kernels = [p for p in params if p.kernel != "sinc"]
    assert share(params, kernel="sinc") == pytest.approx(0.1, abs=0.02)
    assert share(gaussian_kernels, kernel="isotropic") == pytest.approx(0.6, abs=0.03)
    assert share(params, noise="gaussian") == pytest.approx(0.4, abs=0.03)
    assert share(params, resize_scale=1.0) == pytest.approx(0.1, abs=0.02)
    assert np.mean([p.resize_scale > 1 for p in params]) == pytest.approx(0.2, abs=0.02)
    assert {p.jpeg_quality for p in params} == set(range(70, 96))
    for mode in MODES:
        assert share(params, resize_mode=mode) == pytest.approx(1 / 3, abs=0.03)


def test_clean_draws_nothing() -> None:
    assert set(draw_many("clean", 200)) == {DegradationParams()}


def test_zero_ranges_turn_noise_off() -> None:
    section = DegradationSection(poisson_scale=(0, 0), gaussian_probability=0)
    params = draw(section, np.random.RandomState(0))
    assert params.noise == "none"


# the pieces


@pytest.mark.parametrize("params", draw_many("paper-train", 30))
def test_kernels_sum_to_one_and_are_point_symmetric(params: DegradationParams) -> None:
    weights = kernel(params)
    assert weights.shape == (params.kernel_px, params.kernel_px)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(weights, weights.flip(0, 1))


def test_an_isotropic_kernel_is_the_product_of_two_gaussians() -> None:
    weights = kernel(DegradationParams(kernel="isotropic", kernel_px=9, sigma_px=(1.3, 1.3)))
    line = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * 1.3**2))
    line = line / line.sum()
    torch.testing.assert_close(weights, line[:, None] * line[None])


def test_a_sigma_of_zero_is_no_blur() -> None:
    params = DegradationParams(kernel="isotropic", kernel_px=5, sigma_px=(0.0, 0.0))
    torch.testing.assert_close(degrade(texture(), params, 1), texture())


def test_rotation_turns_the_long_axis() -> None:
    params = DegradationParams(kernel="anisotropic", kernel_px=11, sigma_px=(2.5, 0.5))
    along_x = kernel(params)
    torch.testing.assert_close(kernel(replace(params, rotation_rad=np.pi / 2)), along_x.T)
    assert along_x[5, 9] > 100 * along_x[9, 5]


def test_the_low_pass_kernel_stops_what_lies_above_its_cut_off() -> None:
    weights = kernel(DegradationParams(kernel="sinc", kernel_px=11, cut_off_rad=np.pi / 3))
    response = torch.fft.fft2(torch.nn.functional.pad(weights, (0, 53, 0, 53))).abs()
    assert float(response[0, 4]) > 0.8  # pi / 8
    assert float(response[0, 22:33].max()) < 0.15  # 11 pi / 16 and above


def test_gaussian_noise_has_the_drawn_deviation_on_the_unit_scale() -> None:
    params = DegradationParams(noise="gaussian", noise_strength=10 / 255)
    lr = degrade(torch.zeros(1, 256, 256), params, 1)
    assert float(lr.std()) == pytest.approx(2 * 10 / 255, rel=0.02)
    assert float(lr.mean()) == pytest.approx(0, abs=0.002)


def test_poisson_noise_has_the_variance_of_counts() -> None:
    hr = torch.zeros(1, 256, 256)
    hr[0, 0] = torch.linspace(-1, 1, 256)  # all 256 levels occur, so full scale is 256 counts
    params = DegradationParams(noise="poisson", noise_strength=0.5)
    lr = degrade(hr, params, 1)[0, 1:]
    level = 128 / 255
    assert float(lr.std()) == pytest.approx(2 * 0.5 * (level / 256) ** 0.5, rel=0.02)
    assert float(lr.mean()) == pytest.approx(0, abs=0.002)


def test_jpeg_loses_more_at_a_lower_quality() -> None:
    hr = texture()
    errors = [
        float((degrade(hr, DegradationParams(jpeg_quality=q), 1) - hr).abs().mean())
        for q in (95, 80, 70)
    ]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_rounding_leaves_256_levels() -> None:
    lr = degrade(texture(), DegradationParams(round_to_8_bit=True), 4)
    levels = (lr.double() + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    exact = degrade(texture(), DegradationParams(), 4)
    assert float((lr - exact).abs().max()) <= 1 / 255 + 1e-6


def test_the_transform_keeps_other_entries_and_takes_other_keys() -> None:
    transform = DegradeD(
        [(DEGRADATIONS["clean"], 1.0)], upscale=2, keys="truth", output_key="input"
    )
    sample = transform({"truth": texture(8, 8), "patient": "a"})
    assert sample["patient"] == "a"
    assert sample["input"].shape == (1, 4, 4)
