"""Values that are no HU are told, with the likely cause; CT in any crop is not."""

import nibabel
import numpy as np
import pytest

from medqdm.errors import MedQDMError
from medqdm.io import read, take_inventory
from medqdm.io.plausibility import Tally

SEEDS = range(8)


def body(rng, *, crop=None):
    """``(3, 96, 96)`` HU: fat, muscle, lung and bone in air; or a crop that shows one of them."""
    y, x = np.mgrid[:96, :96]
    hu = np.full((3, 96, 96), -1000.0)
    a, b = rng.uniform(30, 44, 2)
    hu[:, ((y - 48) / a) ** 2 + ((x - 48) / b) ** 2 < 1] = -100
    hu[:, ((y - 48) / (a - 5)) ** 2 + ((x - 48) / (b - 5)) ** 2 < 1] = rng.uniform(30, 70)
    hu[:, ((y - 44) / 12) ** 2 + ((x - 36) / 9) ** 2 < 1] = -850
    bone = ((y - 60) / 7) ** 2 + ((x - 54) / 8) ** 2 < 1
    hu[:, bone] = rng.uniform(300, 1500, np.count_nonzero(bone))
    if crop == "lung":
        hu = rng.normal(-820, 90, hu.shape)
    elif crop == "soft":
        hu = np.where(rng.random(hu.shape) < 0.2, -90.0, 50.0)
    elif crop == "brain":
        hu = rng.normal(35, 4, hu.shape)
    elif crop == "bone":
        hu = rng.normal(rng.uniform(400, 1100), rng.uniform(200, 350), hu.shape)
    elif crop == "contrast":
        hu = np.where(rng.random(hu.shape) < 0.4, 400.0, 60.0)
    noise = rng.normal(0, rng.uniform(3, 60), hu.shape)
    return np.clip(np.rint(hu + noise), -1024, 3071).astype(np.float32)


def warning_of(hu):
    tally = Tally()
    for image in hu:
        tally.add(image.astype(np.float32))
    tally.check(where="volume")
    return "".join(tally.warnings())


@pytest.mark.parametrize("crop", [None, "lung", "soft", "brain", "bone", "contrast"])
@pytest.mark.parametrize("seed", SEEDS)
def test_ct_is_not_warned_of(seed, crop):
    assert warning_of(body(np.random.default_rng(seed), crop=crop)) == ""


@pytest.mark.parametrize("value", [-2000, -1024, 0, 1, 3000])
def test_a_constant_is_read(value):
    assert warning_of(np.full((3, 64, 64), value)) == ""


FAULTS = {
    "shifted by 1000 or 1024": lambda hu, rng: np.maximum(hu + rng.choice([1000, 1024]), 0),
    "shifted or uncalibrated": lambda hu, _rng: hu - 1024,
    "many lie above": lambda hu, _rng: hu + 32768,
    "signed words that were read as unsigned": lambda hu, rng: hu % (1 << rng.choice([12, 16])),
    "their slope is another one": lambda hu, rng: hu * rng.uniform(0.4, 0.6),
    "not calibrated": lambda hu, rng: (hu + 1024) * rng.uniform(1.3, 1.7) + rng.uniform(0, 200),
    "shifted or cut off": lambda hu, _rng: np.rint(np.clip((hu + 160) / 400 * 255, 0, 255)),
    "many lie below": lambda hu, rng: np.where(hu < -500, -1500, -1270) + rng.normal(0, 9),
}  # fmt: skip


@pytest.mark.parametrize("cause", FAULTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_likely_cause_is_named(seed, cause):
    rng = np.random.default_rng(seed)
    found = warning_of(FAULTS[cause](body(rng), rng))
    assert found.startswith("values are probably not HU: ")
    assert cause in found


@pytest.mark.parametrize("lowest", [0, -1])
@pytest.mark.parametrize("seed", SEEDS)
def test_normalised_values_are_refused(seed, lowest):
    hu = body(np.random.default_rng(seed))
    share = (hu - hu.min()) / np.ptp(hu)
    with pytest.raises(MedQDMError, match=r"must be Hounsfield units, got normalised.*any-values"):
        warning_of(share * (1 - lowest) + lowest)


@pytest.mark.parametrize("seed", SEEDS)
def test_label_maps_are_refused(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96]
    labels = np.zeros((3, 96, 96))
    for label in rng.choice(np.arange(1, 256), rng.integers(1, 30), replace=False):
        row, column = rng.integers(10, 86, 2)
        labels[:, np.hypot(y - row, x - column) < rng.uniform(6, 15)] = label
    with pytest.raises(MedQDMError, match="got a label map of"):
        warning_of(labels)


def test_padding_is_left_out():
    hu = body(np.random.default_rng(0))
    padding = np.zeros(hu.shape, dtype=bool)
    padding[:, :40] = True
    tally = Tally()
    for image, mask in zip(np.where(padding, 70_000, hu), padding, strict=True):
        tally.add(image, mask)
    assert tally.warnings() == ()


def test_a_file_and_a_series_are_judged_alike(ct_series, tmp_path):
    hu = body(np.random.default_rng(0))
    labels = (hu > -500).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(labels.T, np.diag([1, 1, 3, 1])), tmp_path / "mask.nii")
    for path in (tmp_path / "mask.nii", ct_series(labels, intercept=0)):
        with pytest.raises(MedQDMError, match="got a label map of 2 values; give the CT itself"):
            read(path)
        (warning,) = (w for w in read(path, any_values=True).source.warnings if "HU" in w)
        assert warning == "values are probably not HU: a label map of 2 values"
    shifted = ct_series(hu + 1024, folder="shifted", intercept=0)
    (warning,) = read(shifted).source.warnings
    assert "shifted by 1000 or 1024 (RescaleIntercept)" in warning
    (summary,) = take_inventory(shifted).series
    assert summary.warnings == (warning,)
    (summary,) = take_inventory(tmp_path / "series").series
    assert "got a label map of 2 values" in summary.problem


def test_one_odd_slice_decides_nothing(ct_series):
    hu = body(np.random.default_rng(0))
    hu[1] = hu[1] > -500  # the middle one, as a mask
    folder = ct_series(hu, intercept=0)
    assert read(folder).source.warnings == ()
    (summary,) = take_inventory(folder).series
    assert (summary.problem, summary.warnings) == (None, ())
