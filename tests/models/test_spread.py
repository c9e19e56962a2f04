import pytest
import torch

from medqdm.models.spread import FIRST_DEVIATION, TAPS, Spread

SHAPE = (2, 3, 8, 12)


def make() -> Spread:
    torch.manual_seed(0)
    return Spread(latent_channels=3, compression=4, num_steps=15)


def scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z_0, z_lr = torch.randn(2, *SHAPE, generator=generator)
    refined = torch.zeros(2, 1, 8, 12, dtype=torch.bool)
    refined[..., :6] = True
    return z_0, z_lr, refined


def grown(spread: Spread) -> Spread:
    for parameter in spread.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return spread


def test_before_training_it_says_what_is_known() -> None:
    spread, (z_0, z_lr, refined) = make(), scene()
    known = torch.rand(SHAPE) + 0.1
    found = spread.log_variance(z_0, z_lr, refined, torch.tensor([3, 9]), known)
    torch.testing.assert_close(found.exp(), known**2)
    pixel = spread.pixel_log_variance(z_0, z_lr, refined)
    assert pixel.shape == (2, 1, 32, 48)
    torch.testing.assert_close(pixel.exp().sqrt(), torch.full_like(pixel, FIRST_DEVIATION))


def test_steps_per_slice_and_per_place_agree() -> None:
    spread, (z_0, z_lr, refined) = grown(make()), scene()
    t, known = torch.tensor([3, 9]), torch.ones(SHAPE)
    places = t[:, None, None, None].expand(2, 1, 8, 12)
    by_slice = spread.log_variance(z_0, z_lr, refined, t, known)
    torch.testing.assert_close(by_slice, spread.log_variance(z_0, z_lr, refined, places, known))
    swapped = spread.log_variance(z_0, z_lr, refined, t.flip(0), known)
    assert not torch.allclose(by_slice, swapped)


def test_texture_has_the_deviation_and_the_colour_of_its_region() -> None:
    spread, (z_0, z_lr, refined) = make(), scene()
    side = torch.zeros(TAPS, TAPS)
    side[TAPS // 2, TAPS // 2 : TAPS // 2 + 2] = 0.5**0.5  # a pixel and its neighbour
    spread.filters[1, 0] = side
    generator = torch.Generator().manual_seed(5)
    many = torch.stack([
        spread.textured(torch.zeros(1, 1, 32, 48), z_0[:1], z_lr[:1], refined[:1],
                        torch.randn(1, 1, 32, 48, generator=generator)).detach()[0, 0]
        for _ in range(400)
    ])  # fmt: skip
    assert float(many.mean()) == pytest.approx(0, abs=1e-3)
    assert float(many.std()) == pytest.approx(FIRST_DEVIATION, rel=0.01)

    def correlation(x: int) -> float:
        return float((many[:, :, x] * many[:, :, x + 1]).mean() / many.var())

    assert correlation(10) == pytest.approx(0.5, abs=0.05)  # refined
    assert correlation(40) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("above", [0.001, 0.01, 0.02, 0.05, 0.2])
def test_texture_keeps_the_mean_beside_the_end_of_the_window(above: float) -> None:
    """Air is at -1: noise on both sides of it, clipped, would be 8 HU too bright."""
    spread, (z_0, z_lr, refined) = make(), scene()
    image = torch.full((2, 1, 32, 48), above - 1)
    white = torch.randn(2, 1, 32, 48, generator=torch.Generator().manual_seed(1))
    found = spread.textured(image, z_0, z_lr, refined, white).detach()
    assert float(found.min()) >= -1
    assert float(found.mean() + 1 - above) == pytest.approx(0, abs=0.1 * FIRST_DEVIATION)
    clipped = (image + FIRST_DEVIATION * white).clamp_min(-1)
    error, plain = (abs(float(x.mean() + 1 - above)) for x in (found, clipped))
    assert error < plain or plain < 3e-4
