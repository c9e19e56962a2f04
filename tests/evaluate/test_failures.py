"""Failures: the worst places are found where they were put."""

import numpy as np
import pytest

from medqdm.data import Pair
from medqdm.evaluate import failures


def make_pair(patient: str = "p", number: int = 0) -> Pair:
    hr = np.zeros((256, 256), dtype=np.float32)
    return Pair(
        hr_hu=hr, lr_hu=np.zeros((64, 64), np.float32), patient=patient, slice=number, spacing_mm=1
    )


def make_outputs(pair: Pair) -> dict[str, np.ndarray]:
    """Ours is off most at (40, 100), but bicubic is off there too; at (150, 60) ours alone is."""
    ours, bicubic = pair["hr_hu"].copy(), pair["hr_hu"].copy()
    ours[40:104, 100:164] = bicubic[40:104, 100:164] = 90
    ours[150:214, 60:124] = -50
    return {"medqdm": ours, "bicubic": bicubic, "other": ours}


def test_the_worst_places_of_both_kinds() -> None:
    pair = make_pair()
    largest, worse = failures.find(pair, make_outputs(pair), np.ones((256, 256), np.bool_))
    assert (largest.kind, largest.row, largest.column) == ("largest error", 40, 100)
    assert (largest.error_hu, largest.baseline_error_hu) == (90, 90)
    assert (worse.kind, worse.row, worse.column) == ("worse than bicubic", 150, 60)
    assert (worse.error_hu, worse.baseline_error_hu) == (50, 0)
    assert (worse.badness_hu, largest.badness_hu) == (50, 90)
    assert list(worse.panels) == ["input", "bicubic", "medqdm", "reference"]
    assert {panel.shape for panel in worse.panels.values()} == {(64, 64)}
    assert (worse.panels["medqdm"] == -50).all()


def test_places_outside_of_the_body_do_not_count() -> None:
    pair, body = make_pair(), np.zeros((256, 256), np.bool_)
    assert failures.find(pair, make_outputs(pair), body) == []
    body[190:, :] = True
    largest, _ = failures.find(pair, make_outputs(pair), body)
    assert largest.row + 32 >= 190
    assert largest.error_hu == pytest.approx(50 * (214 - largest.row) / 64)


def test_the_worst_of_each_patient_is_kept() -> None:
    body = np.ones((256, 256), np.bool_)
    kept: dict[tuple[str, str], failures.Failure] = {}
    for patient, number, factor in (("a", 0, 1), ("a", 1, 2), ("a", 2, 0.5), ("b", 0, 1)):
        pair = make_pair(patient, number)
        outputs = {name: factor * hu for name, hu in make_outputs(pair).items()}
        failures.keep_worst(kept, failures.find(pair, outputs, body))
    assert {key: failure.slice for key, failure in kept.items()} == {
        ("a", "largest error"): 1,
        ("a", "worse than bicubic"): 1,
        ("b", "largest error"): 0,
        ("b", "worse than bicubic"): 0,
    }
    text = "\n".join(failures.lines(list(kept.values())))
    assert "| a | 1 | largest error | 40 | 100 | 180.0 | 180.0 |" in text
