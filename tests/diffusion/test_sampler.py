import pytest
import torch

from medqdm.diffusion.policies import Policy
from medqdm.diffusion.process import Process
from medqdm.diffusion.sampler import sample, sample_regions
from medqdm.diffusion.schedule import Schedule

SCHEDULE = Schedule(num_steps=15, kappa=2.0, min_noise_level=0.04, max_sqrt_eta=0.99, power=0.3)
PROCESS = Process(SCHEDULE, published_masking=False)
SHAPE = (2, 3, 8, 8)


def noise_of(seed: int):
    def noise(k: int) -> torch.Tensor:
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1000 * seed + k))

    return noise


@pytest.mark.parametrize("count", [None, 8, 4, 2, 1])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_an_exact_denoiser_returns_the_truth(count: int | None, gamma: float) -> None:
    truth, z_lr = noise_of(1)(0), noise_of(1)(1)
    *_, last = sample(
        lambda _z, _t: truth, PROCESS, z_lr,
        steps=SCHEDULE.subset(count), gamma=gamma, noise=noise_of(2),
    )  # fmt: skip
    torch.testing.assert_close(last.z_s, truth, atol=0, rtol=0)


def test_ancestral_sampling_from_a_gaussian_prior_reaches_its_posterior() -> None:
    """With z_0 ~ N(0, 1) and z_lr = 0 the best denoiser is linear and samples must be N(0, 1)."""
    eta = SCHEDULE.eta.float()

    def denoise(scaled: torch.Tensor, t: int) -> torch.Tensor:
        e = eta[t]
        z_t = scaled * (4 * e + 1).sqrt()
        return z_t * (1 - e) / ((1 - e) ** 2 + 4 * e)

    shape = (1, 1, 200, 200)
    generator = torch.Generator().manual_seed(0)
    *_, last = sample(
        denoise, PROCESS, torch.zeros(shape), steps=SCHEDULE.subset(None), gamma=1.0,
        noise=lambda _k: torch.randn(shape, generator=generator),
    )  # fmt: skip
    assert float(last.z_s.mean()) == pytest.approx(0, abs=0.02)
    # the last jumps are wide at the clean end (eta .0137 -> .0004 -> 0): some spread is lost
    assert 0.8 < float(last.z_s.std()) < 1.02


def test_steps_and_draws_come_in_order() -> None:
    seen, drawn = [], []

    def denoise(z: torch.Tensor, t: int) -> torch.Tensor:
        seen.append(t)
        return z

    def noise(k: int) -> torch.Tensor:
        drawn.append(k)
        return noise_of(0)(k)

    steps = [
        s.t
        for s in sample(
            denoise, PROCESS, torch.zeros(SHAPE), steps=[14, 5, 0], gamma=1.0, noise=noise
        )
    ]
    assert steps == [14, 5, 0]
    assert seen == [14, 5, 0]
    assert drawn == [0, 1, 2]


def test_the_network_sees_no_noise_outside_refined_regions() -> None:
    refined = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    refined[..., :4] = True
    z_lr = noise_of(3)(0)
    first = []

    def denoise(z: torch.Tensor, _t: int) -> torch.Tensor:
        first.append(z)
        return torch.zeros_like(z)

    list(sample(denoise, PROCESS, z_lr, steps=[14, 0], gamma=1.0, noise=noise_of(4),
                refined=refined))  # fmt: skip
    torch.testing.assert_close(first[0][..., 4:], z_lr[..., 4:])
    torch.testing.assert_close(first[1][..., 4:], z_lr[..., 4:])


@pytest.mark.parametrize("deviation", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("count", [None, 4, 2])
def test_with_its_error_known_a_perfect_denoiser_draws_the_whole_variance(
    count: int | None, deviation: float
) -> None:
    """z_0 ~ N(0, d^2), z_lr = 0: alone, few ancestral steps lose most of d^2 (Analytic-DPM)."""
    eta, d2 = SCHEDULE.eta.float(), deviation**2

    def denoise(z_t: torch.Tensor, t: int) -> torch.Tensor:
        e = eta[t]
        return z_t * (4 * e + 1).sqrt() * (1 - e) * d2 / ((1 - e) ** 2 * d2 + 4 * e)

    def variance(z_0: torch.Tensor, t: int) -> torch.Tensor:
        e = eta[t]
        return torch.full_like(z_0, d2 * 4 * e / ((1 - e) ** 2 * d2 + 4 * e))

    def share(**options: object) -> float:
        shape = (1, 1, 200, 200)
        generator = torch.Generator().manual_seed(0)
        whole = torch.ones(1, 1, 1, dtype=torch.int64)
        *_, last = sample_regions(
            lambda z, t, _due: denoise(z, t), PROCESS, torch.zeros(shape),
            policy=Policy(SCHEDULE.subset(count), whole), gamma=1.0,
            noise=lambda _k: torch.randn(shape, generator=generator), **options,
        )  # fmt: skip
        return float(last.z_s.var()) / d2

    assert share(variance=variance) == pytest.approx(1, abs=0.06)
    assert share() < 0.8
    assert share(variance=lambda z_0, _t: torch.zeros_like(z_0)) == share()
