"""Texture: spectra of noise whose power is known."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from medqdm.errors import MedQDMError
from medqdm.evaluate import Spectrum, flat_patches, patches_in, spectrum

Image = NDArray[np.float32]
EVERYWHERE = patches_in(np.ones((512, 512), dtype=np.bool_))


def white(sd_hu: float = 20.0, seed: int = 0) -> Image:
    return np.random.default_rng(seed).normal(40, sd_hu, (512, 512)).astype(np.float32)


def test_white_noise_has_its_deviation_and_equal_power_everywhere() -> None:
    found = spectrum(white(), EVERYWHERE)
    assert found.num_patches == 31 * 31
    assert found.sd_hu == pytest.approx(20, rel=0.01)
    _, power = found.radial()
    assert power[1:] == pytest.approx(20**2 / 32**2, rel=0.1)
    # frequencies below 1/8 on both axes, 7 of 32 lines each; the mean under a Hann window takes
    # as much as (35 / 18)^2 of them
    share = (7**2 - (35 / 18) ** 2) / 32**2
    assert found.band_hu2(0, 0.125) == pytest.approx(20**2 * share, rel=0.03)
    assert found.band_hu2(0, 0.125) + found.band_hu2(0.125, 1) == pytest.approx(found.sd_hu**2)


@pytest.mark.parametrize("kernel", [[0.25, 0.5, 0.25], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.7, 0.0]])
def test_filtered_noise_has_the_power_of_its_kernel(kernel: list[float]) -> None:
    noise = white()
    filtered = ndimage.convolve(noise, np.outer(kernel, kernel), mode="wrap")
    ours, theirs = spectrum(filtered, EVERYWHERE), spectrum(noise, EVERYWHERE)
    frequency = np.fft.fftfreq(32)
    response = kernel[1] + 2 * kernel[0] * np.cos(2 * np.pi * frequency)
    expected = np.outer(response, response) ** 2
    larger = np.maximum(np.abs(frequency)[:, None], np.abs(frequency)[None, :])
    for low, high in ((0.0, 0.125), (0.125, 0.3)):
        band = (larger >= low) & (larger < high) & (larger > 0)
        ratio = ours.band_hu2(low, high) / theirs.band_hu2(low, high)
        assert ratio == pytest.approx(expected[band].mean(), rel=0.06)


def test_a_wave_stands_at_its_frequency() -> None:
    x = np.arange(512)
    wave = np.tile(10 * np.cos(2 * np.pi * 0.25 * x), (512, 1)).astype(np.float32)
    found = spectrum(wave, EVERYWHERE)
    assert found.sd_hu == pytest.approx(10 / 2**0.5, rel=0.01)
    assert found.band_hu2(0.2, 0.3) > 0.99 * found.sd_hu**2
    frequency, power = found.radial()
    assert frequency[power.argmax()] == 0.25


def test_spectra_of_slices_add_up() -> None:
    corners = EVERYWHERE[:10]
    one, other = spectrum(white(10), corners), spectrum(white(30, 1), EVERYWHERE[:30])
    both = one + other
    assert isinstance(both, Spectrum)
    assert both.num_patches == 40
    expected = (one.sd_hu**2 * 10 + other.sd_hu**2 * 30) / 40
    assert both.sd_hu**2 == pytest.approx(expected)


def test_flat_patches_leave_edges_air_bone_and_slopes_out_and_noise_in() -> None:
    hu = white(30)
    hu[:, :128] = -1000
    hu[:, 128:192] += 700
    hu[256:, 320:] += np.linspace(-150, 150, 192).astype(np.float32)  # from fat to vessels
    corners = flat_patches(hu)
    assert corners
    for y, x in corners:
        assert x >= 192
        assert y <= 240 or x <= 304  # not wholly on the slope
    assert len(flat_patches(white(30))) == 31 * 31


def test_patches_lie_in_the_mask() -> None:
    mask = np.zeros((100, 100), dtype=np.bool_)
    mask[16:80, 16:64] = True
    assert patches_in(mask) == [(16, 16), (16, 32), (32, 16), (32, 32), (48, 16), (48, 32)]
    assert patches_in(mask[:31]) == []


def test_no_patch_has_no_spectrum() -> None:
    with pytest.raises(MedQDMError, match="one patch or more, got none"):
        spectrum(white(), [])
