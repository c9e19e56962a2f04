"""Training end to end on small volumes: stop, resume, refuse, two processes."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import medqdm
from medqdm import checkpoint
from medqdm.build import build_autoencoder, build_qdm, build_regions, build_spread
from medqdm.config import Task, load_task, override
from medqdm.data import SliceDataModule
from medqdm.engine import Engine
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.models.autoencoder import KLAutoencoder
from medqdm.record import describe
from medqdm.training.autoencoder import AutoencoderModule
from medqdm.training.diffusion import DiffusionModule
from medqdm.training.fit import Average
from medqdm.training.further import train_gain, train_spread
from medqdm.training.lightning import StepSeed, without_harmless_messages
from medqdm.training.regions import RegionModule
from medqdm.training.run import open_run, train
from medqdm.training.spread import SpreadModule, _correlations, _filter_of

STEPS = 4
SHORT = (
    f"training.autoencoder.steps={STEPS}",
    f"training.diffusion.steps={STEPS}",
    "training.autoencoder.batch_size=2",
    "training.diffusion.batch_size=2",
    "training.validate_every=2",
    "training.checkpoint_every=2",
    "training.validation_slices=1",
    "training.validation_patients=[p2]",
    "training.accelerator=cpu",
    "training.precision=fp32",
    "training.ema_decay=0.5",
    "diffusion.sampling_steps=2",
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def body(num: int, seed: int) -> NDArray[np.int16]:
    """``(num, 64, 64)`` HU: a noisy disc with a bone in air."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64] - 31.5
    hu = np.full((num, 64, 64), -1000.0)
    hu[:, np.hypot(y, x) < 26] = 40
    hu[:, np.hypot(y - 12, x) < 5] = 700
    return (hu + random.normal(0, 20, hu.shape)).astype(np.int16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients with 3, 4 and 2 slices; pixels of 0.5, 0.6 and 0.9 mm."""
    folder = tmp_path_factory.mktemp("data")
    for k, (num, spacing) in enumerate(((3, 0.5), (4, 0.6), (2, 0.9))):
        affine = np.diag([-spacing, -spacing, 3.0, 1.0])
        image = nibabel.Nifti1Image(body(num, k).transpose(2, 1, 0), affine)
        nibabel.save(image, folder / f"p{k}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("tiny", SHORT)


@pytest.fixture(scope="module")
def finished(task: Task, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped; look at it, do not change it."""
    out = tmp_path_factory.mktemp("run") / "straight"
    assert train(task, data, out) == out / "weights.safetensors"
    return out


def assert_same_weights(a: Path, b: Path) -> None:
    one, other = load_file(a), load_file(b)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


class Stop:
    """Ctrl+C in a method of a module, as soon as it has taken so many steps (-1: never)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: type, method: str, at: int) -> None:
        self.steps: list[int] = []
        original = getattr(module, method)

        def interrupted(module: Any, *args: Any) -> Any:
            self.steps.append(module.global_step)
            if module.global_step == at:
                raise KeyboardInterrupt
            return original(module, *args)

        monkeypatch.setattr(module, method, interrupted)


def test_a_trained_model_enhances(finished: Path, task: Task) -> None:
    enhancer = Enhancer(finished / "weights.safetensors", device="cpu")
    hu = body(1, seed=9)[0, :32, :24].astype(np.float32)
    enhanced = enhancer.enhance_slice(hu)
    assert enhanced.hu.shape == (128, 96)
    assert np.isfinite(enhanced.hu).all()
    assert enhancer.task.name == task.name


def test_the_record_tells_what_was_trained_on(finished: Path) -> None:
    record = checkpoint.load(finished / "weights.safetensors").record
    assert set(record) == {"autoencoder", "diffusion"}
    for stage in record.values():
        assert stage["steps"] == STEPS
        assert stage["lr_spacing_mm"] == [2.0, 2.4]  # four times that of p0 and of p1
        assert (stage["train_patients"], stage["validation_patients"]) == (2, 1)
        assert (stage["train_slices"], stage["validation_slices"]) == (7, 2)
    assert set(record["diffusion"]["validation"]) == {
        "psnr", "ssim", "mae_hu", "psnr_bicubic", "ssim_bicubic", "mae_hu_bicubic", "density",
    }  # fmt: skip
    assert set(record["autoencoder"]["validation"]) == {"psnr_hr", "psnr_lr"}


def test_training_latents_have_unit_variance(finished: Path, data: Path) -> None:
    loaded = checkpoint.load(finished / "weights.safetensors")
    scale = loaded.task.autoencoder.latent_scale
    assert scale is not None
    hr = torch.stack(list(SliceDataModule(loaded.task, data, "diffusion").sample_hr(100)))
    assert len(hr) == 7
    with torch.no_grad():
        z = loaded.autoencoder.encode(hr) * torch.tensor(scale)[:, None, None]
    assert z.var(dim=(0, 2, 3)).tolist() == pytest.approx([1, 1, 1], rel=0.05)


def test_a_finished_run_is_left_alone(
    finished: Path, task: Task, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    monkeypatch.setattr(SliceDataModule, "setup", None)  # not even the data are read
    assert train(task, data, finished) == finished / "weights.safetensors"
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_lost_weights_are_exported_again(
    finished: Path, task: Task, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "weights.safetensors").unlink()
    watched = Stop(monkeypatch, DiffusionModule, "training_step", -1)
    assert_same_weights(train(task, data, out), finished / "weights.safetensors")
    assert watched.steps == []


def test_a_stopped_run_goes_on_to_the_same_weights(
    finished: Path, task: Task, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first_steps = []
    for module, method, at in (
        (AutoencoderModule, "training_step", 3),
        (AutoencoderModule, "validation_step", STEPS),  # after the last step, before its end
        (DiffusionModule, "training_step", 3),
        (DiffusionModule, "validation_step", STEPS),
    ):
        with pytest.MonkeyPatch.context() as monkeypatch:
            stop = Stop(monkeypatch, module, method, at)
            with pytest.raises(KeyboardInterrupt):
                train(task, data, out)
        first_steps.append(stop.steps[0])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert not (out / "weights.safetensors").exists()
    train(task, data, out)
    assert first_steps == [0, STEPS, 0, STEPS]
    assert_same_weights(out / "autoencoder.safetensors", finished / "autoencoder.safetensors")
    assert_same_weights(out / "weights.safetensors", finished / "weights.safetensors")


def test_a_resumed_stage_takes_the_missing_steps_only(
    task: Task, data: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = finished / "autoencoder.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, DiffusionModule, "training_step", 3)
        with pytest.raises(KeyboardInterrupt):
            train(task, data, tmp_path / "run", autoencoder=weights)
    watched = Stop(monkeypatch, DiffusionModule, "training_step", -1)
    train(task, data, tmp_path / "run", autoencoder=weights)
    assert watched.steps == [2, 3]  # from the checkpoint after two steps


def test_a_given_autoencoder_is_taken(
    finished: Path, task: Task, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoencoderModule, "training_step", None)
    given = finished / "autoencoder.safetensors"
    made = checkpoint.load(train(task, data, tmp_path / "run", autoencoder=given))
    assert_same_weights(tmp_path / "run" / "autoencoder.safetensors", given)
    assert made.task.autoencoder == checkpoint.load(given).task.autoencoder
    assert made.record["autoencoder"] == checkpoint.load(given).record["autoencoder"]


def test_another_autoencoder_is_refused(finished: Path, data: Path, tmp_path: Path) -> None:
    other = load_task("tiny", [*SHORT, "autoencoder.channels=[8,8,16]"])
    with pytest.raises(MedQDMError, match=r"must have the task's settings and window"):
        train(other, data, tmp_path / "a", autoencoder=finished / "autoencoder.safetensors")
    other = load_task("tiny", [*SHORT, "window.width_hu=400"])
    with pytest.raises(MedQDMError, match=r"must have the task's settings and window"):
        train(other, data, tmp_path / "b", autoencoder=finished / "autoencoder.safetensors")


def test_stage_two_goes_on_from_a_whole_model(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a step more it is that model; another's weights do not resume it."""
    start = finished / "weights.safetensors"
    none = load_task("tiny", [*SHORT, "training.diffusion.steps=0"])
    made = train(none, data, tmp_path / "none", start=start)
    assert_same_weights(made, start)
    record = checkpoint.load(made).record["diffusion"]
    begun = checkpoint.load(start)
    assert record["start_sha256"] == begun.sha256
    assert record["before"] == {"diffusion": begun.record["diffusion"]}
    again = train(none, data, tmp_path / "again", start=made)
    before = checkpoint.load(again).record["diffusion"]["before"]["diffusion"]["before"]
    assert before == record["before"]
    more = load_task("tiny", [*SHORT, "training.diffusion.image_loss=l2"])
    watched = Stop(monkeypatch, DiffusionModule, "training_step", 2)
    with pytest.raises(KeyboardInterrupt):
        train(more, data, tmp_path / "more", start=start)
    assert watched.steps == [0, 1, 2]
    with pytest.raises(MedQDMError, match="can only be resumed from its own weights"):
        train(more, data, tmp_path / "more", start=made)
    with pytest.raises(MedQDMError, match="only be resumed as it began, with --start"):
        train(more, data, tmp_path / "more")
    plain = tmp_path / "plain"
    open_run(none, plain)
    with pytest.raises(MedQDMError, match="only be resumed as it began, without --start"):
        train(none, data, plain, start=start)


def test_a_corrector_may_be_new_to_a_start(finished: Path, data: Path, tmp_path: Path) -> None:
    """It begins as nothing, learns alone, and is part of the model from then on."""
    start = finished / "weights.safetensors"
    corrector = "transformer.corrector={channels: 8, blocks: 1}"
    none = load_task("tiny", [*SHORT, corrector, "training.diffusion.steps=0"])
    before = load_file(start)
    begun = load_file(train(none, data, tmp_path / "none", start=start))
    assert all(torch.equal(begun[name], value) for name, value in before.items())
    added = begun.keys() - before.keys()
    assert added
    assert all(name.startswith("qdm.corrector.") for name in added)
    alone = load_task("tiny", [*SHORT, corrector, "training.diffusion.corrector_alone=true"])
    made = train(alone, data, tmp_path / "alone", start=start)
    trained = load_file(made)
    assert all(torch.equal(trained[name], value) for name, value in before.items())
    assert trained["qdm.corrector.last.weight"].any()
    assert checkpoint.load(made).task.transformer.corrector is not None
    without = load_task("tiny", [*SHORT])
    with pytest.raises(MedQDMError, match="its transformer must have the task's settings, got"):
        train(without, data, tmp_path / "without", start=made)
    with pytest.raises(MedQDMError, match="corrector_alone: must go on from a model, got no --st"):
        train(alone, data, tmp_path / "nothing")
    asked = ["transformer.corrector={channels: 8, blocks: 2}"]
    with pytest.raises(MedQDMError, match=r"transformer\.corrector: must be that of the weights"):
        train_spread(made, data, tmp_path / "spread", asked)
    with pytest.raises(MedQDMError, match=r"transformer\.corrector: must be that of the weights"):
        Enhancer(made, device="cpu", overrides=asked)
    with pytest.raises(MedQDMError, match=r"autoencoder\.channels: must be that of the weights"):
        Enhancer(made, device="cpu", overrides=["autoencoder.channels=[8,8,16]"])
    assert {path.name for path in tmp_path.iterdir()} == {"none", "alone"}


def test_another_transformer_is_refused_as_a_start(
    finished: Path, task: Task, data: Path, tmp_path: Path
) -> None:
    start = finished / "weights.safetensors"
    other = load_task("tiny", [*SHORT, "transformer.depth=3"])
    with pytest.raises(MedQDMError, match="its transformer must have the task's settings, got"):
        train(other, data, tmp_path / "a", start=start)
    with pytest.raises(MedQDMError, match="must hold a whole model, got a KL-VAE alone"):
        train(task, data, tmp_path / "b", start=finished / "autoencoder.safetensors")
    for setting, what in (
        ("diffusion.kappa=1.5", "its diffusion must have the task's settings"),
        ("window.width_hu=400", "its autoencoder must have the task's settings and window"),
    ):
        with pytest.raises(MedQDMError, match=what):
            train(load_task("tiny", [*SHORT, setting]), data, tmp_path / "d", start=start)
    with pytest.raises(MedQDMError, match="got --autoencoder too; give one of both"):
        train(task, data, tmp_path / "c", start=start, autoencoder=start)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_older_than_a_setting_goes_on(task: Task, tmp_path: Path) -> None:
    open_run(task, tmp_path / "run")
    file = tmp_path / "run" / "task.yaml"
    older = "".join(
        line
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True)
        if "corrector_weight" not in line
    )
    file.write_text(older, encoding="utf-8")
    open_run(task, tmp_path / "run")
    file.write_text(older.replace("depth: 2", "depth: 4"), encoding="utf-8")
    with pytest.raises(MedQDMError, match="a run can only be resumed with its own task"):
        open_run(task, tmp_path / "run")


def test_a_run_of_another_task_is_refused(task: Task, data: Path, tmp_path: Path) -> None:
    open_run(task, tmp_path / "run")
    open_run(task, tmp_path / "run")
    other = load_task("tiny", [*SHORT, "training.seed=1"])
    with pytest.raises(MedQDMError, match="can only be resumed with its own task"):
        train(other, data, tmp_path / "run")


def test_a_folder_that_is_no_run_is_refused(task: Task, data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(MedQDMError, match="must be a new folder or a run to resume"):
            train(task, data, out)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_nan_stops_training_and_names_the_slices(
    task: Task, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = KLAutoencoder.decode
    monkeypatch.setattr(KLAutoencoder, "decode", lambda self, z: decode(self, z) * torch.nan)
    with pytest.raises(
        MedQDMError, match=r"must be finite, got nan for slices p[01]\[\d\], p[01]\[\d\]; look"
    ):
        train(task, data, tmp_path / "run")


def test_the_scale_is_asked_for_before_latents_are_made(task: Task) -> None:
    engine = Engine(task, build_autoencoder(task), build_qdm(task))
    with pytest.raises(MedQDMError, match="latent_scale must be a number, got none"):
        engine.encode(torch.zeros(1, 1, 64, 64))


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_the_perceptual_term_asks_for_its_weights(
    stage: str, data: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDQDM_LPIPS_WEIGHTS", raising=False)
    monkeypatch.setitem(sys.modules, "lpips", None)
    task = load_task("tiny", [*SHORT, f"training.{stage}.perceptual_weight=0.1"])
    given = finished / "autoencoder.safetensors" if stage == "diffusion" else None
    with pytest.raises(MedQDMError, match=r"medqdm\[perceptual\]"):
        train(task, data, tmp_path / "run", autoencoder=given)


@pytest.mark.slow
def test_two_processes_train_by_the_same_command(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = [*SHORT, "training.devices=2", "training.strategy=ddp"]
    settings += [  # the discriminator joins on the way
        "training.autoencoder.adversarial_weight=0.1",
        "training.autoencoder.adversarial_start=2",
    ]
    command = [sys.executable, "-m", "medqdm", "train", "--task", "tiny", "--data", data]
    command += ["--out", out, *(part for item in settings for part in ("--set", item))]
    where = Path(medqdm.__file__).parent.parent
    done = subprocess.run(
        [str(part) for part in command],
        check=False, capture_output=True, text=True, timeout=280, cwd=where,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = checkpoint.load(out / "weights.safetensors").record
    assert record["autoencoder"]["steps"] == record["diffusion"]["steps"] == STEPS
    assert "litlogger" not in done.stdout + done.stderr


def test_a_step_s_random_numbers_follow_from_seed_step_and_process() -> None:
    def draw(seed: int, step: int, rank: int) -> float:
        torch.rand(3)
        trainer: Any = SimpleNamespace(global_rank=rank)
        StepSeed(seed).on_train_batch_start(trainer, SimpleNamespace(), None, step)
        return torch.rand(()).item()

    assert draw(0, 5, 1) == draw(0, 5, 1)
    assert len({draw(0, 5, 0), draw(1, 5, 0), draw(0, 6, 0), draw(0, 5, 1)}) == 4


def test_harmless_messages_alone_are_kept_back(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    tip = "Tip: For seamless cloud logging, try installing something"
    with caplog.at_level(logging.INFO), without_harmless_messages():
        log.info(tip)
        log.info("GPU available: False")
        warnings.warn("The 'val_dataloader' does not have many workers", stacklevel=1)
        with pytest.raises(UserWarning, match="another"):
            warnings.warn("another", stacklevel=1)
    log.info(tip)
    assert caplog.messages == ["GPU available: False", tip]


MORE = (
    "training.regions={steps: 4, batch_size: 2}",
    "training.spread={steps: 4, batch_size: 2}",
    "diffusion.sampling_steps=null",
)


def test_train_gain_adds_networks_and_changes_nothing_else(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    weights = finished / "weights.safetensors"
    for source in ("gain.source=regressor", "groups.confidence=head"):
        setting = [f"diffusion.sampler.{source}"]
        setting.append(f"diffusion.sampler.name={source.split('.')[0]}")
        enhancer = Enhancer(weights, device="cpu", overrides=[*setting, MORE[1]])
        with pytest.raises(MedQDMError, match="add them with medqdm train-gain"):
            enhancer.enhance_slice(body(1, 9)[0].astype(np.float32))
    out = train_gain(weights, data, tmp_path / "run", MORE)
    old, new = load_file(weights), load_file(out)
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    added = {name.split(".")[0] for name in new.keys() - old.keys()}
    assert added == {"regions"}
    for source in ("gain.source=regressor", "groups.confidence=head"):
        name = source.split(".")[0]
        setting = [f"diffusion.sampler.{source}", f"diffusion.sampler.name={name}", MORE[1]]
        done = Enhancer(out, device="cpu", overrides=setting).enhance_slice(
            body(1, 9)[0].astype(np.float32)
        )
        assert np.isfinite(done.hu).all()


@pytest.fixture
def regions(finished: Path, data: Path) -> tuple[RegionModule, dict[str, Any]]:
    """A module outside a trainer, and a batch."""
    loaded = checkpoint.load(finished / "weights.safetensors")
    task = override(loaded.task, ["training.regions.learning_rate=3e-3", MORE[1]])
    torch.manual_seed(0)
    engine = Engine(task, loaded.autoencoder, loaded.qdm, build_regions(task))
    samples = list(SliceDataModule(task, data, "regions").samples(2))
    batch = {key: torch.stack([s[key] for s in samples]) for key in ("hr", "lr")}
    return RegionModule(task, engine), batch


def test_networks_for_regions_learn_what_a_run_gains(regions, monkeypatch) -> None:
    module, batch = regions
    early, late = (torch.full((2, 2, 1, 1), value) for value in (0.5, -0.3))
    monkeypatch.setattr(module, "gains", lambda *_: [early] * 3 + [late] * 12)
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(40):
        torch.manual_seed(3)
        gain, confidence = module.losses(batch)
        optimizer.zero_grad()
        (gain + confidence).backward()
        optimizer.step()
        losses.append((float(gain.detach()), float(confidence.detach())))
    assert losses[-1][0] < 0.5 * losses[0][0]
    assert losses[-1][1] < losses[0][1]


def test_gains_are_of_error_and_of_edges(regions) -> None:
    module, batch = regions
    engine, (hr, lr) = module.engine, (batch["hr"], batch["lr"])
    with torch.no_grad():
        z_0, z_lr = engine.encode(hr), engine.encode(engine.upsample(lr))
        refined = torch.ones(2, 1, *z_0.shape[2:], dtype=torch.bool)
        nearer = [z_0 + (z_lr - z_0) * share for share in (0.5, 0.25, 0.5)]
        found = torch.stack(module.gains(nearer, z_0, z_lr, lr, engine.decode(z_0, lr), refined))
    # half the distance is a quarter of the squared error: log10(4) of 10 dB
    expected = np.tanh([np.log10(4), np.log10(4), -np.log10(4)])
    np.testing.assert_allclose(found[:, :, 0].mean(dim=(1, 2, 3)), expected, atol=1e-3)
    edges = found[:, :, 1].flatten(1)
    assert (edges[:2] > 0).all()
    torch.testing.assert_close(edges[2], -edges[1])


def test_train_spread_adds_networks_that_widen_draws(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    weights = finished / "weights.safetensors"
    out = train_spread(weights, data, tmp_path / "run", MORE)
    assert train_spread(weights, data, tmp_path / "run", MORE) == out  # it has ended
    old, new = load_file(weights), load_file(out)
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    assert {name.split(".")[0] for name in new.keys() - old.keys()} == {"spread"}
    assert new["spread.filters"].square().sum(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1], 1e-2)
    hu = body(1, 9)[0].astype(np.float32)
    few = ["diffusion.sampling_steps=4", MORE[1]]
    plain, wide = (
        Enhancer(out, device="cpu", draws=4, overrides=[*few, setting]).enhance_slice(hu)
        for setting in ("diffusion.spread=false", "diffusion.spread=true")
    )
    assert (wide.deviation_hu > plain.deviation_hu).mean() > 0.9
    told = [
        describe(Enhancer(out, device="cpu", overrides=[*few, f"diffusion.spread={value}"]))
        for value in ("true", "false")
    ]
    assert ["noise as strong as the model's errors" in text for text in told] == [True, False]
    both = train_gain(out, data, tmp_path / "both", MORE)
    assert {name.split(".")[0] for name in load_file(both)} == {
        "autoencoder", "qdm", "regions", "spread"
    }  # fmt: skip


def test_spread_learns_how_far_estimates_are_off(finished: Path, data: Path) -> None:
    loaded = checkpoint.load(finished / "weights.safetensors")
    task = override(
        loaded.task, ["training.spread.learning_rate=1e-2", "training.warmup_steps=0", MORE[1]]
    )
    torch.manual_seed(0)
    spread = build_spread(task)
    engine = Engine(task, loaded.autoencoder, loaded.qdm, spread=spread)
    samples = list(SliceDataModule(task, data, "spread").samples(2))
    batch = {key: torch.stack([s[key] for s in samples]) for key in ("hr", "lr")}
    module = SpreadModule(task, engine)
    optimizer = module.configure_optimizers()["optimizer"]
    for step in range(300):
        torch.manual_seed(step)
        found = module.likelihoods(batch)
        optimizer.zero_grad()
        (found["latent"] + found["pixel"]).backward()
        optimizer.step()
    ratios = []
    for step in range(10):
        torch.manual_seed(1000 + step)
        found = module.likelihoods(batch)
        ratios.append([float(found[f"{name}_ratio"]) for name in ("latent", "pixel")])
    latent, pixel = np.mean(ratios, axis=0)
    assert 0.7 < latent < 1.4  # squared errors are as large as the variances say
    assert 0.7 < pixel < 1.4


def test_the_texture_filter_brings_correlations_back() -> None:
    """White noise through a known filter; the one measured on it must do the same."""
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    kernel = (taps[:, None] * taps)[None, None]
    white = torch.randn(
        1, 1, 400, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    image = torch.nn.functional.conv2d(white, kernel / kernel.square().sum().sqrt())
    ones = _correlations(torch.ones_like(image))
    found = _filter_of(_correlations(image) / ones)
    again = torch.nn.functional.conv2d(white, found[None].double())
    assert float(again.var()) == pytest.approx(1, abs=0.05)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (0, 3)):
        expected, measured = (
            float((x[..., dy:, dx:] * x[..., : x.shape[2] - dy, : x.shape[3] - dx]).mean())
            for x in (image, again)
        )
        assert measured == pytest.approx(expected, abs=0.05)


def test_the_average_of_a_short_run_has_left_its_beginning() -> None:
    """Weights that run from 0 to 1: within 100 steps a plain decay of 0.995 would be at 0.2."""
    average, plain = torch.zeros(1), torch.zeros(1)
    step = Average(0.995)
    for k in range(100):
        now = torch.full((1,), k / 99)
        average, plain = step(average, now, torch.tensor(k)), torch.lerp(now, plain, 0.995)
    assert float(plain) < 0.25
    assert 0.85 < float(average) < 0.95
    late = step(torch.zeros(1), torch.ones(1), torch.tensor(100_000))
    assert float(late) == pytest.approx(0.005, rel=1e-3)  # then it is the decay
    counted = torch.tensor(7)
    assert step(torch.tensor(3), counted, torch.tensor(5)) is counted


def test_a_region_that_never_occurs_has_white_noise() -> None:
    white = _filter_of(torch.zeros(18, 18, dtype=torch.float64))
    assert float(white[0, 4, 4]) == pytest.approx(1)
    assert float(white.square().sum()) == pytest.approx(1)
