"""Bits above BitsStored: values where the pixels say so, left out where they do not."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from medqdm.io import read, write_series

SEEDS = range(8)
NEED_MORE, LEFT_OUT = "need more bits than BitsStored", "above BitsStored that is no value"


def slices(rng, noise=8.0):
    """``(4, 64, 72)`` HU: an ellipse in air, with lung and bone."""
    y, x = np.mgrid[:64, :72]
    hu = np.full((4, 64, 72), -1000.0)
    hu[:, ((y - 32) / 26) ** 2 + ((x - 36) / 30) ** 2 < 1] = 40
    hu[:, ((y - 30) / 9) ** 2 + ((x - 22) / 7) ** 2 < 1] = -800
    hu[:, ((y - 48) / 5) ** 2 + ((x - 40) / 6) ** 2 < 1] = 700
    return np.clip(np.rint(hu + rng.normal(0, noise, hu.shape)), -1024, 3071)


def add_metal(rng, hu, highest, smooth):
    y, x = np.mgrid[: hu.shape[1], : hu.shape[2]]
    row, column = rng.integers(20, 40, 2)
    radius = rng.uniform(4, 8)
    distance = np.hypot(y - row, x - column)
    metal = highest * (np.clip((radius - distance) / radius, 0, 1) if smooth else distance < radius)
    hu[1:] = np.rint(np.where(metal > 0, np.maximum(hu[1:], metal), hu[1:]))
    return hu


def words_of(change):
    def edit(dataset, k):
        words = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)
        dataset.PixelData = change(words.copy(), k).astype("<u2").tobytes()

    return edit


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_signed_values_that_need_more_bits_are_read_whole(ct_series, tmp_path, seed, smooth):
    rng = np.random.default_rng(seed)
    highest = rng.integers(2300, [3300, 20000][seed % 2])
    hu = add_metal(rng, slices(rng), highest, smooth)
    volume = read(ct_series(hu, bits=12, intercept=0))
    np.testing.assert_array_equal(volume.hu, hu)
    (warning,) = (w for w in volume.source.warnings if "BitsStored" in w)
    assert warning.startswith("3 slice(s)")
    assert NEED_MORE in warning
    settings = {"description": "as it is", "software_version": "1", "weights_id": "0"}
    out = tmp_path / "out"
    write_series(volume, list(volume.hu), out, upscale=1, uid_entropy=[], **settings)
    for file, image in zip(sorted(out.glob("IM*.dcm")), hu, strict=True):
        written = pydicom.dcmread(file)
        np.testing.assert_array_equal(written.pixel_array, image)
        assert written.HighBit == written.BitsStored - 1


@pytest.mark.parametrize("seed", SEEDS)
def test_unsigned_values_that_need_more_bits_are_read_whole(ct_series, seed):
    rng = np.random.default_rng(seed)
    hu = add_metal(rng, slices(rng), rng.choice([5000, 9000, 20000]), smooth=bool(seed % 2))
    volume = read(ct_series(hu, bits=12, signed=False))
    np.testing.assert_array_equal(volume.hu, hu)
    assert any(NEED_MORE in warning for warning in volume.source.warnings)


@pytest.mark.parametrize("noise", [0, 8, 60])
@pytest.mark.parametrize("bits", [12, 13])
def test_signs_that_stop_at_bits_stored_are_extended(ct_series, noise, bits):
    hu = slices(np.random.default_rng(noise), noise)
    hu = np.clip(hu, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    cut = words_of(lambda words, _k: words & ((1 << bits) - 1))
    volume = read(ct_series(hu, bits=bits, intercept=0, edit=cut))
    np.testing.assert_array_equal(volume.hu, hu)
    assert volume.source.warnings == ()


@pytest.mark.parametrize("is_declared", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_overlays_above_bits_stored_are_left_out(ct_series, seed, signed, is_declared):
    rng = np.random.default_rng(seed)
    hu = slices(rng)
    overlay = np.zeros(hu.shape[1:], dtype=bool)
    for _ in range(6):  # lines, as text is drawn
        row, column = rng.integers(0, 50, 2)
        overlay[row, column : column + 12] = overlay[row : row + 12, column] = True
    bit = int(rng.integers(12, 16))

    def edit(dataset, k):
        words_of(lambda words, _k: words & 0x0FFF | overlay.astype(int) << bit)(dataset, k)
        if is_declared:
            dataset.add_new(0x60000100, "US", 16)
            dataset.add_new(0x60000102, "US", bit)

    intercept = 0 if signed else -1024
    volume = read(ct_series(hu, bits=12, signed=signed, intercept=intercept, edit=edit))
    np.testing.assert_array_equal(volume.hu, hu)
    assert any(LEFT_OUT in w for w in volume.source.warnings) != is_declared


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_junk_above_bits_stored_is_left_out(ct_series, seed, signed):
    rng = np.random.default_rng(seed)
    hu = slices(rng, noise=[0, 30][seed % 2])
    junk = words_of(lambda words, _k: words & 0x0FFF | rng.integers(0, 16, words.shape) << 12)
    intercept = 0 if signed else -1024
    volume = read(ct_series(hu, bits=12, signed=signed, intercept=intercept, edit=junk))
    np.testing.assert_array_equal(volume.hu, hu)
    assert any(LEFT_OUT in warning for warning in volume.source.warnings)


@pytest.mark.parametrize("high_bit", [0, 9, 12, 15])
@pytest.mark.parametrize("signed", [True, False])
def test_high_bit_is_ignored(ct_series, signed, high_bit):
    hu = slices(np.random.default_rng(high_bit))
    tags = {"HighBit": high_bit, "SeriesInstanceUID": generate_uid()}
    volume = read(ct_series(hu, bits=12, signed=signed, intercept=0 if signed else -1024, **tags))
    np.testing.assert_array_equal(volume.hu, hu)
    (warning,) = volume.source.warnings
    assert warning.startswith("4 slice(s) with a HighBit other than")


def test_words_labelled_unsigned_are_read_so_and_told(ct_series):
    hu = slices(np.random.default_rng(0))
    volume = read(ct_series(hu, intercept=0, signed=False))
    np.testing.assert_array_equal(volume.hu, np.where(hu < 0, hu + 65536, hu))
    assert any("signed words that were read as unsigned" in w for w in volume.source.warnings)
