import itertools

import pytest
import torch

from medqdm.diffusion.schedule import Schedule
from medqdm.errors import MedQDMError

PUBLISHED = [.020, .117, .176, .234, .292, .351, .412, .476, .542, .610, .681, .754, .830, .909,
             .990]  # fmt: skip


def make(**changes: float) -> Schedule:
    settings = {
        "num_steps": 15,
        "kappa": 2.0,
        "min_noise_level": 0.04,
        "max_sqrt_eta": 0.99,
        "power": 0.3,
    }
    return Schedule(**{**settings, **changes})  # type: ignore[arg-type]


def test_values_of_the_paper() -> None:
    assert make().sqrt_eta.tolist() == pytest.approx(PUBLISHED, abs=6e-4)


def test_four_step_preset() -> None:
    short = make(num_steps=4, min_noise_level=0.2)
    assert short.sqrt_eta.tolist() == pytest.approx([0.1, 0.520, 0.761, 0.990], abs=6e-4)


@pytest.mark.parametrize("count", range(2, 16))
def test_subset_keeps_both_ends_and_falls(count: int) -> None:
    steps = make().subset(count)
    assert len(steps) == count
    assert (steps[0], steps[-1]) == (14, 0)
    assert all(a > b for a, b in itertools.pairwise(steps))


def test_subset_of_one_and_of_all() -> None:
    assert make().subset(1) == [14]
    assert make().subset(None) == list(range(14, -1, -1))


@pytest.mark.parametrize("count", [0, 16])
def test_subset_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(MedQDMError, match=f"must be 1 to 15, got {count}"):
        make().subset(count)


def test_eta_that_cannot_rise_is_refused() -> None:
    with pytest.raises(MedQDMError, match="must rise"):
        make(min_noise_level=3.0)


def test_eta_is_the_square() -> None:
    schedule = make()
    torch.testing.assert_close(schedule.eta, schedule.sqrt_eta.square())
