import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medqdm.errors import MedQDMError
from medqdm.window import Window


@given(st.floats(-1000, 1000), st.floats(1, 4000), st.floats(-4000, 4000))
def test_round_trip_is_the_clip(center: float, width: float, hu: float) -> None:
    window = Window(center, width)
    value = np.float64(hu)
    back = window.denormalize(window.normalize(value))
    assert back == pytest.approx(float(window.clip(value)), abs=1e-6)


def test_arrays_and_tensors_agree() -> None:
    window = Window(40, 400)
    hu = np.linspace(-500, 500, 11, dtype=np.float32)
    np.testing.assert_allclose(
        window.normalize(torch.from_numpy(hu)).numpy(), window.normalize(hu), atol=1e-6
    )
    assert window.normalize(hu).min() == -1
    assert window.normalize(hu).max() == 1


def test_units() -> None:
    window = Window(0, 2000)
    assert window.hu_per_unit == 1000
    assert (window.low_hu, window.high_hu) == (-1000, 1000)


@pytest.mark.parametrize("width", [0, -400, float("nan")])
def test_empty_window_is_refused(width: float) -> None:
    with pytest.raises(MedQDMError, match="width_hu must be above 0"):
        Window(0, width)
