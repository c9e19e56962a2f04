import math

import pytest
import torch

from medqdm.diffusion.noise import SliceNoise

SHAPE = (3, 128, 128)


def draw(position_mm: float, *, correlation_mm: float = 20.0, seed: int = 0, k: int = 0):
    return SliceNoise(seed, position_mm, SHAPE, correlation_mm).draw(k)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).mean())


@pytest.mark.parametrize("position_mm", [-33.3, 0.0, 0.7, 13.0, 20.0, 1234.5])
@pytest.mark.parametrize("correlation_mm", [0.0, 20.0])
def test_every_slice_is_standard_normal(position_mm: float, correlation_mm: float) -> None:
    noise = draw(position_mm, correlation_mm=correlation_mm)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float((noise**4).mean()) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("start_mm", [0.0, -40.0])
@pytest.mark.parametrize("distance_mm", [0.6, 5.0, 10.0, 19.0])
def test_correlation_falls_with_distance(start_mm: float, distance_mm: float) -> None:
    found = correlation(draw(start_mm), draw(start_mm + distance_mm))
    assert found == pytest.approx(math.cos(math.pi * distance_mm / 40), abs=0.02)


def test_slices_beyond_an_anchor_keep_what_they_share_of_it() -> None:
    found = correlation(draw(15.0), draw(25.0))  # sin at 15 of 20, cos at 5 of 20
    expected = math.sin(math.pi / 2 * 0.75) * math.cos(math.pi / 2 * 0.25)
    assert found == pytest.approx(expected, abs=0.02)
    assert correlation(draw(3.0), draw(43.0)) == pytest.approx(0, abs=0.02)


def test_without_correlation_neighbours_are_independent() -> None:
    pair = [draw(position, correlation_mm=0.0) for position in (10.0, 10.001)]
    assert correlation(*pair) == pytest.approx(0, abs=0.02)


def test_a_draw_depends_on_seed_number_and_position_alone() -> None:
    shared = SliceNoise(3, 7.5, SHAPE, 20.0)
    last_first = [shared.draw(k) for k in (4, 0, 4)]
    assert torch.equal(last_first[0], draw(7.5, seed=3, k=4))
    assert torch.equal(last_first[1], draw(7.5, seed=3, k=0))
    assert torch.equal(last_first[2], last_first[0])
    assert torch.equal(draw(7.5 + 1e-5), draw(7.5))
    others = [draw(7.5, seed=4, k=4), draw(7.5, seed=3, k=5), draw(27.5, seed=3, k=4)]
    assert all(abs(correlation(last_first[0], other)) < 0.75 for other in others)
    assert all(not torch.equal(last_first[0], other) for other in others)
