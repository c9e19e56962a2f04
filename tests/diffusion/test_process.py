import math

import pytest
import torch

from medqdm.diffusion.process import Process
from medqdm.diffusion.schedule import Schedule

SCHEDULE = Schedule(num_steps=15, kappa=2.0, min_noise_level=0.04, max_sqrt_eta=0.99, power=0.3)
PROCESS = Process(SCHEDULE, published_masking=False)


def latents(*, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, 8, 8, generator=generator) for _ in range(4))


def index(t: int) -> torch.Tensor:
    return torch.full((2,), t)


def posterior_by_product(
    z_t: float, z_0: float, z_lr: float, t: int, s: int
) -> tuple[float, float]:
    """q(z_s | z_t, z_0) as a product of two Gaussian densities in z_s, on a fine grid."""
    eta_t, eta_s, kappa = float(SCHEDULE.eta[t]), float(SCHEDULE.eta[s]), SCHEDULE.kappa
    e = z_lr - z_0
    grid = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    prior = -((grid - (z_0 + eta_s * e)) ** 2) / (2 * kappa**2 * eta_s)
    likelihood = -((z_t - (grid + (eta_t - eta_s) * e)) ** 2) / (2 * kappa**2 * (eta_t - eta_s))
    density = torch.softmax(prior + likelihood, dim=0)
    mean = (density * grid).sum()
    return float(mean), float((density * (grid - mean) ** 2).sum())


@pytest.mark.parametrize(("t", "s"), [(14, 13), (14, 9), (9, 5), (5, 0), (1, 0)])
def test_ancestral_jump_is_the_posterior(t: int, s: int) -> None:
    z_t, z_0, z_lr = 0.7, -0.4, 0.3
    mean, variance = posterior_by_product(z_t, z_0, z_lr, t, s)

    def jump(noise: float) -> float:
        full = [torch.full((1, 1, 1, 1), value) for value in (z_t, z_0, z_lr, noise)]
        one = torch.tensor([t]), torch.tensor([s])
        out = PROCESS.jump(*full[:3], t=one[0], s=one[1], gamma=1.0, noise=full[3])
        return float(out)

    assert jump(0.0) == pytest.approx(mean, abs=1e-4)
    assert (jump(1.0) - jump(0.0)) ** 2 == pytest.approx(variance, rel=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_jump_keeps_the_marginal(gamma: float) -> None:
    generator = torch.Generator().manual_seed(1)
    z_0, z_lr = torch.full((1, 1, 1, 1), 0.4), torch.full((1, 1, 1, 1), -0.6)
    noise = torch.randn(200_000, 1, 1, 2, generator=generator)
    many = z_0.expand(len(noise), 1, 1, 1), z_lr.expand(len(noise), 1, 1, 1)
    t, s = torch.full((len(noise),), 9), torch.full((len(noise),), 4)
    z_t = PROCESS.diffuse(*many, t, noise[..., :1])
    z_s = PROCESS.jump(z_t, *many, t=t, s=s, gamma=gamma, noise=noise[..., 1:])
    eta = float(SCHEDULE.eta[4])
    assert float(z_s.mean()) == pytest.approx(0.4 + eta * -1.0, abs=0.01)
    assert float(z_s.std()) == pytest.approx(SCHEDULE.kappa * math.sqrt(eta), rel=0.01)


def test_jump_to_the_end_returns_the_prediction() -> None:
    z_t, z_0, z_lr, noise = latents()
    out = PROCESS.jump(z_t, z_0, z_lr, t=index(3), s=index(-1), gamma=1.0, noise=noise)
    torch.testing.assert_close(out, z_0, atol=0, rtol=0)


def test_deterministic_jump_ignores_the_noise() -> None:
    z_t, z_0, z_lr, noise = latents()
    a, b = (
        PROCESS.jump(z_t, z_0, z_lr, t=index(9), s=index(4), gamma=0.0, noise=n)
        for n in (noise, 3 * noise)
    )
    torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_a_map_of_indices_equals_an_index_per_image() -> None:
    z_t, z_0, z_lr, noise = latents()
    t = torch.tensor([9, 3])
    s = torch.tensor([4, 1])
    by_image = PROCESS.jump(z_t, z_0, z_lr, t=t, s=s, gamma=0.7, noise=noise)
    maps = [i[:, None, None, None].expand(2, 1, 8, 8) for i in (t, s)]
    by_map = PROCESS.jump(z_t, z_0, z_lr, t=maps[0], s=maps[1], gamma=0.7, noise=noise)
    torch.testing.assert_close(by_image, by_map)


def test_unrefined_regions_hold_the_lr_latent_until_the_end() -> None:
    z_t, z_0, z_lr, noise = latents()
    refined = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    refined[..., :4] = True
    rest = {"gamma": 1.0, "noise": noise, "refined": refined}
    out = PROCESS.jump(z_t, z_0, z_lr, t=index(9), s=index(4), **rest)
    everywhere = PROCESS.jump(z_t, z_0, z_lr, t=index(9), s=index(4), gamma=1.0, noise=noise)
    torch.testing.assert_close(out[..., 4:], z_lr[..., 4:], atol=0, rtol=0)
    torch.testing.assert_close(out[..., :4], everywhere[..., :4])
    end = PROCESS.jump(z_t, z_0, z_lr, t=index(9), s=index(-1), **rest)
    torch.testing.assert_close(end, z_0, atol=0, rtol=0)
    torch.testing.assert_close(PROCESS.prior(z_lr, noise, refined)[..., 4:], z_lr[..., 4:])


def test_training_shows_nothing_of_the_truth_outside_refined_regions() -> None:
    z_0, other, z_lr, noise = latents()
    refined = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    refined[..., :4] = True
    a, b = (PROCESS.diffuse(truth, z_lr, index(4), noise, refined) for truth in (z_0, other))
    torch.testing.assert_close(a[..., 4:], b[..., 4:], atol=0, rtol=0)
    assert not torch.allclose(a[..., :4], b[..., :4])


def test_input_scale_follows_the_mask_unless_published() -> None:
    z_t = latents()[0]
    refined = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    refined[..., :4] = True
    scaled = PROCESS.scale_input(z_t, index(9), refined)
    torch.testing.assert_close(scaled[..., 4:], z_t[..., 4:])
    factor = (4 * float(SCHEDULE.eta[9]) + 1) ** 0.5
    torch.testing.assert_close(scaled[..., :4] * factor, z_t[..., :4])
    published = Process(SCHEDULE, published_masking=True).scale_input(z_t, index(9), refined)
    torch.testing.assert_close(published * factor, z_t)


def test_guess_is_the_posterior_of_white_noise() -> None:
    deviation, t = 1.7, 6
    a, b = 1 - float(SCHEDULE.eta[t]), SCHEDULE.kappa * float(SCHEDULE.eta[t].sqrt())
    grid = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    z_t, z_lr = 0.9, -0.3
    prior = -((grid - z_lr) ** 2) / (2 * deviation**2)
    likelihood = -((z_t - (grid + (1 - a) * (z_lr - grid))) ** 2) / (2 * b**2)
    density = torch.softmax(prior + likelihood, dim=0)
    mean = float((density * grid).sum())
    variance = float((density * (grid - mean) ** 2).sum())
    full = [torch.full((1, 1, 1, 2), value) for value in (z_t, z_lr)]
    refined = torch.tensor([[[[True, False]]]])
    scaled = PROCESS.scale_input(full[0], torch.tensor([t]), refined)
    found, spread = PROCESS.guess(scaled, full[1], torch.tensor([t]), deviation, refined)
    assert float(found[..., 0]) == pytest.approx(mean, abs=1e-4)
    assert float(spread[..., 0]) == pytest.approx(variance**0.5, abs=1e-4)
    assert (float(found[..., 1]), float(spread[..., 1])) == (pytest.approx(z_lr), 1.0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_a_jump_with_variance_is_one_with_the_truth_drawn(gamma: float) -> None:
    """Mean and deviation are those over jumps with z_0 + sqrt(v) e in the prediction's place."""
    generator = torch.Generator().manual_seed(3)
    many = 200_000
    z_t, z_0, z_lr = (torch.full((many, 1, 1, 1), value) for value in (0.9, 0.4, -0.6))
    fresh, apart = torch.randn(2, many, 1, 1, 1, generator=generator)
    at = {"t": torch.full((many,), 9), "s": torch.full((many,), 4), "gamma": gamma}
    found = PROCESS.jump(z_t, z_0, z_lr, **at, noise=fresh, variance=torch.full_like(z_0, 0.3))
    drawn = PROCESS.jump(z_t, z_0 + 0.3**0.5 * gamma * apart, z_lr, **at, noise=fresh)
    torch.testing.assert_close(found.mean(), drawn.mean(), atol=0.01, rtol=0)
    torch.testing.assert_close(found.std(), drawn.std(), atol=0.01, rtol=0)


def test_variance_adds_nothing_at_the_end_and_outside_refined_regions() -> None:
    z_t, z_0, z_lr, noise = latents()
    refined = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    refined[..., :4] = True
    rest = {"gamma": 1.0, "noise": noise, "refined": refined, "variance": torch.ones_like(z_0)}
    out = PROCESS.jump(z_t, z_0, z_lr, t=index(9), s=index(4), **rest)
    torch.testing.assert_close(out[..., 4:], z_lr[..., 4:], atol=0, rtol=0)
    end = PROCESS.jump(z_t, z_0, z_lr, t=index(9), s=index(-1), **rest)
    torch.testing.assert_close(end, z_0, atol=0, rtol=0)
