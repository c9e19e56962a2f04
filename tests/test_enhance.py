import json
import math
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from medqdm import checkpoint, io, metrics
from medqdm.build import build_autoencoder, build_qdm, build_spread
from medqdm.config import load_task, override
from medqdm.degrade import degrade, draw
from medqdm.diffusion.noise import SliceNoise
from medqdm.engine import Drawn
from medqdm.enhance import enhance_series, enhance_volume
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.io.slice_archive import SliceArchive
from medqdm.jobs import TEXTURE_DRAW, EnhancedSlice
from medqdm.loading import bundled_weights
from medqdm.opened import Opened
from medqdm.picture import upsample_bicubic
from medqdm.record import Summary, describe
from medqdm.volume import Volume

PLAIN = "diffusion.conserve_hu=false"  # what the networks give, and nothing else
DEMO = Path(__file__).parent / "data" / "demo-series"


@pytest.fixture
def enhancer(weights: Path) -> Enhancer:
    return Enhancer(weights, device="cpu", precision="fp32")


@pytest.fixture
def bicubic(enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch) -> Enhancer:
    """An enhancer whose network is the identity: what remains is the pipeline's own doing."""

    engine = enhancer.engine
    monkeypatch.setattr(
        engine, "show", lambda _latents, lr, **_options: (engine.upsample(lr), None)
    )
    return enhancer


@pytest.mark.parametrize("size", [(64, 64), (33, 17), (131, 51), (7, 5), (16, 16)])
def test_any_size_is_padded_never_resampled(bicubic: Enhancer, size: tuple[int, int]) -> None:
    rows, columns = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    hu = (2.0 * rows - 1.5 * columns).astype(np.float32)
    done = bicubic.enhance_slice(hu)
    assert done.hu.shape == (4 * size[0], 4 * size[1])
    assert done.refined.shape == (-(-size[0] // 2), -(-size[1] // 2))
    rows, columns = np.meshgrid(*((np.arange(4 * n) - 1.5) / 4 for n in size), indexing="ij")
    inner = (slice(12, 4 * size[0] - 12), slice(12, 4 * size[1] - 12))
    expected = 2.0 * rows - 1.5 * columns
    # the kernel (a = -0.75) bends a ramp by up to 0.15; a shift by half a pixel would be 0.25
    np.testing.assert_allclose(done.hu[inner], expected[inner], atol=0.16)


def test_values_outside_the_window_pass_by_the_network(bicubic: Enhancer) -> None:
    hu = np.full((32, 32), -1024, dtype=np.float32)
    hu[10:14, 20:24] = 3000
    out = bicubic.enhance_slice(hu).hu
    assert out[44:52, 84:92].min() > 2900
    assert out[:20, :40] == pytest.approx(-1024, abs=0.01)
    assert out.min() > -1300  # no dark ring around metal but the bicubic's own inside the window


def test_a_marked_voxel_stays_at_its_place_in_mm(bicubic: Enhancer, ct_series, tmp_path) -> None:
    hu = np.full((3, 24, 40), -900, dtype=np.float32)
    hu[1, 6, 29] = 900
    source = io.read(ct_series(hu, orientation=(0, 1, 0, -1, 0, 0)))
    enhance_volume(bicubic, source, tmp_path / "out")
    found = io.read(tmp_path / "out")
    slice_ = found.hu[1] + 900
    slice_[slice_ < 100] = 0
    y, x = (np.average(i, weights=slice_) for i in np.indices(slice_.shape))
    np.testing.assert_allclose(found.position_mm(1, y, x), source.position_mm(1, 6, 29), atol=0.01)
    np.testing.assert_allclose(found.corners_mm(), source.corners_mm(), atol=1e-3)


def test_slices_do_not_depend_on_what_came_before(enhancer: Enhancer) -> None:
    random = np.random.default_rng(0)
    volume = Volume.from_spacing(random.normal(0, 300, (3, 16, 16)), (2, 0.7, 0.7))
    in_order = [done.hu for done in enhancer.slices(volume)]
    alone = enhancer.enhance_slice(volume.hu[2], 2, position_mm=4.0).hu
    np.testing.assert_array_equal(in_order[2], alone)


def test_overlapping_tiles_share_their_noise(enhancer: Enhancer, monkeypatch) -> None:
    seen = []
    real = enhancer.engine.draw

    def spy(lr: torch.Tensor, z_lr: torch.Tensor, noises, **options):
        seen.append(noises[0](0))
        return real(lr, z_lr, noises, **options)

    monkeypatch.setattr(enhancer.engine, "draw", spy)
    enhancer.enhance_slice(np.zeros((16, 32), dtype=np.float32))
    first, second = seen[0][0], seen[1][0]  # tiles of 16 at 0, 14 and 16
    torch.testing.assert_close(first[:, :, 14:], second[:, :, :2], atol=0, rtol=0)


def test_series_to_series(weights: Path, ct_series, tmp_path) -> None:
    folder = ct_series(np.zeros((2, 16, 16)), PatientName="Secret^Name", PatientID="SECRET-1")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    out = tmp_path / "out"
    summary = enhance_series(folder, out, weights=weights, device="cpu")
    assert {p.name for p in out.iterdir()} == {
        "IM0001.dcm", "IM0002.dcm", "run.json", "report.html", "comparison.png", "refined.npz",
    }  # fmt: skip
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    run = json.loads((out / "run.json").read_text())
    assert run["summary"] == summary.numbers()
    assert run["summary"]["slices"] == 2
    assert "SECRET" not in (out / "run.json").read_text().upper()
    written = pydicom.dcmread(out / "IM0001.dcm")
    assert written.Rows == 64
    assert str(written.PatientName) == "Secret^Name"
    assert run["weights_sha256"] in written.DerivationDescription
    assert np.load(out / "refined.npz")["refined"].shape == (2, 8, 8)


def test_same_command_gives_the_same_series(weights: Path, ct_series, tmp_path) -> None:
    folder = ct_series(np.random.default_rng(0).normal(0, 200, (1, 16, 16)))
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        enhance_series(folder, tmp_path / name, weights=weights, device="cpu", seed=seed)
        made.append(pydicom.dcmread(tmp_path / name / "IM0001.dcm"))
    assert made[0].SeriesInstanceUID == made[1].SeriesInstanceUID
    assert made[0].PixelData == made[1].PixelData
    assert made[0].SeriesInstanceUID != made[2].SeriesInstanceUID
    assert made[0].SOPInstanceUID != made[2].SOPInstanceUID


@pytest.mark.parametrize(
    ("kind", "ending"), [("nifti", ".nii.gz"), ("nrrd", ".nrrd"), ("mha", ".mha")]
)
def test_other_formats(weights: Path, ct_series, tmp_path, kind: str, ending: str) -> None:
    source = ct_series(np.zeros((3, 16, 16)), spacing_mm=(2.5, 0.7, 0.7))
    enhance_series(source, tmp_path / "out", weights=weights, device="cpu", file_format=kind)
    found = io.read(tmp_path / "out" / f"enhanced{ending}")
    assert found.shape == (3, 64, 64)
    np.testing.assert_allclose(found.corners_mm(), io.read(source).corners_mm(), atol=1e-3)


def test_spacing_outside_the_training_range_warns_with_both_numbers(enhancer: Enhancer) -> None:
    coarse = Volume.from_spacing(np.zeros((1, 16, 16)), (2, 3.0, 3.0))
    (warning,) = enhancer.warnings(coarse)
    assert "3.000 x 3.000 mm" in warning
    assert "0.500 to 0.900 mm" in warning
    assert not enhancer.warnings(Volume.from_spacing(np.zeros((1, 16, 16)), (2, 0.7, 0.7)))


@pytest.fixture
def drawing(enhancer: Enhancer) -> Enhancer:
    """An enhancer whose network is random, so that noise and neighbours show in its output."""
    torch.manual_seed(0)
    for parameter in enhancer.engine.qdm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return enhancer


@pytest.fixture
def random_weights(drawing: Enhancer, tmp_path: Path) -> Path:
    """The same network as a file."""
    path, engine = tmp_path / "random.safetensors", drawing.engine
    states = [network.state_dict() for network in (engine.autoencoder, engine.qdm)]
    checkpoint.save(
        path, task=drawing.task, autoencoder_state=states[0], qdm_state=states[1], record={},
        dtype="float32",
    )  # fmt: skip
    return path


@pytest.fixture
def nine_tiles() -> Volume:
    """Three slices of three tiles each."""
    hu = np.random.default_rng(0).normal(0, 300, (3, 16, 24))
    return Volume.from_spacing(hu, (2, 0.7, 0.7))


def watch(enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch, most: int = 99) -> list[int]:
    """The sizes of the batches from now on; larger ones than ``most`` run out of memory."""
    sizes: list[int] = []
    real = enhancer.engine.draw

    def draw(lr: torch.Tensor, *rest: object, **options: object) -> Drawn:
        sizes.append(len(lr))
        if len(lr) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(lr, *rest, **options)

    monkeypatch.setattr(enhancer.engine, "draw", draw)
    return sizes


def test_slices_do_not_depend_on_the_batch_size(drawing, nine_tiles, monkeypatch) -> None:
    drawing.prepare(nine_tiles)
    expected = list(drawing.slices(nine_tiles))
    drawing.seed = 1
    assert np.abs(drawing.enhance_slice(nine_tiles.hu[1], 1).hu - expected[1].hu).max() > 1
    drawing.seed = 0
    sizes = watch(drawing, monkeypatch)
    for batch_size, batches in ((4, [4, 4, 1]), (6, [6, 3]), (9, [9])):
        drawing.batch_size = batch_size
        sizes.clear()
        found = list(drawing.slices(nine_tiles))
        assert sizes == batches
        assert [done.z for done in found] == [0, 1, 2]
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(one.hu, other.hu, rtol=1e-4, atol=1e-4 * 1000)
            np.testing.assert_array_equal(one.refined, other.refined)


def test_batches_are_halved_when_memory_runs_out(drawing, nine_tiles, monkeypatch) -> None:
    expected = list(drawing.slices(nine_tiles))
    sizes = watch(drawing, monkeypatch, most=2)
    drawing.batch_size = 5
    found = list(drawing.slices(nine_tiles))
    assert sizes == [5, 2, 2, 2, 2, 1]
    assert drawing.batch_size == 2
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one.hu, other.hu, rtol=1e-4, atol=1e-4 * 1000)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_one_tile_that_does_not_fit_is_told(enhancer, monkeypatch, tmp_path, error) -> None:
    def full(*_rest: object, **_options: object) -> Drawn:
        raise error

    monkeypatch.setattr(enhancer.engine, "draw", full)
    volume = Volume.from_spacing(np.zeros((1, 16, 16)), (2, 0.7, 0.7))
    with pytest.raises(MedQDMError, match="a tile of 16 x 16 pixels must fit into the memory of"):
        enhance_volume(enhancer, volume, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_network_are_bugs(enhancer, monkeypatch) -> None:
    def broken(*_rest: object, **_options: object) -> Drawn:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(enhancer.engine, "draw", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        enhancer.enhance_slice(np.zeros((16, 16), dtype=np.float32))


def shift_bf16(
    enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch, shift_hu: float, share: float = 1.0
) -> None:
    """A network that is the identity in fp32, and ``shift_hu`` beside it in bf16 at some pixels."""
    unit = enhancer.task.hu_window.hu_per_unit

    def show(_latents: object, lr: torch.Tensor, **_options: object) -> tuple[torch.Tensor, None]:
        sr = enhancer.engine.upsample(lr)
        if torch.is_autocast_enabled("cpu"):
            order = torch.randperm(sr.numel(), generator=torch.Generator().manual_seed(0))
            shifted = order.reshape(sr.shape) < round(share * sr.numel())
            sr = torch.where(shifted, sr + shift_hu / unit, sr)
        return sr, None

    monkeypatch.setattr(enhancer.engine, "show", show)


@pytest.mark.parametrize(
    ("asked", "shift_hu", "used", "warning"),
    [
        ("auto", 14.0, "bf16", None),
        ("auto", 16.0, "fp32", "bf16 keeps 99.9 % of the pixels within 16.00 HU of fp32 on a crop"),
        ("auto", math.nan, "fp32", "bf16 gives no finite result on a crop of this series"),
        ("auto", math.inf, "fp32", "bf16 gives no finite result on a crop of this series"),
        ("bf16", 16.0, "bf16", "(99.9 % within 15 HU are fine); it is used as asked"),
        ("fp32", 16.0, "fp32", None),
    ],
)
def test_bf16_is_checked_in_hu(
    weights, monkeypatch, tmp_path, asked, shift_hu, used, warning
) -> None:
    monkeypatch.setattr("medqdm.enhancer.is_bf16_fast", lambda _device: True)
    enhancer = Enhancer(weights, device="cpu", precision=asked, overrides=[PLAIN])
    shift_bf16(enhancer, monkeypatch, shift_hu)
    volume = Volume.from_spacing(np.zeros((2, 16, 16)), (2, 0.7, 0.7))
    summary = enhance_volume(enhancer, volume, tmp_path / "out")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    is_finite = asked != "fp32" and math.isfinite(shift_hu)
    assert run["precision"] == {
        "asked": asked, "used": used, "slices_redone_in_fp32": 0,
        "bf16_shift_q999_hu": pytest.approx(shift_hu, abs=1e-3) if is_finite else None,
    }  # fmt: skip
    assert run["batch_size"] == 1
    assert run["warnings"] == summary.warnings
    assert len(summary.warnings) == bool(warning)
    assert warning is None or warning in summary.warnings[0]
    written = io.read(tmp_path / "out").hu
    assert written[0].mean() == pytest.approx(round(shift_hu) if used == "bf16" else 0, abs=0.51)


@pytest.mark.parametrize("seed", range(4))
def test_a_rare_large_shift_of_bf16_is_found(weights, monkeypatch, seed) -> None:
    """A few pixels in a thousand that shift far hardly move the mean."""
    monkeypatch.setattr("medqdm.enhancer.is_bf16_fast", lambda _device: True)
    random = np.random.default_rng(seed)
    hu = random.normal(0, 100, (3, 48, 64)).astype(np.float32)
    volume = Volume.from_spacing(hu, (2, 0.7, 0.7))
    shift_hu = random.uniform(30, 200)
    for share, used in ((random.uniform(0.002, 0.008), "fp32"), (0.0005, "bf16")):
        enhancer = Enhancer(weights, device="cpu", precision="auto", overrides=[PLAIN])
        shift_bf16(enhancer, monkeypatch, shift_hu, share)
        assert share * shift_hu < 2
        enhancer.prepare(volume)
        assert enhancer.precision == used
        assert len(enhancer.warnings(volume)) == (used == "fp32")
        found = enhancer.bf16_shift_q999_hu
        assert found == pytest.approx(shift_hu if used == "fp32" else 0, abs=0.01)


@pytest.mark.parametrize(
    ("name", "patient"), [("sr4", "chest-covid-cap001"), ("sr8", "head-harvard02")]
)
def test_bundled_models_keep_to_the_limit_of_bf16(name: str, patient: str) -> None:
    enhancer = Enhancer(bundled_weights(name), device="cpu", precision="bf16")
    hr, factor = io.read(DEMO.parent / "hr-slices" / patient).hu[1], enhancer.task.upscale
    sides = (hr.shape[0] // factor, factor, hr.shape[1] // factor, factor)
    lr = hr.reshape(sides).mean(axis=(1, 3), dtype=np.float32)
    enhancer.prepare(Volume.from_spacing(lr[None], (2, 0.7 * factor, 0.7 * factor)))
    assert enhancer.bf16_shift_q999_hu is not None
    assert 0.5 < enhancer.bf16_shift_q999_hu < 12


def test_the_check_uses_the_middle_of_the_volume(enhancer, monkeypatch) -> None:
    seen = []
    real = enhancer.engine.draw

    def spy(lr: torch.Tensor, *rest: object, **options: object) -> Drawn:
        seen.append(lr)
        return real(lr, *rest, **options)

    monkeypatch.setattr(enhancer.engine, "draw", spy)
    hu = np.zeros((3, 48, 64), dtype=np.float32)
    hu[1, 16:32, 24:40] = 100
    volume = Volume.from_spacing(hu, (2, 0.7, 0.7))
    assert enhancer.estimate_seconds(volume) > 0
    assert [lr.shape for lr in seen] == [(1, 1, 16, 16)] * 2
    assert all((lr == lr[0, 0, 0, 0]).all() and lr[0, 0, 0, 0] > 0 for lr in seen)
    enhancer.prepare(volume)
    assert len(seen) == 2  # once a volume


def test_overflow_of_bf16_is_done_again_in_fp32(enhancer, monkeypatch, tmp_path) -> None:
    """Only in the slices where it happens, with one warning."""

    def show(_latents: object, lr: torch.Tensor, **_options: object) -> tuple[torch.Tensor, None]:
        sr = enhancer.engine.upsample(lr)
        if torch.is_autocast_enabled("cpu"):
            sr = torch.where(sr > 0.5, float("nan"), sr)
        return sr, None

    monkeypatch.setattr(enhancer.engine, "show", show)
    enhancer.asked_precision = "bf16"
    hu = np.zeros((5, 16, 24), dtype=np.float32)
    hu[1], hu[4, :, 20:] = 900, 900
    volume = Volume.from_spacing(hu, (2, 0.7, 0.7))
    summary = enhance_volume(enhancer, volume, tmp_path / "out")
    assert summary.warnings == ["2 slice(s) overflowed in bf16 and were done in fp32"]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["precision"]["slices_redone_in_fp32"] == 2
    assert run["summary"]["slices"] == 5
    np.testing.assert_allclose(io.read(tmp_path / "out").hu[1], 900, atol=0.51)


def test_a_slice_that_is_done_again_keeps_its_mean(enhancer, monkeypatch) -> None:
    asked = []

    def show(_latents: object, lr: torch.Tensor, *, mean: bool, **_options: object):
        asked.append((torch.is_autocast_enabled("cpu"), mean))
        sr = enhancer.engine.upsample(lr)
        broken = torch.is_autocast_enabled("cpu")
        return (torch.full_like(sr, float("nan")) if broken else sr), torch.zeros_like(sr)

    monkeypatch.setattr(enhancer.engine, "show", show)
    enhancer.asked_precision, enhancer.draws, enhancer.mean = "bf16", 2, True
    volume = Volume.from_spacing(np.zeros((1, 16, 24), dtype=np.float32), (2, 0.7, 0.7))
    enhancer.prepare(volume)
    asked.clear()
    list(enhancer.slices(volume))
    assert (True, True) in asked
    assert (False, True) in asked
    assert all(mean for _, mean in asked)


def test_nan_in_fp32_is_refused(enhancer: Enhancer, monkeypatch, tmp_path) -> None:
    real = enhancer.engine.decode
    monkeypatch.setattr(enhancer.engine, "decode", lambda *latents: real(*latents) * float("nan"))
    volume = Volume.from_spacing(np.zeros((1, 16, 16)), (2, 0.7, 0.7))
    for precision in ("fp32", "bf16"):
        enhancer.asked_precision = precision
        with pytest.raises(MedQDMError, match="slice 1: the network's output must be finite"):
            enhance_volume(enhancer, volume, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_be_are_refused(weights: Path) -> None:
    with pytest.raises(MedQDMError, match="--precision: must be auto, fp32 or bf16, got 'fp16'"):
        Enhancer(weights, device="cpu", precision="fp16")
    for option, name, values in (
        ("--batch-size: must be 1 to 1024", "batch_size", (0, 1025, 10**18)),
        ("--uncertainty: must be 1 to 256", "draws", (0, 10**18)),
        ("--seed: must be 0 to 9223372036854775807", "seed", (-1, 2**63)),
    ):
        for value in values:
            with pytest.raises(MedQDMError, match=f"{option}, got {value}; change it"):
                Enhancer(weights, device="cpu", **{name: value})
    Enhancer(weights, device="cpu", seed=2**63 - 1).enhance_slice(np.zeros((16, 16), np.float32))


def test_slices_are_archived_one_by_one(tmp_path) -> None:
    random = np.random.default_rng(0)
    for whole in (random.random((4, 5, 7)) < 0.5, random.normal(size=(3, 4, 6)).astype(np.float16)):
        kept = SliceArchive(tmp_path / "found.npz", "found", len(whole))
        for image in whole:
            kept.add(image[:, ::-1])
        kept.close()
        with np.load(tmp_path / "found.npz") as arrays:
            np.testing.assert_array_equal(arrays["found"], whole[:, :, ::-1])
            assert arrays["found"].dtype == whole.dtype


def textured(shape: tuple[int, int, int], spacing_mm=(2.0, 0.7, 0.7)) -> Volume:
    hu = np.random.default_rng(0).normal(0, 300, shape)
    return Volume.from_spacing(hu, spacing_mm)


def test_a_sampler_takes_all_steps_unless_told(weights: Path, ct_series, tmp_path) -> None:
    folder = ct_series(np.random.default_rng(0).normal(0, 200, (1, 16, 16)))
    seen = {}
    for name, options in {
        "task": {},
        "sampler": {"sampler": "gain"},
        "steps": {"steps": 1},
        "both": {"sampler": "groups", "steps": 1},
        "set": {"sampler": "gain", "settings": ["diffusion.sampling_steps=3"]},
    }.items():
        out = tmp_path / name
        enhance_series(folder, out, weights=weights, device="cpu", **options)
        diffusion = json.loads((out / "run.json").read_text())["task"]["diffusion"]
        seen[name] = diffusion["sampler"]["name"], diffusion["sampling_steps"]
        described = str(pydicom.dcmread(out / "IM0001.dcm").DerivationDescription)
        assert f"sampler {seen[name][0]}, steps {seen[name][1] or 15}" in described
    assert seen == {
        "task": ("uniform", 2),
        "sampler": ("gain", None),
        "steps": ("uniform", 1),
        "both": ("groups", 1),
        "set": ("gain", 3),
    }


def test_neighbouring_slices_share_noise_by_distance(weights: Path, monkeypatch) -> None:
    def correlations(spacing_mm: float, correlation_mm: float) -> float:
        setting = f"diffusion.sampler.correlation_mm={correlation_mm}"
        enhancer = Enhancer(weights, device="cpu", precision="fp32", overrides=[setting])
        real, draws = enhancer.engine.draw, []

        def spy(lr: torch.Tensor, z_lr: torch.Tensor, noises, **options):
            draws.append(noises[0](0).flatten())
            return real(lr, z_lr, noises, **options)

        monkeypatch.setattr(enhancer.engine, "draw", spy)
        list(enhancer.slices(textured((2, 16, 16), (spacing_mm, 0.7, 0.7))))
        first, second = draws[-2:]
        return float(torch.corrcoef(torch.stack([first, second]))[0, 1])

    assert correlations(2.0, 0.0) == pytest.approx(0, abs=0.1)
    assert correlations(2.0, 20.0) == pytest.approx(np.cos(np.pi / 20), abs=0.02)
    assert correlations(10.0, 20.0) == pytest.approx(np.cos(np.pi / 4), abs=0.1)


def test_neighbours_have_a_say_in_what_is_refined(weights: Path) -> None:
    hu = np.zeros((4, 16, 16), dtype=np.float32)
    hu[1, 4, 4] = 900
    volume = Volume.from_spacing(hu, (2.0, 0.7, 0.7))
    counts = {}
    for pick in ("none", "max", "median"):
        setting = f"diffusion.sampler.steady={pick}"
        enhancer = Enhancer(weights, device="cpu", precision="fp32", overrides=[setting])
        counts[pick] = [int(done.refined.sum()) for done in enhancer.slices(volume)]
    assert counts == {"none": [0, 1, 0, 0], "max": [1, 1, 1, 0], "median": [0, 0, 0, 0]}


def test_refined_cells_of_tiles_are_those_of_the_slice(weights: Path) -> None:
    settings = ["diffusion.sampler.steady=max"]
    enhancer = Enhancer(weights, device="cpu", precision="fp32", overrides=settings)
    volume = textured((3, 16, 40))  # three tiles a slice
    plain = Enhancer(weights, device="cpu", precision="fp32")
    own = np.stack([done.refined for done in plain.slices(volume)])
    found = np.stack([done.refined for done in enhancer.slices(volume)])
    assert not own.all()
    np.testing.assert_array_equal(found[1], own.any(axis=0))


LIGHT = "autoencoder.light={channels: 16, encoder_blocks: 2, decoder_blocks: 3}"


@pytest.fixture
def light(tmp_path: Path) -> Enhancer:
    """An enhancer of a random model with the light autoencoder; it draws three times."""
    task = load_task("tiny", [LIGHT, "autoencoder.latent_scale=1.0", PLAIN])
    torch.manual_seed(0)
    networks = build_autoencoder(task), build_qdm(task)
    for network in networks:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    states = [network.state_dict() for network in networks]
    path = tmp_path / "light.safetensors"
    checkpoint.save(
        path,
        task=task,
        autoencoder_state=states[0],
        qdm_state=states[1],
        record={},
        dtype="float32",
    )
    return Enhancer(path, device="cpu", precision="fp32", draws=3)


def test_tiles_leave_no_trace_where_their_latents_agree(light: Enhancer, monkeypatch) -> None:
    """With the light autoencoder only latents are fused; the rest is as of one piece."""
    engine, hu = light.engine, np.clip(textured((1, 40, 56)).hu[0], -999, 999)
    calls = []

    def draw(lr: torch.Tensor, z_lr: torch.Tensor, noises: list, **_options: object) -> Drawn:
        calls.append(lr.shape)
        refined = engine.quadtree(lr).refined
        return Drawn([z_lr + k for k in range(len(noises))], refined, None)

    monkeypatch.setattr(engine, "draw", draw)
    found = light.enhance_slice(hu)
    assert calls == [(1, 1, 16, 16)] * 20  # as many tiles as without
    lr = torch.from_numpy(light.task.hu_window.normalize(hu))[None, None]
    lr = torch.nn.functional.pad(lr, (0, 8, 0, 8), mode="replicate")
    z_lr = engine.encode(engine.upsample(lr))
    refined = engine.quadtree(lr).refined
    sr, deviation = engine.show(
        [z_lr + k for k in range(3)], lr, z_lr=z_lr, refined=refined, white=None
    )
    expected = light.task.hu_window.denormalize(sr[0, 0, :160, :224]).numpy()
    np.testing.assert_allclose(found.hu, expected, atol=0.05)
    np.testing.assert_allclose(found.deviation_hu, deviation[0, 0, :160, :224].numpy(), atol=0.05)


@pytest.mark.parametrize("fused", [True, False])
def test_texture_crosses_tiles_without_a_trace(
    light: Enhancer, drawing, monkeypatch, fused: bool
) -> None:
    """A draw of many tiles has one texture, the slice's own, wherever its tiles meet."""
    engine, hu = (
        (light if fused else drawing).engine,
        np.clip(textured((1, 40, 56)).hu[0], -900, 900),
    )
    engine.task = engine.task.with_diffusion(conserve_hu=False)
    engine.spread = build_spread(engine.task)
    one = Enhancer(Opened(engine, {}, ""), device="cpu", precision="fp32", seed=7, batch_size=3)

    def draw(lr: torch.Tensor, z_lr: torch.Tensor, noises: list, **_options: object) -> Drawn:
        return Drawn([z_lr], engine.quadtree(lr).refined, None)

    monkeypatch.setattr(engine, "draw", draw)
    monkeypatch.setattr(
        engine, "decode", lambda _z, lr: torch.zeros(len(lr), 1, *(4 * s for s in lr.shape[-2:]))
    )
    found = one.enhance_slice(hu, position_mm=4.0).hu
    engine.spread = None
    plain = one.enhance_slice(hu, position_mm=4.0).hu
    whole = SliceNoise(7, 4.0, (1, 4 * 48, 4 * 64), 0.0)  # slices are continued to whole windows
    white = whole.draw(TEXTURE_DRAW)[0, :160, :224]
    # far from the window's end the texture is the noise times the untrained deviation, 20 HU
    np.testing.assert_allclose(found - plain, 20 * white.numpy(), atol=4)
    assert np.corrcoef((found - plain).ravel(), white.numpy().ravel())[0, 1] > 0.999


@pytest.mark.parametrize("fused", [True, False])
def test_texture_depends_on_place_and_seed_alone(light: Enhancer, drawing, fused: bool) -> None:
    enhancer = light if fused else drawing
    enhancer.engine.spread = build_spread(enhancer.task)
    enhancer.draws = 1
    hu = textured((1, 16, 24)).hu[0]
    first, other_place, again = (
        enhancer.enhance_slice(hu, position_mm=place).hu for place in (4.0, 5.0, 4.0)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other_place)
    enhancer.seed = 3
    assert not np.array_equal(first, enhancer.enhance_slice(hu, position_mm=4.0).hu)


def test_a_deviation_without_spread_is_told_to_be_chance_alone(drawing) -> None:
    volume = textured((1, 16, 16))
    drawing.draws = 2
    (told,) = [w for w in drawing.warnings(volume) if "deviation" in w]
    assert "is what chance did, not how far the output may be off" in told
    drawing.engine.spread = build_spread(drawing.task)
    assert not [w for w in drawing.warnings(volume) if "deviation" in w]


def test_noise_is_told(random_weights: Path) -> None:
    guess = Enhancer(random_weights, device="cpu", overrides=GUESS)
    guess.engine.spread = build_spread(guess.task)
    assert "one step from the prior's mean, s 0.15" in describe(guess)
    steps = Enhancer(random_weights, device="cpu", overrides=["diffusion.sampling_steps=4"])
    assert "steps 4, gamma 1, s 0.15" in describe(steps)
    steps.engine.spread = build_spread(steps.task)
    assert "steps 4, gamma 1, noise as strong as the model's errors, s" in describe(steps)
    steps.mean, steps.draws = True, 4
    assert "steps 4, gamma 1, mean of 4 draws, s" in describe(steps)


GUESS = ("diffusion.sampling_steps=1", "diffusion.one_step=mean")


@pytest.mark.parametrize("size", [16, 40])
def test_draws_stand_beside_a_best_guess(weights: Path, size: int) -> None:
    """One step gives no two answers; draws take four steps, and their deviation is their own."""
    everywhere = "quadtree.threshold=0"  # elsewhere draws take the guess
    guess = ("diffusion.sampling_steps=1", "diffusion.one_step=mean", everywhere)
    hu = textured((1, 16, size)).hu[0]

    def enhance(settings: tuple[str, ...], **options: object) -> EnhancedSlice:
        enhancer = Enhancer(weights, device="cpu", precision="fp32", overrides=settings, **options)
        torch.manual_seed(0)
        for parameter in enhancer.engine.qdm.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return enhancer.enhance_slice(hu)

    plain, other_seed = enhance(guess), enhance(guess, seed=5)
    np.testing.assert_array_equal(plain.hu, other_seed.hu)
    three = enhance(guess, draws=3)
    np.testing.assert_array_equal(three.hu, plain.hu)
    four_steps = ("diffusion.sampling_steps=4", everywhere)
    drawn = enhance(four_steps, draws=3)
    assert drawn.deviation_hu.max() > 1
    np.testing.assert_allclose(three.deviation_hu, drawn.deviation_hu, atol=0.01)
    mean = enhance(guess, draws=3, mean=True)
    np.testing.assert_allclose(mean.hu, enhance(four_steps, draws=3, mean=True).hu, atol=0.01)
    assert np.abs(mean.hu - plain.hu).max() > 1


@pytest.mark.parametrize("size", [16, 40])
def test_fused_guesses_with_the_light_autoencoder(light: Enhancer, size: int) -> None:
    volume = textured((1, 16, size))
    task = override(light.task, ["quadtree.threshold=0"])  # elsewhere draws take the guess
    one = task.with_diffusion(sampling_steps=1, one_step="mean")
    four = task.with_diffusion(sampling_steps=4)
    found = []
    for task in (one, four):
        light.task = light.engine.task = task
        found.append(light.enhance_slice(volume.hu[0]))
    assert found[1].deviation_hu.max() > 1
    np.testing.assert_allclose(found[0].deviation_hu, found[1].deviation_hu, atol=0.01)
    assert np.abs(found[0].hu - found[1].hu).max() > 1


def test_fused_latents_do_not_depend_on_the_batch_size(light: Enhancer) -> None:
    volume = textured((3, 16, 40))
    expected = list(light.slices(volume))
    assert expected[0].deviation_hu.max() > 1
    light.batch_size = 4
    for one, other in zip(expected, light.slices(volume), strict=True):
        np.testing.assert_allclose(one.hu, other.hu, atol=0.1)
        np.testing.assert_array_equal(one.refined, other.refined)


def test_memory_that_runs_out_in_decoding_is_told(light: Enhancer, monkeypatch) -> None:
    def full(*_tensors: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(light.engine, "decode", full)
    with pytest.raises(MedQDMError, match="must fit into the memory of cpu, got out of memory"):
        light.enhance_slice(np.zeros((16, 40), dtype=np.float32))


def test_consistency_brings_the_output_nearer_to_the_input(weights: Path) -> None:
    volume = textured((1, 16, 40))
    errors = []
    for iterations in (0, 3):
        setting = f"diffusion.consistency={iterations}"
        enhancer = Enhancer(weights, device="cpu", precision="fp32", overrides=[setting])
        (done,) = enhancer.slices(volume)
        reduced = metrics.reduce_by_area(done.hu, 4)
        errors.append(float(np.abs(reduced - volume.hu[0]).mean()))
    assert errors[1] < 0.6 * errors[0]


def test_uncertainty_is_written_beside_the_series(weights: Path, ct_series, tmp_path) -> None:
    folder = ct_series(np.random.default_rng(0).normal(0, 200, (2, 16, 40)))
    for name, uncertainty in (("plain", None), ("draws", 3)):
        enhance_series(
            folder, tmp_path / name, weights=weights, device="cpu", uncertainty=uncertainty
        )
    assert not (tmp_path / "plain" / "uncertainty.npz").exists()
    first = [io.read(tmp_path / name) for name in ("plain", "draws")]
    np.testing.assert_array_equal(np.asarray(first[0].hu), np.asarray(first[1].hu))
    assert json.loads((tmp_path / "draws" / "run.json").read_text())["draws"] == 3
    with np.load(tmp_path / "draws" / "uncertainty.npz") as arrays:
        found = arrays["deviation_hu"].astype(np.float32)
    assert found.shape == (2, 64, 160)
    assert found.min() >= 0
    volume = io.read(folder)
    draws = [
        np.stack([d.hu for d in Enhancer(weights, device="cpu", seed=seed).slices(volume)])
        for seed in range(3)
    ]
    middle = (slice(None), slice(None), slice(0, 40))  # one tile alone: nothing is fused there
    expected = np.std(draws, axis=0, ddof=1)[middle]
    inside = expected > 0
    np.testing.assert_allclose(found[middle][inside], expected[inside], rtol=0.02, atol=0.5)
    enhance_series(folder, tmp_path / "mean", weights=weights, device="cpu", mean=3)
    mean = io.read(tmp_path / "mean")
    np.testing.assert_allclose(
        np.asarray(mean.hu)[middle], np.mean(draws, axis=0)[middle], atol=0.6
    )
    files = [pydicom.dcmread(tmp_path / name / "IM0001.dcm") for name in ("draws", "mean")]
    assert "mean of 3 draws" in files[1].DerivationDescription
    assert "mean of" not in files[0].DerivationDescription
    assert files[0].SeriesInstanceUID != files[1].SeriesInstanceUID
    for options, message in (
        ({"uncertainty": 1}, "--uncertainty: must be 2 to 256 draws, got 1"),
        ({"mean": 0}, "--mean: must be 2 to 256 draws, got 0"),
        ({"uncertainty": 10**18}, "--uncertainty: must be 2 to 256 draws, got 1000000000000000000"),
        ({"mean": 3, "uncertainty": 4}, "--mean: must be as many draws as --uncertainty, 4, got 3"),
    ):
        with pytest.raises(MedQDMError, match=message):
            enhance_series(folder, tmp_path / "c", weights=weights, device="cpu", **options)


def test_output_folder_must_be_free_and_apart(weights: Path, ct_series, tmp_path) -> None:
    folder = ct_series(np.zeros((1, 16, 16)))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("keep")
    for out, overwrite, message in (
        (taken, False, "must be empty, got files in it"),
        (folder, True, "must not lie in the input folder"),
        (folder / "inside", True, "must not lie in the input folder"),
        (tmp_path, True, "must not be a folder that holds the input"),
    ):
        with pytest.raises(MedQDMError, match=message):
            enhance_series(folder, out, weights=weights, overwrite=overwrite)
    with pytest.raises(MedQDMError, match=r"only an earlier output \(with run.json\)"):
        enhance_series(folder, taken, weights=weights, overwrite=True)
    assert (taken / "mine.txt").read_text() == "keep"
    out = tmp_path / "out"
    enhance_series(folder, out, weights=weights, device="cpu")
    first = (out / "IM0001.dcm").read_bytes()
    enhance_series(folder, out, weights=weights, device="cpu", seed=1, overwrite=True)
    assert (out / "IM0001.dcm").read_bytes() != first


def test_summary_by_hand(enhancer: Enhancer) -> None:
    summary = Summary()
    hu = np.full((8, 8), 13.0, dtype=np.float32)
    refined = np.array([[True, False]])
    summary.add(EnhancedSlice(0, hu, refined, 2.0), np.full((2, 2), 10.0, dtype=np.float32))
    summary.add(EnhancedSlice(1, hu, ~refined, 4.0), np.full((2, 2), 14.0, dtype=np.float32))
    assert summary.numbers() == {
        "slices": 2, "seconds_per_slice": 3.0, "share_refined": 0.5, "mean_shift_hu": 1.0,
        "lr_consistency_hu": pytest.approx(5**0.5, abs=1e-3), "clipped_voxels": 0,
        "flat_shift_hu": None, "flat_shift_place": "no flat area",
    }  # fmt: skip


def test_the_headline_is_the_largest_shift_of_a_flat_area_and_its_place() -> None:
    summary, refined = Summary(), np.zeros((16, 16), dtype=bool)
    lr = np.full((32, 32), 40.0, dtype=np.float32)
    hu = lr.repeat(2, axis=0).repeat(2, axis=1)
    summary.add(EnhancedSlice(0, hu + 1, refined, 1.0), lr)
    there = hu.copy()
    there[8:40, 16:48] -= 12  # input rows 4 to 19, columns 8 to 23
    there[:8] += 12  # the mean over the slice stays small
    summary.add(EnhancedSlice(1, there, refined, 1.0), lr)
    numbers = summary.numbers()
    assert abs(numbers["mean_shift_hu"]) < 1
    assert numbers["flat_shift_hu"] == -12
    assert numbers["flat_shift_place"] == "slice 2, row 13, column 17"


def test_bundled_weights() -> None:
    total = sum(bundled_weights(name).stat().st_size for name in ("sr4", "sr8"))
    assert total <= 30_000_000
    with pytest.raises(MedQDMError, match="no weights for task 'sr2': bundled are sr4, sr8"):
        bundled_weights("sr2")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "factor"), [("sr4", 4), ("sr8", 8)])
def test_bundled_models_beat_bicubic_on_the_demo_slice(name: str, factor: int) -> None:
    hr = np.load(DEMO.parent / "demo-series-reference.npz")["hu"][2].astype(np.float32)
    enhancer = Enhancer(bundled_weights(name), device="cpu")
    window = enhancer.task.hu_window
    params = draw(enhancer.task.test_degradation, np.random.RandomState(0))
    lr = degrade(torch.from_numpy(window.normalize(hr))[None], params, factor)
    lr_hu = window.denormalize(lr[0].numpy())
    ours, plain = enhancer.enhance_slice(lr_hu).hu, upsample_bicubic(lr_hu, factor)
    assert metrics.psnr_db(ours, hr, window) > metrics.psnr_db(plain, hr, window)
    assert metrics.ssim(ours, hr, window) > metrics.ssim(plain, hr, window)
