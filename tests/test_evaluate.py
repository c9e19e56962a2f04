"""Evaluate: scores against direct computations, statistics, regions, report."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (its usual name)
import torch
from numpy.typing import NDArray

from medqdm import checkpoint, metrics
from medqdm.config import load_task
from medqdm.data import Pair, prepare
from medqdm.enhance import EnhancedSlice, Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate import (
    Evaluation,
    RoiFolder,
    Score,
    body_mask,
    evaluate,
    interval,
    open_pairs,
    upsample_lanczos,
    write_report,
)
from medqdm.models.perceptual import PerceptualDistance
from medqdm.picture import upsample_bicubic
from medqdm.window import Window

TASK = load_task("tiny", ["autoencoder.latent_scale=1"])
PX = TASK.slice_px
WINDOW = TASK.hu_window
Image = NDArray[np.float32]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def body(seed: int, px: int = PX) -> Image:
    """A textured disc of about 40 HU in air, with a lung in it."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:px, :px] - (px - 1) / 2
    hu = np.full((px, px), -1000.0)
    disc = np.hypot(y, x) < 0.4 * px
    hu[disc] = 40 + random.normal(0, 60, disc.sum())
    hu[np.hypot(y, x - 0.15 * px) < 0.1 * px] = -850
    return hu.astype(np.float32)


def make_pairs(patients: int = 1, slices: int = 1) -> list[Pair]:
    pairs = []
    for p in range(patients):
        for k in range(slices):
            hr = body(10 * p + k)
            pairs.append(
                Pair(
                    hr_hu=hr,
                    lr_hu=metrics.reduce_by_area(hr, TASK.upscale),
                    patient=f"patient{p}",
                    slice=k,
                    spacing_mm=0.7,
                )
            )
    return pairs


class KnownEnhancer(Enhancer):
    """Enhances by a function of the pair, where the network is not the point."""

    task = TASK
    sha256, device, precision, seed = "ab" * 32, torch.device("cpu"), "fp32", 0

    def __init__(self, pairs: list[Pair], make: Callable[[Pair], Image]) -> None:
        self._outputs = {pair["lr_hu"].tobytes(): make(pair) for pair in pairs}

    def enhance_slice(self, hu: Image, z: int = 0) -> EnhancedSlice:
        refined = np.zeros((8, 8), dtype=np.bool_)
        refined[:2] = True
        return EnhancedSlice(z, self._outputs[hu.tobytes()], refined, seconds=0.5)


def run(pairs: list[Pair], make: Callable[[Pair], Image], **options: Any) -> Evaluation:
    return evaluate(KnownEnhancer(pairs, make), pairs, **options)


def truth(pair: Pair) -> Image:
    return pair["hr_hu"]


def value(found: Evaluation, metric: str, method: str = "medqdm", region: str = "whole") -> float:
    measured = found.mean(metric, method, region)
    assert measured is not None
    return measured.mean


# scores


def test_the_truth_is_perfect_everywhere() -> None:
    found = run(make_pairs(2), truth)
    for region in ("whole", "body"):
        assert value(found, "psnr_db", region=region) == math.inf
        assert value(found, "ssim", region=region) == pytest.approx(1)
        assert value(found, "mae_hu", region=region) == 0
        assert value(found, "bias_hu", region=region) == 0
    assert value(found, "lr_consistency_hu") == value(found, "lr_consistency_hu", "reference")
    assert value(found, "share_refined") == 0.25
    assert value(found, "seconds") == 0.5


@pytest.mark.parametrize(
    ("method", "upsample"), [("bicubic", upsample_bicubic), ("lanczos", upsample_lanczos)]
)
def test_baselines_equal_a_direct_computation(
    method: str, upsample: Callable[[Image, int], Image]
) -> None:
    [pair] = pairs = make_pairs()
    found = run(pairs, truth)
    up, hr = upsample(pair["lr_hu"], 4), pair["hr_hu"]
    mask = body_mask(hr, WINDOW)

    assert value(found, "psnr_db", method) == metrics.psnr_db(up, hr, WINDOW)
    assert value(found, "psnr_db", method, "body") == metrics.psnr_db(up, hr, WINDOW, mask)
    assert value(found, "ssim", method) == pytest.approx(metrics.ssim(up, hr, WINDOW))
    assert value(found, "ssim", method, "body") == pytest.approx(metrics.ssim(up, hr, WINDOW, mask))
    assert value(found, "mae_hu", method) == metrics.mae_hu(up, hr)
    assert value(found, "bias_hu", method, "body") == metrics.bias_hu(up, hr, mask)
    consistency = metrics.lr_consistency_hu(up, pair["lr_hu"])
    assert value(found, "lr_consistency_hu", method) == consistency
    assert found.mean("share_refined", method) is None


def test_a_shifted_image_is_worse_than_one_in_place() -> None:
    pairs = make_pairs()
    good = run(pairs, lambda pair: upsample_bicubic(pair["lr_hu"], 4))
    shifted = run(pairs, lambda pair: np.roll(upsample_bicubic(pair["lr_hu"], 4), 2, axis=1))
    assert value(shifted, "psnr_db") < value(good, "psnr_db") - 1
    assert value(shifted, "ssim") < value(good, "ssim")
    assert value(shifted, "mae_hu") > value(good, "mae_hu")
    assert value(shifted, "lr_consistency_hu") > value(good, "lr_consistency_hu")


def test_hu_errors_are_not_clipped_to_the_window_and_psnr_is() -> None:
    pairs = make_pairs()
    pairs[0]["hr_hu"][:8] = 1200

    def too_bright(pair: Pair) -> Image:
        return np.where(pair["hr_hu"] == 1200, 2200, pair["hr_hu"]).astype(np.float32)

    found = run(pairs, too_bright)
    assert value(found, "psnr_db") == math.inf
    assert value(found, "bias_hu") == 1000 * 8 / PX


def test_noise_of_a_slice_follows_its_number() -> None:
    seen = []
    pairs = make_pairs(slices=3)
    enhancer = KnownEnhancer(pairs, truth)
    plain = enhancer.enhance_slice
    enhancer.enhance_slice = lambda hu, z=0: seen.append(z) or plain(hu, z)
    evaluate(enhancer, pairs)
    assert seen == [0, 1, 2]


@pytest.fixture
def untrained_lpips() -> PerceptualDistance:
    """LPIPS with weights of no meaning, under the published names and shapes."""
    generator = torch.Generator().manual_seed(0)
    state, channels, index = {}, 3, 0
    for stage, widths in enumerate([(64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3]):
        index += stage > 0  # pooling
        for width in widths:
            weight = torch.randn(width, channels, 3, 3, generator=generator)
            state[f"features.{index}.weight"] = weight / (9 * channels) ** 0.5
            state[f"features.{index}.bias"] = torch.zeros(width)
            channels, index = width, index + 2
        state[f"lin{stage}.model.1.weight"] = torch.ones(1, channels, 1, 1)
    return PerceptualDistance(state)


def test_lpips_is_measured_on_the_window_when_given(untrained_lpips: PerceptualDistance) -> None:
    [pair] = pairs = make_pairs()
    found = run(pairs, lambda pair: pair["hr_hu"] + 100, lpips=untrained_lpips)
    sr, hr = (
        torch.from_numpy(WINDOW.normalize(hu))[None, None]
        for hu in (pair["hr_hu"] + 100, pair["hr_hu"])
    )
    assert value(found, "lpips") == pytest.approx(float(untrained_lpips(sr, hr)), rel=1e-5)
    assert value(found, "lpips") > 0
    assert found.mean("lpips", "medqdm", "body") is None
    assert run(pairs, truth).mean("lpips", "medqdm") is None


# Lanczos


def test_lanczos_keeps_a_flat_slice_and_a_ramp_at_their_places() -> None:
    assert upsample_lanczos(np.full((5, 7), 30, np.float32), 4) == pytest.approx(30, abs=1e-3)
    ramp = np.tile(np.arange(16, dtype=np.float32) * 100, (6, 1))
    expected = ((np.arange(64) + 0.5) / 4 - 0.5) * 100  # pixel centres, outer edges kept
    inside = slice(16, 48)
    assert upsample_lanczos(ramp, 4)[10, inside] == pytest.approx(expected[inside], abs=2)


@pytest.mark.parametrize("factor", [4, 8])
def test_lanczos_does_not_move_an_impulse(factor: int) -> None:
    lr = np.zeros((15, 13), dtype=np.float32)
    lr[6, 5] = 1000
    up = upsample_lanczos(lr, factor).astype(np.float64)
    y, x = np.mgrid[: up.shape[0], : up.shape[1]]
    assert (up * y).sum() / up.sum() == pytest.approx((6 + 0.5) * factor - 0.5, abs=1e-3)
    assert (up * x).sum() / up.sum() == pytest.approx((5 + 0.5) * factor - 0.5, abs=1e-3)
    assert up.min() < -10  # it does have Lanczos's negative lobes


# statistics


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


def test_bootstrap_of_five_patients_stays_within_their_values() -> None:
    found = interval([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found.kind == "bootstrap"
    assert found.low is not None
    assert found.high is not None
    assert 1 < found.low < 22 < found.high < 100


def scored(values: dict[str, dict[str, list[float]]]) -> Evaluation:
    """An evaluation of given values: method to patient to values of its slices."""
    found = Evaluation({}, WINDOW)
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
    assert value(found, "psnr_db") == 15
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


def test_two_perfect_scores_do_not_differ_and_infinity_has_no_interval() -> None:
    found = scored({"medqdm": {"a": [math.inf]}, "bicubic": {"a": [math.inf]}})
    difference = found.difference("psnr_db", "bicubic")
    assert difference is not None
    assert difference.mean == 0
    assert interval([math.inf, 30.0, 31.0]).kind == "none"


# regions


def test_the_body_has_its_lung_and_not_the_couch() -> None:
    hr = body(0)
    hr[60:62] = 100  # a couch, apart from the disc
    mask = body_mask(hr, WINDOW)
    y, x = np.mgrid[:PX, :PX] - (PX - 1) / 2
    assert mask[32, 41]  # in the lung
    assert not mask[60:].any()
    assert (mask == (np.hypot(y, x) < 0.4 * PX)).all()


def test_air_has_no_body() -> None:
    air = np.full((16, 16), -1000, dtype=np.float32)
    assert not body_mask(air, WINDOW).any()
    pairs = make_pairs(slices=2)
    pairs[1]["hr_hu"][:] = pairs[1]["lr_hu"][:] = -1000
    found = run(pairs, truth)
    assert [s.slice for s in found.scores if (s.method, s.region) == ("medqdm", "body")] == [0]
    assert found.slices == {"patient0": 2}


def test_a_window_above_the_threshold_still_shows_the_body() -> None:
    narrow = Window(center_hu=40.0, width_hu=400.0)
    assert body_mask(narrow.clip(body(0)), narrow).mean() == pytest.approx(0.5, abs=0.05)


def save_nifti(path: Path, voxels: NDArray[Any], *, ras_signs: tuple[int, int] = (-1, -1)) -> None:
    """``(z, y, x)`` with 0.7 mm pixels; signs of x and y in RAS, with the volume's place kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, height, width = voxels.shape
    affine = np.diag([ras_signs[0] * 0.7, ras_signs[1] * 0.7, 3.0, 1.0])
    stored = voxels.transpose(2, 1, 0)
    for axis, (sign, length) in enumerate(zip(ras_signs, (width, height), strict=True)):
        if sign > 0:
            stored = np.flip(stored, axis)
            affine[axis, 3] = -0.7 * (length - 1)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(stored).astype(np.int16), affine), path)


def save_nrrd(path: Path, voxels: NDArray[Any], *, origin_mm: float = 0.0) -> None:
    image = sitk.GetImageFromArray(voxels.astype(np.uint8))
    image.SetSpacing((0.7, 0.7, 3.0))
    image.SetOrigin((origin_mm, 0.0, 0.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def save_npz(path: Path, voxels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, mask=voxels)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """One patient of three 70 x 78 slices, which are cropped to 64 x 64."""
    hu = np.full((3, 70, 78), -1000)
    hu[:, 5:65, 10:70] = 40 + np.random.default_rng(0).normal(0, 50, (3, 60, 60))
    save_nifti(tmp_path / "data" / "a.nii.gz", hu)
    return tmp_path / "data"


@pytest.fixture
def marked() -> NDArray[np.uint8]:
    """A mask of the volumes' shape, alike under no flip; rows 20 to 29, columns 30 to 49."""
    mask = np.zeros((3, 70, 78), dtype=np.uint8)
    mask[1, 20:30, 30:50] = 2
    return mask


SAVE: dict[str, Callable[[Path, NDArray[Any]], None]] = {
    "a.nii.gz": save_nifti,
    "a.nrrd": save_nrrd,
    "a.npz": save_npz,
}


@pytest.mark.parametrize("name", SAVE)
def test_masks_are_cropped_as_the_slices(
    name: str, volumes: Path, marked: NDArray[np.uint8], tmp_path: Path
) -> None:
    SAVE[name](tmp_path / "roi" / name, marked)
    rois = RoiFolder(tmp_path / "roi", volumes, PX)
    expected = np.zeros((PX, PX), dtype=np.bool_)
    expected[17:27, 23:43] = True  # (70 - 64) / 2 rows and (78 - 64) / 2 columns went
    assert (rois.mask("a", 1) == expected).all()
    assert not rois.mask("a", 0).any()


@pytest.mark.parametrize("ras_signs", [(1, -1), (-1, 1), (1, 1)])
def test_masks_with_axes_the_other_way_round_land_on_the_same_voxels(
    ras_signs: tuple[int, int], volumes: Path, marked: NDArray[np.uint8], tmp_path: Path
) -> None:
    save_nifti(tmp_path / "roi" / "a.nii.gz", marked, ras_signs=ras_signs)
    mask = RoiFolder(tmp_path / "roi", volumes, PX).mask("a", 1)
    assert mask[17:27, 23:43].all()
    assert mask.sum() == 200


def test_a_nifti_mask_lands_on_a_dicom_series(
    ct_series: Callable[..., Path], phantom: Image, tmp_path: Path
) -> None:
    spacing, origin = (2.5, 0.8, 0.6), (-11.0, -17.0, 30.0)
    ct_series(folder="data/patient", spacing_mm=spacing, origin_mm=origin)
    mask = np.zeros(phantom.shape, dtype=np.uint8)
    mask[2, 13, 27] = 1  # the marked voxel
    affine = np.diag([-0.6, 0.8, 2.5, 1.0])  # y runs forward, as dcm2niix writes it
    affine[:3, 3] = -origin[0], -(origin[1] + 47 * 0.8), origin[2]
    (tmp_path / "roi").mkdir()
    stored = np.ascontiguousarray(mask.transpose(2, 1, 0)[:, ::-1])
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "roi" / "patient.nii.gz")

    rois = RoiFolder(tmp_path / "roi", tmp_path / "data", PX)
    pairs = list(open_pairs(TASK, tmp_path / "data")[0])
    found = rois.mask("patient", 2)
    assert found.sum() == 1
    assert pairs[2]["hr_hu"][found] == WINDOW.high_hu  # 1500 HU, clipped
    assert not rois.mask("patient", 1).any()


def test_masks_with_equal_spacings_have_their_slices_on_the_last_axis(tmp_path: Path) -> None:
    mask = np.zeros((5, PX, PX), dtype=np.uint8)
    mask[3, 10:20, 30:50] = 1
    for name in ("data", "roi"):
        (tmp_path / name).mkdir()
        image = nibabel.Nifti1Image(mask.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]))
        nibabel.save(image, tmp_path / name / "a.nii.gz")
    found = RoiFolder(tmp_path / "roi", tmp_path / "data", PX).mask("a", 3)
    assert (found == mask[3]).all()


def test_a_damaged_volume_is_refused_by_its_reader(
    ct_series: Callable[..., Path], tmp_path: Path
) -> None:
    series = ct_series(folder="data/patient")
    for file in series.iterdir():
        file.write_bytes(file.read_bytes()[:-500])
    save_npz(tmp_path / "roi" / "patient.npz", np.ones((4, 48, 40)))
    with pytest.raises(MedQDMError):
        RoiFolder(tmp_path / "roi", tmp_path / "data", PX)


def test_masks_of_large_volumes_are_reduced_with_them(tmp_path: Path) -> None:
    save_nifti(tmp_path / "data" / "a.nii.gz", np.zeros((2, 128, 128)))
    mask = np.zeros((2, 128, 128), dtype=np.bool_)
    mask[0, 40:60, 20:31] = True  # ends in the middle of an HR pixel: half counts
    save_npz(tmp_path / "roi" / "a.npz", mask)
    reduced = RoiFolder(tmp_path / "roi", tmp_path / "data", PX).mask("a", 0)
    assert reduced[20:30, 10:16].all()
    assert reduced.sum() == 60


def test_scores_of_the_roi_are_those_of_its_pixels(
    volumes: Path, marked: NDArray[np.uint8], tmp_path: Path
) -> None:
    save_npz(tmp_path / "roi" / "a.npz", marked)
    rois = RoiFolder(tmp_path / "roi", volumes, PX)
    pairs = list(open_pairs(TASK, volumes)[0])
    found = run(
        pairs, lambda pair: pair["hr_hu"] + np.float32(9) * rois.mask("a", pair["slice"]), rois=rois
    )
    roi = [s for s in found.scores if (s.method, s.region) == ("medqdm", "roi")]
    assert [(s.slice, s.num_pixels) for s in roi] == [(1, 200)]
    assert roi[0].values["bias_hu"] == pytest.approx(9, abs=1e-4)
    assert value(found, "mae_hu") == pytest.approx(9 * 200 / PX**2 / 3, rel=1e-4)


def test_masks_that_do_not_fit_are_refused(
    volumes: Path, marked: NDArray[np.uint8], tmp_path: Path
) -> None:
    roi = tmp_path / "roi"
    with pytest.raises(MedQDMError, match="must be a folder with one mask file"):
        RoiFolder(roi, volumes, PX)
    roi.mkdir()
    with pytest.raises(MedQDMError, match="one mask for a, got none; name it a with"):
        RoiFolder(roi, volumes, PX)
    save_npz(roi / "a.npz", marked[:2])
    with pytest.raises(MedQDMError, match=r"shape \(3, 70, 78\), got \(2, 70, 78\)"):
        RoiFolder(roi, volumes, PX)
    save_nrrd(roi / "a.nrrd", marked, origin_mm=1.4)
    with pytest.raises(MedQDMError, match="one mask for a, got 2"):
        RoiFolder(roi, volumes, PX)
    (roi / "a.npz").unlink()
    with pytest.raises(MedQDMError, match=r"grid of the volume, got corners 1\.40 mm apart"):
        RoiFolder(roi, volumes, PX)
    save_nrrd(roi / "a.nrrd", marked[:, 1:])
    with pytest.raises(MedQDMError, match=r"shape \(3, 70, 78\), got \(3, 69, 78\)"):
        RoiFolder(roi, volumes, PX)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (b"no archive", "must be a NumPy archive"),
        ({"a": np.zeros((1, 2)), "b": np.zeros((1, 2))}, "one .z, y, x. array of numbers"),
        ({"a": np.zeros((3, 70, 78), dtype="U1")}, "one .z, y, x. array of numbers"),
    ],
)
def test_archives_without_a_mask_are_refused(
    arrays: Any, message: str, volumes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "roi" / "a.npz"
    path.parent.mkdir()
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    else:
        np.savez(path, **arrays)
    with pytest.raises(MedQDMError, match=message):
        RoiFolder(path.parent, volumes, PX)


def test_masks_need_the_volumes_themselves(
    volumes: Path, marked: NDArray[np.uint8], tmp_path: Path
) -> None:
    save_npz(tmp_path / "roi" / "a.npz", marked)
    prepare(TASK, volumes, tmp_path / "set")
    with pytest.raises(MedQDMError, match="must be a folder of volumes when masks are given"):
        RoiFolder(tmp_path / "roi", tmp_path / "set", PX)
    with pytest.raises(MedQDMError, match="stranger: slice 1 must have a mask"):
        RoiFolder(tmp_path / "roi", volumes, PX).mask("stranger", 0)
    (volumes / "b").mkdir()
    for name in ("one.nii.gz", "two.nii.gz"):
        save_nifti(volumes / "b" / name, marked)
    save_npz(tmp_path / "roi" / "b.npz", marked)
    with pytest.raises(MedQDMError, match="b: must have one volume when masks are given, got 2"):
        RoiFolder(tmp_path / "roi", volumes, PX)


# pairs


def test_volumes_and_the_set_made_of_them_give_the_same_pairs(
    volumes: Path, tmp_path: Path
) -> None:
    prepare(TASK, volumes, tmp_path / "set")
    fresh, num_fresh = open_pairs(TASK, volumes)
    kept, num_kept = open_pairs(TASK, tmp_path / "set")
    assert num_fresh == num_kept == 3
    for a, b in zip(fresh, kept, strict=True):
        assert (a["lr_hu"] == b["lr_hu"]).all()
        assert a["slice"] == b["slice"]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_limit_is_kept_and_counted(limit: int, volumes: Path, tmp_path: Path) -> None:
    prepare(TASK, volumes, tmp_path / "set")
    for data in (volumes, tmp_path / "set"):
        pairs, count = open_pairs(TASK, data, limit=limit)
        assert len(list(pairs)) == count == min(limit, 3)


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(MedQDMError, match="one pair of slices or more, got none"):
        run([], truth)


def test_pairs_of_another_factor_are_refused() -> None:
    pairs = make_pairs()
    pairs[0]["hr_hu"] = np.zeros((128, 128), dtype=np.float32)
    with pytest.raises(MedQDMError, match="64 x 64 pixels for upscale 4, got 128 x 128"):
        run(pairs, truth)


# report


def read_report(folder: Path) -> tuple[dict[str, Any], str]:
    assert sorted(p.name for p in folder.iterdir()) == [
        "pictures.png",
        "results.json",
        "results.md",
    ]

    def refuse(text: str) -> None:
        raise AssertionError(text)

    found = json.loads((folder / "results.json").read_text("utf-8"), parse_constant=refuse)
    return found, (folder / "results.md").read_text("utf-8")


def test_the_report_holds_every_row_and_no_infinity(tmp_path: Path) -> None:
    found = run(make_pairs(2, slices=2), truth)
    write_report(found, tmp_path / "out", about={"degradation": "area"})
    results, text = read_report(tmp_path / "out")

    assert results["settings"]["weights_sha256"] == "ab" * 32
    assert results["settings"]["libraries"]["torch"]
    assert results["data"] == {
        "degradation": "area",
        "slices": {"patient0": 2, "patient1": 2},
    }
    # 4 slices: three methods on two regions, and the reference
    assert len(results["rows"]) == 4 * (3 * 2 + 1)
    assert results["rows"][0]["values"]["psnr_db"] == "inf"
    whole = results["regions"]["whole"]
    assert whole["mean"]["medqdm"]["psnr_db"]["mean"] == "inf"
    assert whole["mean"]["bicubic"]["mae_hu"]["kind"] == "t"
    assert whole["medqdm_minus"]["bicubic"]["mae_hu"]["mean"] < 0
    assert set(whole["patients"]["lanczos"]["ssim"]) == {"patient0", "patient1"}
    assert "share_refined" not in whole["mean"]["bicubic"]

    assert "| medqdm - bicubic |" in text
    assert "| patient1 | 2 | lanczos |" in text
    assert "- degradation: area" in text
    assert "## Body mask" in text
    assert "ROI" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    number = f"{value(found, 'mae_hu', 'bicubic', 'body'):.2f} ["
    assert any(number in line for line in tables)


def test_the_report_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    found = run(make_pairs(), truth)
    out = tmp_path / "out"
    with pytest.raises(TypeError):
        write_report(found, out, about={"not JSON": object()})
    assert list(tmp_path.iterdir()) == []
    write_report(found, out)
    with pytest.raises(MedQDMError, match="must be empty"):
        write_report(found, out)
    write_report(found, out, overwrite=True)
    read_report(out)


def test_pictures_show_one_slice_of_each_of_the_first_patients(tmp_path: Path) -> None:
    pairs = make_pairs(4, slices=5)
    found = run(pairs, truth)
    assert list(found.examples) == ["patient0", "patient1", "patient2"]
    known = {pair["lr_hu"].tobytes(): pair["patient"] for pair in pairs}
    for patient, example in found.examples.items():
        assert known[example.lr_hu.tobytes()] == patient
        assert set(example.outputs) == {"medqdm", "bicubic", "lanczos"}
    drawn = {example.lr_hu.tobytes() for example in run(pairs, truth).examples.values()}
    assert drawn == {example.lr_hu.tobytes() for example in found.examples.values()}
    firsts = {pair["lr_hu"].tobytes() for pair in pairs if pair["slice"] == 0}
    assert drawn != firsts  # the lot falls on later slices too


def test_names_with_a_bar_do_not_break_the_tables(tmp_path: Path) -> None:
    pairs = make_pairs()
    pairs[0]["patient"] = "a|b"
    write_report(run(pairs, truth), tmp_path / "out")
    text = read_report(tmp_path / "out")[1]
    assert "| a\\|b | 1 | medqdm |" in text


# end to end


def test_an_untrained_model_is_evaluated_on_volumes_from_end_to_end(
    volumes: Path, marked: NDArray[np.uint8], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "tiny.safetensors"
    checkpoint.save(
        weights,
        task=TASK,
        autoencoder_state=checkpoint.build_autoencoder(TASK).state_dict(),
        qdm_state=checkpoint.build_qdm(TASK).state_dict(),
        record={},
        dtype="float32",
    )
    save_nifti(tmp_path / "roi" / "a.nii.gz", marked)
    enhancer = Enhancer(weights, device="cpu", precision="fp32")
    pairs, count = open_pairs(TASK, volumes)
    rois = RoiFolder(tmp_path / "roi", volumes, PX)
    found = evaluate(enhancer, pairs, rois=rois)
    write_report(found, tmp_path / "out")
    results, text = read_report(tmp_path / "out")

    assert count == 3
    assert results["settings"]["weights_sha256"] == enhancer.sha256
    assert set(results["regions"]) == {"whole", "body", "roi"}
    assert value(found, "psnr_db") < value(found, "psnr_db", "bicubic")  # it learned nothing
    assert 0 < value(found, "share_refined") <= 1
    assert value(found, "seconds") > 0
    assert "one patient alone has none" in " ".join(text.split())
    again = evaluate(enhancer, open_pairs(TASK, volumes)[0])
    assert value(again, "psnr_db") == value(found, "psnr_db")
