import pytest
import torch
from torch.nn import functional

from medqdm.diffusion.consistency import back_project
from medqdm.diffusion.filters import gaussian_blur, high_pass, local_mean, local_variance


def smooth(seed: int) -> torch.Tensor:
    """(1, 1, 128, 128) in [-.8, .8]."""
    small = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) - 0.5
    image = functional.interpolate(small, size=(128, 128), mode="bicubic")
    return (1.4 * image).clamp(-0.8, 0.8)


def noise(seed: int, side: int) -> torch.Tensor:
    return torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(seed))


def misfit(sr: torch.Tensor, lr: torch.Tensor) -> float:
    return float((functional.avg_pool2d(sr, 4) - lr).square().mean().sqrt())


def test_an_offset_is_taken_back_and_nothing_else() -> None:
    hr = smooth(0)
    lr = functional.avg_pool2d(hr, 4)
    off = hr + 0.1
    errors = [
        float((back_project(off, lr, iterations=n) - hr).square().mean().sqrt()) for n in (1, 3)
    ]
    assert errors[0] < 0.01
    assert errors[1] <= errors[0]
    torch.testing.assert_close(back_project(hr, lr), hr, atol=1e-6, rtol=0)


def test_coarse_errors_shrink_with_each_iteration_and_fine_detail_stays() -> None:
    hr = smooth(1)
    lr = functional.avg_pool2d(hr, 4)
    board = (torch.arange(128)[:, None] + torch.arange(128)) % 2 * 0.2 - 0.1  # no mean in any 4 x 4
    off = hr + 0.2 * smooth(2) + board
    found = [back_project(off, lr, iterations=n) for n in (1, 2, 3)]
    misfits = [misfit(sr, lr) for sr in (off, *found)]
    assert misfits == sorted(misfits, reverse=True)
    assert misfits[1] < 0.6 * misfits[0]
    assert misfits[3] < 0.3 * misfits[0]
    kept = found[2] - gaussian_blur(found[2], 2.0)
    assert float((kept * board).sum() / board.square().sum()) == pytest.approx(1, abs=0.05)


def test_little_of_the_input_s_noise_is_pulled_in() -> None:
    hr = smooth(3)
    clean = functional.avg_pool2d(hr, 4)
    noisy = clean + 0.05 * noise(4, 32)
    undamped = hr + functional.interpolate(noisy - clean, scale_factor=4, mode="bicubic")
    moved = float((back_project(hr, noisy, iterations=1) - hr).square().mean())
    assert moved < 0.2 * float((undamped - hr).square().mean())


def test_clipped_air_does_not_hide_the_error() -> None:
    hr = smooth(5)
    hr[..., :96] = -1
    lr = functional.avg_pool2d(hr, 4)
    off = torch.where(hr > -1, hr + 0.1, hr)
    out = back_project(off, lr)
    assert float((out - hr)[..., 104:].abs().mean()) < 0.03
    assert float(out.min()) >= -1


def test_filters_keep_the_mean_and_measure_variance() -> None:
    image = 0.3 + 0.1 * noise(6, 64)
    for blurred in (gaussian_blur(image, 1.5), local_mean(image, 7)):
        assert float(blurred.mean()) == pytest.approx(float(image.mean()), abs=2e-3)
        assert float(blurred.std()) < 0.5 * float(image.std())
    assert float(local_variance(image, 7).mean()) == pytest.approx(0.01 * 48 / 49, rel=0.05)
    flat = torch.full((1, 2, 9, 9), 0.4)
    torch.testing.assert_close(high_pass(flat), torch.zeros_like(flat))
    torch.testing.assert_close(gaussian_blur(flat, 1.0), flat)


def test_gaussian_blur_has_the_deviation_asked_for() -> None:
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    spread = gaussian_blur(point, 2.0)[0, 0]
    x = torch.arange(41.0) - 20
    assert float((spread.sum(dim=0) * x**2).sum()) == pytest.approx(4, rel=0.03)
    torch.testing.assert_close(spread, spread.mT)
