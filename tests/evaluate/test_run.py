"""Run and report: scores against direct computations, pairs, files, and the whole way."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medqdm import checkpoint, metrics
from medqdm.build import build_autoencoder, build_qdm
from medqdm.config import load_task, override
from medqdm.data import Pair, prepare
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate import (
    Evaluation,
    Method,
    RoiFolder,
    Truth,
    body_mask,
    evaluate,
    flat_patches,
    open_pairs,
    upsample_lanczos,
    write_report,
)
from medqdm.evaluate.run import describe_data
from medqdm.jobs import EnhancedSlice
from medqdm.models.perceptual import PerceptualDistance
from medqdm.picture import upsample_bicubic
from medqdm.volume import Volume

TASK = load_task("tiny", ["autoencoder.latent_scale=1"])
PX = TASK.slice_px
WINDOW = TASK.hu_window
Image = NDArray[np.float32]


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
        self.positions_mm: list[float | None] = []

    def enhance_slice(
        self, hu: Image, z: int = 0, *, position_mm: float | None = None
    ) -> EnhancedSlice:
        self.positions_mm.append(position_mm)
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
    assert 0 < value(found, "seconds") < 0.5


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
    assert value(found, "seconds", method) > 0


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
    pairs = make_pairs(slices=3)
    enhancer = KnownEnhancer(pairs, truth)
    evaluate(enhancer, pairs)
    assert enhancer.positions_mm == [0, 0, 1, 2]  # the first call is not timed


class Shifted:
    """A method that gives the truth, brighter by a constant."""

    def __init__(self, name: str, pairs: list[Pair], hu: float) -> None:
        self.name = name
        self._outputs = {pair["lr_hu"].tobytes(): pair["hr_hu"] + np.float32(hu) for pair in pairs}

    def enhance(self, volume: Volume) -> Iterator[Image]:
        return (self._outputs[np.asarray(hu).tobytes()] for hu in volume.hu)


def test_any_number_of_methods_stand_side_by_side(tmp_path: Path) -> None:
    pairs = make_pairs(2)
    others = [Shifted("off by 5", pairs, 5), Shifted("off by 9", pairs, -9)]
    assert all(isinstance(other, Method) for other in others)
    found = run(pairs, truth, others=others)
    assert found.methods == ["medqdm", "bicubic", "lanczos", "off by 5", "off by 9"]
    assert value(found, "bias_hu", "off by 5") == pytest.approx(5, abs=1e-3)
    assert value(found, "bias_hu", "off by 9", "body") == pytest.approx(-9, abs=1e-3)
    difference = found.difference("mae_hu", "off by 9", ours="off by 5")
    assert difference is not None
    assert difference.mean == pytest.approx(-4, abs=1e-3)
    write_report(found, tmp_path / "out")
    results, text = read_report(tmp_path / "out")
    assert results["regions"]["whole"]["medqdm_minus"]["off by 9"]["mae_hu"]["mean"] < 0
    assert "| medqdm - off by 5 |" in text
    assert "| patient1 | 1 | off by 9 |" in text


def test_methods_of_one_name_or_of_another_size_are_refused() -> None:
    pairs = make_pairs()
    with pytest.raises(MedQDMError, match="different names, got bicubic twice"):
        run(pairs, truth, others=[Shifted("bicubic", pairs, 5)])

    class Half(Shifted):
        def enhance(self, volume: Volume) -> Iterator[Image]:
            return (hu[::2] for hu in super().enhance(volume))

    with pytest.raises(MedQDMError, match=r"half: must give finite .* 64 x 64 .* got 32 x 64"):
        run(pairs, truth, others=[Half("half", pairs, 0)])
    with pytest.raises(MedQDMError, match="got 64 x 64 with NaN or infinity"):
        run(pairs, truth, others=[Shifted("broken", pairs, np.nan)])


# beside the truth's own


def stepped(px: int = 192, radius: float = 0.45) -> Image:
    """A body of noisy soft tissue with a lung, its edges 1.2 pixels wide, and noise of 10 HU."""
    y, x = np.mgrid[:px, :px] - (px - 1) / 2
    hu = np.where(np.hypot(y, x) < radius * px, 40.0, -1000.0)
    hu[(np.hypot(y, x + 0.22 * px) < 0.15 * px)] = -850
    blurred = ndimage.gaussian_filter(hu, 1.2)
    return (blurred + np.random.default_rng(0).normal(0, 10, hu.shape)).astype(np.float32)


def detailed(make: Callable[[Image], Image]) -> Evaluation:
    task = load_task("tiny", ["slice_px=192"])
    hr = stepped()
    pair = Pair(hr_hu=hr, lr_hu=metrics.reduce_by_area(hr, 4), patient="a", slice=0, spacing_mm=0.5)
    found = Evaluation({"task": {"upscale": 4, "name": "tiny"}}, WINDOW)
    known = Truth(pair, task)
    found.add(known, "medqdm", make(hr), {})
    found.add(known, "reference", hr, {})
    return found


def ratio(found: Evaluation, metric: str, region: str = "whole") -> float:
    measured = found.ratio(metric, "medqdm", region)
    assert measured is not None
    return measured.mean


def test_the_truth_is_1_by_every_measure() -> None:
    found = detailed(lambda hr: hr)
    for metric in ("edge_rise_mm", "seam_cell", "seam_window", "flat_squares"):
        assert ratio(found, metric) == 1
    for region in ("flat", "flat as shown", "body"):
        for metric in ("sd_hu", "power_low_hu2", "power_high_hu2"):
            assert ratio(found, metric, region) == 1


def test_a_blurred_output_has_soft_edges_and_little_fine_power() -> None:
    found = detailed(lambda hr: ndimage.gaussian_filter(hr, 0.8))
    own = found.mean("edge_rise_mm", "reference")
    assert own is not None
    assert own.mean == pytest.approx(2.563 * 1.2 * 0.5, rel=0.05)
    assert ratio(found, "edge_rise_mm") == pytest.approx((1.2**2 + 0.8**2) ** 0.5 / 1.2, rel=0.05)
    # white noise through a Gaussian: exp(-4 pi^2 sigma^2 f^2) of its power at f
    f = np.fft.fftfreq(32)
    kept = np.exp(-4 * np.pi**2 * 0.8**2 * (f[:, None] ** 2 + f[None, :] ** 2))
    larger = np.maximum(np.abs(f)[:, None], np.abs(f)[None, :])
    assert ratio(found, "power_high_hu2", "flat") == pytest.approx(
        kept[larger >= 0.125].mean(), rel=0.15
    )
    low = kept[(larger < 0.125) & (larger > 0)].mean()
    assert ratio(found, "power_low_hu2", "flat") == pytest.approx(low, rel=0.15)


def test_another_sample_of_flat_tissue_has_the_truths_noise_as_shown() -> None:
    def sample(seed: int) -> Image:  # noise as strong as the limit of what counts as flat
        slow = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(192, 192)), 8)
        return (40 + 16 * slow / slow.std()).astype(np.float32)

    patches = {seed: flat_patches(sample(seed)) for seed in (1, 2)}
    task = load_task("tiny", ["slice_px=192"])
    found = Evaluation({"task": {"upscale": 4, "name": "tiny"}}, WINDOW)
    for k, (hr, sr) in enumerate(((1, 2), (2, 1))):  # each is the other's sample
        lr = metrics.reduce_by_area(sample(hr), 4)
        pair = Pair(hr_hu=sample(hr), lr_hu=lr, patient="a", slice=k, spacing_mm=0.5)
        truth = Truth(pair, task)
        found.add(truth, "medqdm", sample(sr), {})
        found.add(truth, "reference", pair["hr_hu"], {})
        counted = [s for s in found.scores if s.slice == k and "flat_squares" in s.values]
        assert [s.values["flat_squares"] for s in counted] == [len(patches[sr]), len(patches[hr])]
    assert all(patches.values())
    assert ratio(found, "sd_hu", "flat") > 1.3
    assert ratio(found, "sd_hu", "flat as shown") == pytest.approx(1)
    assert ratio(found, "flat_squares") == pytest.approx(1)


def test_an_image_without_flat_squares_has_none() -> None:
    found = detailed(lambda hr: hr + 400)
    assert ratio(found, "flat_squares") == 0
    assert found.ratio("sd_hu", "medqdm", "flat as shown") is None


def test_edges_in_another_place_are_as_sharp_as_shown() -> None:
    moved = detailed(lambda _: stepped(radius=0.4))
    assert ratio(moved, "edge_rise_mm") > 3
    assert ratio(moved, "shown_rise_mm") == pytest.approx(1, rel=0.03)
    soft = detailed(lambda hr: ndimage.gaussian_filter(hr, 0.8))
    assert ratio(soft, "shown_rise_mm") == pytest.approx(ratio(soft, "edge_rise_mm"), rel=0.05)


def test_a_grid_of_windows_shows_at_windows() -> None:
    def cut(hr: Image) -> Image:
        offset = np.random.default_rng(1).normal(0, 60, (3, 3)).repeat(64, 0).repeat(64, 1)
        return (hr + offset).astype(np.float32)

    found = detailed(cut)
    assert ratio(found, "seam_window") > 1.5
    assert ratio(found, "seam_window") > ratio(found, "seam_cell") > 1


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


def test_lanczos_weighs_three_pixels_to_each_side_by_its_formula() -> None:
    lr = np.random.default_rng(0).normal(0, 100, (1, 20)).astype(np.float32)
    centre = (40 + 0.5) / 4 - 0.5  # of output pixel 40, in input pixels
    distance = centre - np.arange(20)
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    expected = (lr[0] * weights).sum() / weights.sum()
    assert upsample_lanczos(lr, 4)[0, 40] == pytest.approx(expected, rel=1e-4)


# regions


def test_slices_without_a_body_count_for_the_whole_slice_alone() -> None:
    pairs = make_pairs(slices=2)
    pairs[1]["hr_hu"][:] = pairs[1]["lr_hu"][:] = -1000
    found = run(pairs, truth)
    assert [s.slice for s in found.scores if (s.method, s.region) == ("medqdm", "body")] == [0]
    assert found.slices == {"patient0": 2}


def test_scores_of_the_roi_are_those_of_its_pixels(
    volumes: Path, marked: NDArray[np.uint8], tmp_path: Path
) -> None:
    (tmp_path / "roi").mkdir()
    np.savez(tmp_path / "roi" / "a.npz", marked)
    rois = RoiFolder(tmp_path / "roi", volumes, PX)
    pairs = list(open_pairs(TASK, volumes)[0])
    found = run(
        pairs, lambda pair: pair["hr_hu"] + np.float32(9) * rois.mask("a", pair["slice"]), rois=rois
    )
    roi = [s for s in found.scores if (s.method, s.region) == ("medqdm", "roi")]
    assert [(s.slice, s.num_pixels) for s in roi] == [(1, 200)]
    assert roi[0].values["bias_hu"] == pytest.approx(9, abs=1e-4)
    assert value(found, "mae_hu") == pytest.approx(9 * 200 / PX**2 / 3, rel=1e-4)


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


def test_a_prepared_set_says_how_it_was_degraded(volumes: Path, tmp_path: Path) -> None:
    clean = override(TASK, ["test_degradation=clean"])
    prepare(clean, volumes, tmp_path / "set", seed=7)
    about = describe_data(TASK, tmp_path / "set", limit=2, seed=0)
    assert about["degradation"] == clean.test_degradation.model_dump(mode="json")
    assert about["degradation"] != TASK.test_degradation.model_dump(mode="json")
    assert (about["degradation_seed"], about["seed"], about["limit"]) == (7, 0, 2)
    about = describe_data(TASK, volumes, limit=None, seed=3)
    assert about["degradation"] == TASK.test_degradation.model_dump(mode="json")
    assert about["seed"] == 3


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


def read_report(folder: Path, has_failures: bool = True) -> tuple[dict[str, Any], str]:
    assert sorted(p.name for p in folder.iterdir()) == [
        "detail.png",
        *(["failures.png"] if has_failures else []),
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
    # 4 slices: three methods on the whole, the body, two tissues, their insides and as shown, the
    # reference on the first two
    assert len(results["rows"]) == 4 * (3 * 8 + 2)
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
    assert not drawn <= firsts  # the lot falls on later slices too


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
        autoencoder_state=build_autoencoder(TASK).state_dict(),
        qdm_state=build_qdm(TASK).state_dict(),
        record={},
        dtype="float32",
    )
    (tmp_path / "roi").mkdir()
    np.savez(tmp_path / "roi" / "a.npz", marked)
    enhancer = Enhancer(weights, device="cpu", precision="fp32")
    pairs, count = open_pairs(TASK, volumes)
    rois = RoiFolder(tmp_path / "roi", volumes, PX)
    found = evaluate(enhancer, pairs, rois=rois)
    write_report(found, tmp_path / "out")
    results, text = read_report(tmp_path / "out")

    assert count == 3
    assert results["settings"]["weights_sha256"] == enhancer.sha256
    assert {"whole", "body", "roi", "soft tissue"} <= set(results["regions"])
    assert value(found, "psnr_db") < value(found, "psnr_db", "bicubic")  # it learned nothing
    assert 0 < value(found, "share_refined") <= 1
    assert value(found, "seconds") > 0
    assert "one patient alone has none" in " ".join(text.split())
    again = evaluate(enhancer, open_pairs(TASK, volumes)[0])
    assert value(again, "psnr_db") == value(found, "psnr_db")
