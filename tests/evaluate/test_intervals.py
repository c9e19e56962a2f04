"""Statistics: patients are the independent units."""

import math

import numpy as np
import pytest

from medqdm.evaluate import Evaluation, Score, interval
from medqdm.window import Window


def test_no_interval_for_one_patient() -> None:
    found = interval([3.0])
    assert (found.mean, found.low, found.high, found.kind) == (3, None, None, "none")


def test_t_interval_equals_a_hand_computation() -> None:
    found = interval([1.0, 2.0, 6.0])
    # sd = sqrt(7), t(0.975, 2) = 4.30265
    half = 4.30265 * math.sqrt(7 / 3)
    assert found.kind == "t"
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-5)


def test_bootstrap_interval_has_the_width_that_theory_gives_and_repeats() -> None:
    values = np.random.default_rng(3).normal(10, 2, 200).tolist()
    found = interval(values)
    error = float(np.std(values)) / math.sqrt(200)
    assert found.kind == "bootstrap"
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.1 * error)
    assert found == interval(values)


def test_bootstrap_of_twenty_patients_stays_within_their_values() -> None:
    found = interval([*(float(k) for k in range(1, 20)), 100.0])
    assert found.kind == "bootstrap"
    assert found.low is not None
    assert found.high is not None
    assert 1 < found.low < 14.5 < found.high < 100


@pytest.mark.parametrize("patients", [3, 6, 12, 25])
def test_an_interval_holds_the_mean_as_often_as_it_says(patients: int) -> None:
    random = np.random.default_rng(0)
    drawn = [interval(random.normal(0, 1, patients).tolist()) for _ in range(300)]
    assert all(found.low is not None and found.high is not None for found in drawn)
    held = np.mean([found.low < 0 < found.high for found in drawn])  # type: ignore[operator]
    assert held > 0.91


def scored(values: dict[str, dict[str, list[float]]]) -> Evaluation:
    """An evaluation of given values: method to patient to values of its slices."""
    found = Evaluation({}, Window(0.0, 2000.0))
    for method, patients in values.items():
        for patient, numbers in patients.items():
            found.scores.extend(
                Score(patient, k, method, "whole", 1, {"psnr_db": number})
                for k, number in enumerate(numbers)
            )
    return found


def test_patients_count_once_however_many_slices_they_have() -> None:
    found = scored({"medqdm": {"a": [10.0] * 9, "b": [20.0]}})
    assert found.patient_means("psnr_db", "medqdm") == {"a": 10, "b": 20}
    mean = found.mean("psnr_db", "medqdm")
    assert mean is not None
    assert mean.mean == 15
    assert found.slices == {"a": 9, "b": 1}


def test_differences_are_taken_patient_by_patient() -> None:
    found = scored(
        {
            "medqdm": {"a": [31.0, 33.0], "b": [41.0], "c": [51.5]},
            "bicubic": {"a": [30.0, 32.0], "b": [40.0], "c": [50.0]},
        }
    )
    difference = found.difference("psnr_db", "bicubic")
    assert difference is not None
    assert difference.mean == pytest.approx(7 / 6)
    # the values 1, 1, 1.5 have sd 0.288675; t(0.975, 2) = 4.30265
    assert difference.low == pytest.approx(7 / 6 - 4.30265 * 0.288675 / math.sqrt(3), rel=1e-4)
    means = found.mean("psnr_db", "medqdm")
    assert means is not None
    assert means.low is not None
    assert means.low < 30  # the patients differ far more than the methods


def test_twice_and_half_the_truths_own_are_equally_far_from_it() -> None:
    found = scored(
        {
            "medqdm": {"a": [2.0], "b": [0.5], "c": [8.0]},
            "reference": {"a": [1.0], "b": [1.0], "c": [8.0]},
        }
    )
    ratio = found.ratio("psnr_db", "medqdm")
    assert ratio is not None
    assert ratio.mean == pytest.approx(1)
    # logarithms log 2, -log 2, 0 have the sd log 2; t(0.975, 2) = 4.30265
    half = 4.30265 * math.log(2) / math.sqrt(3)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(-half), math.exp(half)), rel=1e-4)
    none = scored({"medqdm": {"a": [0.0]}, "reference": {"a": [1.0]}}).ratio("psnr_db", "medqdm")
    assert none is not None
    assert none.mean == 0


def test_two_perfect_scores_do_not_differ_and_infinity_has_no_interval() -> None:
    found = scored({"medqdm": {"a": [math.inf]}, "bicubic": {"a": [math.inf]}})
    difference = found.difference("psnr_db", "bicubic")
    assert difference is not None
    assert difference.mean == 0
    assert interval([math.inf, 30.0, 31.0]).kind == "none"
