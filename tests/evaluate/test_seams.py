"""Seams: where they could be, and steps of known height there."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from medqdm.config import load_task
from medqdm.evaluate import Borders, borders_of, seam_ratio, upsample_lanczos
from medqdm.jobs import SliceJob
from medqdm.picture import upsample_bicubic

Image = NDArray[np.float32]


def noise(seed: int = 0) -> Image:
    return np.random.default_rng(seed).normal(0, 10, (256, 256)).astype(np.float32)


def both(lines: Sequence[int], beside_px: int = 3) -> Borders:
    return Borders(lines, lines, beside_px)


def test_pixels_cells_and_windows_are_where_the_network_cuts() -> None:
    sr4 = borders_of(load_task("sr4-t"), (128, 128))
    assert list(sr4) == ["pixel", "cell", "window"]  # one tile
    assert list(sr4["pixel"].rows) == list(range(4, 512, 4))
    assert list(sr4["cell"].rows) == list(range(8, 512, 8))
    assert list(sr4["window"].columns) == list(range(64, 512, 64))
    assert [found.beside_px for found in sr4.values()] == [2, 4, 4]
    sr8 = borders_of(load_task("sr8-t"), (64, 48))
    assert list(sr8["cell"].columns) == list(range(16, 384, 16))
    assert list(sr8["window"].rows) == list(range(64, 512, 64))


def test_tiles_end_where_the_pipeline_cuts_them() -> None:
    task = load_task("sr4-t")
    found = borders_of(task, (300, 200))["tile"]
    job = SliceJob(task, [0], 0, np.zeros((300, 200), np.float32), 0.0)
    assert tuple(job.lr.shape) == (304, 208)  # padded to whole windows
    ys, xs = (sorted(set(starts)) for starts in zip(*job.corners, strict=True))
    assert (ys, xs) == ([0, 112, 176], [0, 80])
    assert found.rows == [448, 512, 704, 960]  # the last tile ends outside, in the padding
    assert found.columns == [320, 512]


@pytest.mark.parametrize("height", [1.0, 5.0])
def test_a_step_of_known_height_has_its_ratio(height: float) -> None:
    lines = range(64, 256, 64)
    ramp = np.add.outer(np.arange(256), np.arange(256)).astype(np.float32)  # 1 a pixel
    steps = np.arange(256) // 64 * height
    stepped = (ramp + steps[:, None] + steps[None, :]).astype(np.float32)
    assert seam_ratio(ramp, both(lines)) == 1
    assert seam_ratio(stepped, both(lines)) == pytest.approx(1 + height)
    assert seam_ratio(stepped, Borders(lines, [], 8)) == pytest.approx(1 + height)
    assert seam_ratio(stepped, both([line + 32 for line in lines if line < 200])) == 1


def test_noise_has_no_seams_until_a_step_is_added() -> None:
    image, lines = noise(), range(8, 256, 8)
    assert seam_ratio(image, both(lines)) == pytest.approx(1, abs=0.02)
    steps = np.arange(256) // 8 % 2 * 20.0
    with_steps = (image + steps[:, None]).astype(np.float32)
    sd = 10 * 2**0.5  # of the difference of two pixels
    expected = stats.foldnorm.mean(20 / sd, scale=sd) / stats.halfnorm.mean(scale=sd)
    assert seam_ratio(with_steps, Borders(lines, [], 3)) == pytest.approx(expected, rel=0.03)
    # no steps across columns: half of all the borders
    assert seam_ratio(with_steps, both(lines)) == pytest.approx((expected + 1) / 2, rel=0.03)


@pytest.mark.parametrize("enlarge", [upsample_bicubic, upsample_lanczos])
def test_interpolation_has_a_grid_of_input_pixels_and_none_of_cells_or_windows(
    enlarge: Callable[[Image, int], Image],
) -> None:
    lr = np.random.default_rng(0).normal(0, 30, (128, 128)).astype(np.float32)
    found = {
        name: seam_ratio(enlarge(lr, 4), borders)
        for name, borders in borders_of(load_task("sr4-t"), (128, 128)).items()
    }
    assert abs(found["pixel"] - 1) > 0.05
    assert found["cell"] == pytest.approx(1, abs=0.02)
    assert found["window"] == pytest.approx(1, abs=0.05)


def test_lines_beside_a_border_are_never_borders_themselves() -> None:
    rows = (np.arange(32) // 2 % 2).astype(np.float32)  # a step into every second row
    image = np.tile(rows[:, None], (1, 32))
    assert np.isnan(seam_ratio(image, Borders(range(2, 32, 2), [], 2)))
    assert np.isnan(seam_ratio(image, Borders([], [], 2)))


def test_only_steps_inside_the_mask_count() -> None:
    ramp = np.tile(np.arange(64, dtype=np.float32), (64, 1))
    ramp[:32, 32:] += 9
    mask = np.zeros((64, 64), dtype=np.bool_)
    mask[32:] = True
    borders = Borders([], [32], 4)
    assert seam_ratio(ramp, borders) == pytest.approx(1 + 9 / 2)
    assert seam_ratio(ramp, borders, mask) == 1
    mask[:, 32] = False  # the border's own pixel lies outside
    assert np.isnan(seam_ratio(ramp, borders, mask))
