"""Padding is one value in solid regions that touch the border; measured values are never taken."""

import numpy as np
import pydicom
import pytest

from medqdm.io import read, write_series
from medqdm.io.padding import find_declared, find_undeclared

SEEDS = range(12)


def grid(shape):
    return np.mgrid[: shape[0], : shape[1]]


def outside_disc(rng, shape):
    y, x = grid(shape)
    centre = np.array(shape) / 2 + rng.uniform(-6, 6, 2)
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 > (min(shape) * rng.uniform(0.3, 0.55)) ** 2


def outside_polygon(rng, shape):
    """Outside of a field of view with 4 to 9 straight sides, turned at random."""
    y, x = grid(shape)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 10)))
    sides = rng.uniform(0.25, 0.45, len(angles)) * min(shape)
    distance = np.cos(angles)[:, None, None] * (x - shape[1] / 2)
    distance = distance + np.sin(angles)[:, None, None] * (y - shape[0] / 2)
    return (distance > sides[:, None, None]).any(axis=0)


def frame(rng, shape):
    found = np.ones(shape, dtype=bool)
    top, left, bottom, right = rng.integers(1, 9, 4)
    found[top:-bottom, left:-right] = False
    return found


def one_side(rng, shape):
    found = np.zeros(shape, dtype=bool)
    found[:, : rng.integers(1, 20)] = True
    return found


SHAPES = [outside_disc, outside_polygon, frame, one_side]


def image(rng, shape, noise):
    """A body that touches the border, in noisy air that is clipped at -1024 HU."""
    y, x = grid(shape)
    hu = np.full(shape, -1000.0)
    hu[((y - shape[0] / 2) / 30) ** 2 + ((x - 10) / 60) ** 2 < 1] = 40
    return np.rint(np.maximum(hu + rng.normal(0, noise, shape), -1024))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("region", SHAPES)
def test_solid_regions_at_the_border_are_padding(region, seed):
    rng = np.random.default_rng(seed)
    padding = region(rng, (rng.integers(64, 140), rng.integers(64, 140)))
    np.testing.assert_array_equal(find_declared(padding), padding)
    inside = np.pad(padding[8:-8, 8:-8], 8, constant_values=False)
    assert not find_declared(inside & ~find_declared(inside)).any()
    assert find_declared(np.ones_like(padding)).all()


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2, 0.35, 0.45, 0.55, 0.65, 0.8, 0.9, 0.95, 0.975])
def test_noise_that_is_clipped_at_the_value_is_no_padding(share):
    rng = np.random.default_rng(int(share * 1000))
    for _ in range(5):
        shape = (rng.integers(80, 200), rng.integers(80, 200))
        is_code = rng.random(shape) < share
        is_code[30:60, 20:50] = False  # a body
        assert find_declared(is_code).sum() <= 4


@pytest.mark.parametrize("seed", SEEDS)
def test_measured_pixels_with_the_value_of_padding_stay(seed):
    rng = np.random.default_rng(seed)
    padding = outside_disc(rng, (128, 128))
    is_code = padding | (rng.random(padding.shape) < rng.uniform(0, 0.2))
    found = find_declared(is_code)
    assert (found & padding).sum() == padding.sum()
    assert (found & ~padding).sum() < 0.05 * padding.sum() + 40  # those that touch it
    is_code = rng.random(padding.shape) < 0.05
    is_code[40:60, 50:70] = True  # a block that touches nothing
    assert find_declared(is_code).sum() <= 4


@pytest.mark.parametrize("seed", SEEDS)
def test_undeclared_padding_is_one_value_in_all_corners(seed):
    rng = np.random.default_rng(seed)
    padding = (outside_disc, frame)[seed % 2](rng, (96, 120))
    padding[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    code = rng.choice([-1200.0, -1500.0, -2000.0, -3024.0])
    hu = image(rng, padding.shape, rng.uniform(0, 60))
    hu[padding] = code
    np.testing.assert_array_equal(find_undeclared(hu), padding)
    hu[0, 0] = code + 1
    assert find_undeclared(hu) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_undeclared_padding_is_found_below_loss(seed):
    rng = np.random.default_rng(seed)
    padding = outside_disc(rng, (160, 160))
    padding[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    code = rng.choice([-2000.0, -3024.0])
    hu = np.where(padding, code, image(rng, padding.shape, 20))
    blurred = hu + rng.normal(0, 4, hu.shape)
    np.testing.assert_array_equal(find_undeclared(blurred, is_lossy=True), padding)
    assert find_undeclared(blurred) is None


@pytest.mark.parametrize("is_lossy", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_uncalibrated_scale_has_no_padding(seed, is_lossy):
    rng = np.random.default_rng(seed)
    air = rng.uniform(-1600, -1200)
    hu = np.rint(air + rng.normal(0, rng.uniform(15, 60), (96, 96)))
    floor = np.quantile(hu, rng.uniform(0, 0.9))
    hu[30:60, 30:60] += rng.uniform(100, 1500)
    assert find_undeclared(np.maximum(hu, floor), is_lossy=is_lossy) is None
    assert find_undeclared(hu, is_lossy=is_lossy) is None


def write(volume, folder, upscale=2):
    made = [image.repeat(upscale, axis=0).repeat(upscale, axis=1) for image in volume.hu]
    settings = {"description": "nearest", "software_version": "1", "weights_id": "0"}
    write_series(volume, made, folder, upscale=upscale, uid_entropy=["0"], **settings)
    return [pydicom.dcmread(file) for file in sorted(folder.glob("IM*.dcm"))]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.95])
def test_a_padding_value_that_is_the_floor_of_noise_is_withdrawn(ct_series, tmp_path, share):
    rng = np.random.default_rng(int(share * 100))
    hu = rng.normal(0, 30, (4, 80, 90))
    hu = np.maximum(hu - np.quantile(hu, share), 0) - 1024
    hu[:, 20:60, 20:60] = 40 + rng.normal(0, 8, (4, 40, 40))
    volume = read(ct_series(np.rint(hu), signed=False, PixelPaddingValue=0))
    measured = int((np.rint(hu) == -1024).sum())
    assert volume.padding is None
    (warning,) = (w for w in volume.source.warnings if "padding" in w)
    assert f"among measured values: {measured} pixel(s) in 4 slice(s)" in warning
    np.testing.assert_array_equal(volume.hu, np.rint(hu))
    for written in write(volume, tmp_path / "out"):
        assert "PixelPaddingValue" not in written
        assert written.pixel_array.min() == 0


def test_a_padding_value_that_is_also_measured_keeps_its_region(ct_series, tmp_path):
    rng = np.random.default_rng(0)
    hu = np.rint(rng.normal(0, 8, (4, 96, 96)))  # water, and padding is 0
    padding = outside_disc(rng, hu.shape[1:])
    hu[:2, padding] = 0
    measured = np.array(hu == 0)
    measured[:2, padding] = False
    volume = read(ct_series(hu, intercept=0, PixelPaddingValue=0))
    found = np.asarray(volume.padding)
    assert found[:2, padding].all()
    assert found[2:].sum() <= 8
    assert found[:2, ~padding].mean() < 0.02  # noise that touches the region
    (warning,) = (w for w in volume.source.warnings if "padding" in w)
    assert f"{(measured & ~found).sum()} pixel(s) in 4 slice(s)" in warning
    np.testing.assert_array_equal(volume.hu[2][~found[2]], hu[2][~found[2]])
    for k, written in enumerate(write(volume, tmp_path / "out")):
        mask = found[k].repeat(2, axis=0).repeat(2, axis=1)
        np.testing.assert_array_equal(written.pixel_array == written.PixelPaddingValue, mask)


def test_another_value_than_the_declared_one_takes_its_place(ct_series, phantom, tmp_path):
    hu = phantom.copy()
    hu[:, outside_disc(np.random.default_rng(1), hu.shape[1:])] = -3024
    hu[:, [0, 0, -1, -1], [0, -1, 0, -1]] = -3024
    folder = ct_series(hu, PixelPaddingValue=-30000, PixelPaddingRangeLimit=-29000)
    volume = read(folder)
    assert "does not declare" in volume.source.warnings[0]
    (written, *_) = write(volume, tmp_path / "out")
    assert written.PixelPaddingValue == -2000
    assert "PixelPaddingRangeLimit" not in written
    np.testing.assert_array_equal(
        read(tmp_path / "out").padding[0], volume.padding[0].repeat(2, 0).repeat(2, 1)
    )
