"""Deviations beside errors, on outputs whose errors are known."""

import numpy as np
import pytest

from medqdm.config import load_task
from medqdm.data import Pair
from medqdm.evaluate.calibration import STATED, calibration, stated_regions
from medqdm.evaluate.detail import calibration_lines
from medqdm.evaluate.evaluation import Evaluation
from medqdm.evaluate.truth import WHOLE, Truth

TASK = load_task("tiny", ["autoencoder.latent_scale=1"])


def scored(stated: float, *, patients: int = 2) -> Evaluation:
    """Errors of deviation 10 HU on the left and 30 HU on the right; ``stated`` times as much."""
    found = Evaluation({"task": {"upscale": TASK.upscale}}, TASK.hu_window)
    random = np.random.default_rng(0)
    side = TASK.slice_px
    deviation = np.full((side, side), 10, np.float32)
    deviation[:, side // 2 :] = 30
    for k in range(patients):
        hr = np.full((side, side), 40, np.float32)
        lr = np.full((side // TASK.upscale,) * 2, 40, np.float32)
        pair = Pair(hr_hu=hr, lr_hu=lr, patient=f"p{k}", slice=0, spacing_mm=0.7)
        sr = hr + deviation * random.standard_normal(hr.shape).astype(np.float32)
        found.add(Truth(pair, TASK), "draws", sr, {}, stated * deviation)
        found.add(Truth(pair, TASK), "plain", sr, {})
    return found


@pytest.mark.parametrize(("stated", "ratio"), [(1.0, 1.0), (0.5, 2.0), (2.0, 0.5)])
def test_errors_are_as_many_times_the_deviation(stated: float, ratio: float) -> None:
    found = scored(stated)
    for region, error in ((WHOLE, (10**2 + 30**2) / 2), ("soft tissue", (10**2 + 30**2) / 2)):
        assert found.mean("squared_error_hu2", "draws", region).mean == pytest.approx(
            error, rel=0.1
        )
        variance = found.mean("variance_hu2", "draws", region).mean
        squared = found.mean("squared_error_hu2", "draws", region).mean / variance
        assert squared**0.5 == pytest.approx(ratio, rel=0.05)
    within = found.mean("within_2_sd", "draws").mean
    normal = {1.0: 0.954, 0.5: 0.683, 2.0: 1.0}
    assert within == pytest.approx(normal[stated], abs=0.02)


def test_pixels_are_sorted_by_what_is_stated() -> None:
    found = scored(1.0)
    shares = {name: found.share("draws", name) for name in STATED}
    assert shares == pytest.approx(
        {name: 0.5 if name in {"deviation 10 to 20 HU", "deviation 20 to 40 HU"} else 0
         for name in STATED}
    )  # fmt: skip
    assert found.mean("squared_error_hu2", "draws", "deviation 20 to 40 HU").mean == pytest.approx(
        900, rel=0.1
    )


def test_a_deviation_that_is_right_is_so_as_shown_not_by_the_truth() -> None:
    found = Evaluation({"task": {"upscale": TASK.upscale}}, TASK.hu_window)
    random, side, block = np.random.default_rng(0), 640, 16
    apart = random.normal(0, 150, (side // block,) * 2)
    hr = (100 + apart).repeat(block, 0).repeat(block, 1).astype(np.float32)
    lr = hr[:: TASK.upscale, :: TASK.upscale]
    pair = Pair(hr_hu=hr, lr_hu=lr, patient="p", slice=0, spacing_mm=0.7)
    guess = np.full_like(hr, 100)
    found.add(Truth(pair, TASK), "guess", guess, {}, np.full_like(hr, 150))

    def ratio(region: str) -> float:
        squared, variance = (
            found.mean(f"{metric}_hu2", "guess", region).mean
            for metric in ("squared_error", "variance")
        )
        return float((squared / variance) ** 0.5)

    assert ratio("soft tissue as shown") == pytest.approx(1, abs=0.1)
    assert ratio("soft tissue") < 0.6
    assert ratio("bone") > 1.4


def test_every_pixel_lies_in_one_range() -> None:
    deviation = np.array([[0, 4.9], [5, 159], [160, 1e4]], np.float32)
    total = sum(mask.astype(int) for _, mask in stated_regions(deviation))
    assert (total == 1).all()


def test_the_report_has_the_section_where_there_are_deviations() -> None:
    found = scored(2.0)
    lines = list(calibration_lines(found))
    assert lines[0].startswith("## Deviation")
    row = next(line for line in lines if line.startswith("| draws | whole"))
    assert float(row.split("|")[6]) == pytest.approx(0.5, abs=0.02)
    assert not any("plain" in line for line in lines)
    assert found.slices == {"p0": 1, "p1": 1}  # counted once
    plain = Evaluation(
        found.settings, found.window, [s for s in found.scores if s.method == "plain"]
    )
    assert list(calibration_lines(plain)) == []


def test_a_mask_chooses_the_pixels() -> None:
    sr, hr = np.array([[1, 5]], np.float32), np.zeros((1, 2), np.float32)
    found = calibration(sr, hr, np.ones((1, 2), np.float32), np.array([[True, False]]))
    assert found == {"squared_error_hu2": 1.0, "variance_hu2": 1.0, "within_2_sd": 1.0}
