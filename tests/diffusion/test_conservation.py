import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medqdm.diffusion.conservation import (
    clipped_noise,
    conserve,
    largest_flat_shift,
    noise_deviation_hu,
)
from medqdm.enhancer import Enhancer
from medqdm.loading import bundled_weights
from medqdm.metrics import lr_difference_hu

SQUARE, GAP = 20, 8


def image_of(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]


def plateaus(rng: np.random.Generator, noise_hu: float) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Twelve flat squares of random HU on a random background, and their corners."""
    image = np.full((3 * (SQUARE + GAP) + GAP, 4 * (SQUARE + GAP) + GAP), rng.uniform(-1000, 100))
    corners = [(GAP + r * (SQUARE + GAP), GAP + c * (SQUARE + GAP)) for r in range(3)
               for c in range(4)]  # fmt: skip
    for y, x in corners:
        image[y : y + SQUARE, x : x + SQUARE] = rng.uniform(-1000, 1000)
    return image + rng.normal(0, noise_hu, image.shape), corners


def shifts(sr: Tensor, lr: Tensor, corners: list[tuple[int, int]]) -> np.ndarray:
    """Mean shift of each square, two pixels inside of its border."""
    factor = sr.shape[-1] // lr.shape[-1]
    off = (functional.avg_pool2d(sr, factor) - lr)[0, 0].numpy()
    inner = [off[y + 2 : y + SQUARE - 2, x + 2 : x + SQUARE - 2] for y, x in corners]
    return np.array([area.mean() for area in inner])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("factor", [4, 8])
def test_a_shift_by_hu_is_taken_back(seed: int, factor: int) -> None:
    rng = np.random.default_rng(seed)
    values, corners = plateaus(rng, 0)
    lr = image_of(values + rng.normal(0, rng.uniform(0, 10), values.shape))
    clean = functional.interpolate(image_of(values), scale_factor=factor, mode="nearest")
    sr = clean + 30 * torch.sin(clean / 150)  # each HU is off by another amount
    assert np.abs(shifts(sr, lr, corners)).max() > 10
    assert np.abs(shifts(conserve(sr, lr), lr, corners)).max() < 2


def test_a_faithful_output_stays_as_it_is() -> None:
    rng = np.random.default_rng(1)
    hr = image_of(plateaus(rng, 0)[0].repeat(4, 0).repeat(4, 1))
    torch.testing.assert_close(conserve(hr, functional.avg_pool2d(hr, 4)), hr, atol=1e-2, rtol=0)


def test_what_the_input_does_not_show_is_not_moved() -> None:
    """Detail finer than an input pixel, a difference in sharpness, white noise of the input."""
    rng = np.random.default_rng(2)
    smooth = image_of(np.full((256, 256), 40.0))
    board = image_of((np.indices((256, 256)).sum(0) % 2 * 2 - 1) * 50.0)
    lr = functional.avg_pool2d(smooth, 4)
    torch.testing.assert_close(conserve(smooth + board, lr), smooth + board, atol=1e-3, rtol=0)
    noisy = lr + image_of(rng.normal(0, 50, (64, 64)))
    assert float((conserve(smooth, noisy) - smooth).std()) < 50 / 7


@pytest.mark.parametrize("seed", range(4))
def test_air_whose_noise_is_clipped_and_padding_stay_with_the_network(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sd, floor = rng.uniform(15, 60), rng.choice([-1000.0, -1024.0])
    air = np.maximum(floor, rng.normal(floor, sd, (64, 64)))  # its mean is too high
    air[20:44, 20:44] = rng.normal(40, sd, (24, 24))
    lr = image_of(air)
    assert clipped_noise(lr, noise_deviation_hu(lr))[0, 0, :12].float().mean() > 0.95
    sr = functional.interpolate(lr, scale_factor=4, mode="nearest")
    sr[..., :40, :] = floor
    out = conserve(sr, lr)
    assert float((out[..., :24, :] - floor).abs().max()) < 3
    shifted = image_of(np.full((32, 32), -500.0))
    padding = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    padding[..., :16] = True
    there = conserve(functional.interpolate(shifted, scale_factor=4) + 30, shifted, padding)
    assert float(there[..., :20].min()) > -475  # far inside of the padding: left alone
    assert float((there[..., 80:] + 500).abs().max()) < 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("factor", [4, 8])
def test_air_whose_noise_was_clipped_before_the_image_was_reduced_stays(
    seed: int, factor: int
) -> None:
    rng = np.random.default_rng(seed)
    hr = rng.normal(-1000, rng.uniform(20, 100), (64 * factor, 64 * factor)).clip(-1000)
    hr[20 * factor : 44 * factor, 20 * factor : 44 * factor] = 40
    lr = functional.avg_pool2d(image_of(hr), factor)
    lr[..., 30:33, 30:33] = -1000  # a bubble: the image reaches the floor
    assert float(lr[..., :16, :].mean()) > -993
    sr = functional.interpolate(lr, scale_factor=factor, mode="nearest")
    sr[..., : 16 * factor, :] = -1000
    sr[..., 48 * factor :, :] = -1000
    out = conserve(sr, lr)
    assert float((out[..., : 12 * factor, :] + 1000).mean()) < 1
    shown = functional.avg_pool2d(conserve(sr - 20, lr), factor)[0, 0, 24:29, 24:40]
    assert float((shown - 40).abs().max()) < 2  # tissue beside it is not left out


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (5, 3), (37, 61)])
def test_any_size(shape: tuple[int, int]) -> None:
    lr = image_of(np.random.default_rng(0).normal(0, 50, shape))
    sr = functional.interpolate(lr, scale_factor=4, mode="nearest")
    out = conserve(sr, lr)
    assert out.shape == sr.shape
    assert bool(out.isfinite().all())
    largest_flat_shift(functional.avg_pool2d(out, 4) - lr, lr)


@pytest.mark.parametrize("seed", range(8))
def test_the_largest_flat_shift_is_found_where_it_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lr = rng.normal(rng.uniform(-900, 250), 5, (64, 80))
    lr[:, 40:] = rng.normal(0, 300, (64, 40))  # not flat: what happens there does not count
    y, x = 4 * rng.integers(0, 12), 4 * rng.integers(0, 4)
    off = np.zeros((64, 80))
    off[y : y + 16, x : x + 16] = 9.0
    off[:, 48:] = 500.0
    found = largest_flat_shift(image_of(off), image_of(lr))
    assert found is not None
    assert found.hu == pytest.approx(9, abs=0.01)
    assert max(abs(found.y - y - 8), abs(found.x - x - 8)) <= 4
    padding = torch.ones(1, 1, 64, 80, dtype=torch.bool)
    assert largest_flat_shift(image_of(off), image_of(lr), padding) is None


@pytest.fixture(scope="module", params=["sr4", "sr8"])
def bundled(request: pytest.FixtureRequest) -> Enhancer:
    return Enhancer(bundled_weights(request.param), device="cpu", precision="fp32")


@pytest.mark.slow
@pytest.mark.parametrize("noise_hu", [0.0, 12.0])
def test_bundled_models_keep_hu_in_flat_regions(bundled: Enhancer, noise_hu: float) -> None:
    rng = np.random.default_rng(int(noise_hu))
    values, corners = plateaus(rng, noise_hu)
    lr = image_of(values)
    sr = image_of(bundled.enhance_slice(lr[0, 0].numpy()).hu)
    assert np.abs(shifts(sr, lr, corners)).max() < 2


@pytest.mark.slow
def test_bundled_models_make_no_emphysema(bundled: Enhancer) -> None:
    rng = np.random.default_rng(7)
    lung = np.full((96, 96), 40.0)
    lung[20:76, 20:76] = -930
    lr = (lung + rng.normal(0, 8.6, lung.shape)).astype(np.float32)
    sr, factor = bundled.enhance_slice(lr).hu, bundled.task.upscale
    below = [(image[24 * k : 72 * k, 24 * k : 72 * k] < -950).mean()
             for image, k in ((lr, 1), (sr, factor))]  # fmt: skip
    assert abs(below[1] - below[0]) < 0.02
    assert below[0] > 0.002  # the phantom has some


@pytest.mark.slow
def test_no_strip_beside_water_gets_worse(bundled: Enhancer) -> None:
    """Mean distance from the input, column by column: 3, 5 and 10 pixels wide, and beside them."""
    rng = np.random.default_rng(3)
    hus, at, rows = (-930.0, -700.0, -100.0, 60.0, 200.0, 400.0, 800.0), {3: 10, 5: 38, 10: 70}, 30
    values = np.zeros((rows * len(hus), 112))
    for k, hu in enumerate(hus):
        for width, x in at.items():
            values[rows * k + 3 : rows * (k + 1) - 3, x : x + width] = hu
    lr_hu = (values + rng.normal(0, 5, values.shape)).astype(np.float32)
    weights, overrides = (
        bundled_weights(f"sr{bundled.task.upscale}"),
        ["diffusion.conserve_hu=false"],
    )
    without = Enhancer(weights, device="cpu", precision="fp32", overrides=overrides)
    off = [lr_difference_hu(m.enhance_slice(lr_hu).hu, lr_hu) for m in (without, bundled)]
    for k, hu in enumerate(hus):
        inner = slice(rows * k + 6, rows * (k + 1) - 6)
        for width, x in at.items():
            for low, high in ((x, x + width), (x - 8, x - 2), (x + width + 2, x + width + 8)):
                before, after = (np.abs(o[inner, low:high].mean(axis=0)).mean() for o in off)
                assert after < before + 1.5, (hu, width, low)  # the noise of these means
