"""Training of rivals: it learns, stops, resumes and keeps to its budget."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medqdm import checkpoint
from medqdm.config import (
    EDSRSection,
    QuadtreeSection,
    ResShiftSection,
    Task,
    load_task,
    override,
)
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.training.clock import Clock
from medqdm.training.diffusion import DiffusionModule
from medqdm.training.optimizer import RateFactor
from medqdm.training.run import train
from studies.baselines import open_any, rival_task, train_rival
from studies.baselines.training import RegressionModule

SLICES = Path(__file__).parents[2] / "data" / "hr-slices"


def read_curve(run: Path) -> list[dict[str, float]]:
    with (run / "rival" / "curve.csv").open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl+C before a step of the regression network."""
    original = RegressionModule.training_step

    def interrupted(module: RegressionModule, *args: Any) -> Any:
        if module.global_step == step:
            raise KeyboardInterrupt
        return original(module, *args)

    monkeypatch.setattr(RegressionModule, "training_step", interrupted)


@pytest.fixture(scope="module")
def finished(edsr_task: Task, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an EDSR run that was never stopped; look at it, do not change it."""
    out = tmp_path_factory.mktemp("run") / "straight"
    assert train_rival(edsr_task, data, out) == out / "weights.safetensors"
    return out


def test_some_seconds_on_real_ct_beat_bicubic(tmp_path: Path) -> None:
    settings = [
        "rival.width=16",
        "rival.blocks=2",
        "slice_px=256",
        "degradation=clean",
        "degradation_mix={}",
        "test_degradation=clean",
        "training.flips=x",
        "training.shift_probability=0",
        "training.reduce_probability=0",
        "training.patient_weights={}",
        "training.regression={steps: 120, batch_size: 2, crop_px: 96, learning_rate: 3.0e-3}",
        "training.validation_patients=[chest-covid-cap001]",
        "training.validation_slices=2",
        "training.validate_every=40",
        "training.num_workers=0",
        "training.ema_decay=0.9",
        "training.precision=fp32",
        "training.accelerator=cpu",
    ]
    train_rival(rival_task("edsr", "sr4-t", settings), SLICES, tmp_path / "run")
    rows = read_curve(tmp_path / "run")
    assert [row["step"] for row in rows] == [40, 80, 120]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["psnr"] < rows[1]["psnr"] < rows[2]["psnr"]
    assert rows[-1]["psnr"] > rows[-1]["psnr_bicubic"] + 0.3
    assert rows[0]["psnr_bicubic"] == rows[-1]["psnr_bicubic"]


def test_the_record_tells_what_was_done(finished: Path) -> None:
    opened = open_any(finished / "weights.safetensors")
    record = opened.record["rival"]
    assert (record["steps"], record["seed"], record["batch_size"]) == (4, 0, 2)
    assert (record["train_patients"], record["validation_patients"]) == (2, 1)
    assert record["seconds"] > 0
    assert record["parameters"] == sum(p.numel() for p in opened.engine.parameters())
    assert record["curve"] == read_curve(finished)
    assert [row["step"] for row in record["curve"]] == [2, 4]
    assert {"seconds", "loss", "psnr", "ssim", "mae_hu", "psnr_bicubic"} <= set(record["curve"][0])


def test_a_finished_run_is_left_alone(finished: Path, edsr_task: Task, data: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    train_rival(edsr_task, data, finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_a_stopped_run_goes_on_to_the_same_weights_and_counters(
    finished: Path, edsr_task: Task, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 3)  # the last checkpoint is that of step 2
        with pytest.raises(KeyboardInterrupt):
            train_rival(edsr_task, data, tmp_path / "run")
    so_far = read_curve(tmp_path / "run")
    weights = train_rival(edsr_task, data, tmp_path / "run")
    one, other = load_file(finished / "weights.safetensors"), load_file(weights)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    straight = checkpoint.read_networks(finished / "weights.safetensors").record["rival"]
    resumed = checkpoint.read_networks(weights).record["rival"]
    for record in (straight, resumed):
        for row in (record, *record["curve"]):
            row.pop("seconds")
    assert resumed == straight
    rows = read_curve(tmp_path / "run")
    assert rows[0] == so_far[0]
    assert rows[1]["seconds"] >= rows[0]["seconds"]


def test_a_run_of_another_task_is_refused(finished: Path, edsr_task: Task, data: Path) -> None:
    with pytest.raises(MedQDMError, match="can only be resumed with its own task"):
        train_rival(override(edsr_task, ["rival.width=9"]), data, finished)


def test_a_budget_of_minutes_ends_the_run_and_the_cosine(
    edsr_task: Task, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["training.minutes=0.02", "training.cosine=true", "training.regression.steps=1"]
    task, out = override(edsr_task, settings), tmp_path / "run"
    rates: list[float] = []
    original = RegressionModule.training_step

    def watched(module: RegressionModule, *args: Any) -> Any:
        rates.append(module.optimizers().param_groups[0]["lr"])
        return original(module, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RegressionModule, "training_step", watched)
        weights = train_rival(task, data, out)
    record = checkpoint.read_networks(weights).record["rival"]
    assert 1.2 <= record["seconds"] < 10  # 0.02 minutes, and what the last step takes
    assert record["steps"] == len(rates) > 4  # not the one step of the task
    assert record["curve"][-1]["step"] == record["steps"]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.2 * rates[0]

    weights.unlink()
    stop_at(monkeypatch, record["steps"])
    again = checkpoint.read_networks(train_rival(task, data, out)).record["rival"]
    assert (again["steps"], again["seconds"]) == (record["steps"], record["seconds"])
    assert again["curve"] == record["curve"]


class Time:
    """A clock that goes when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("medqdm.training.clock.time.monotonic", lambda: self.now)


def make_trainer(step: int = 0, accumulate: int = 1) -> Any:
    factor = RateFactor(10, SimpleNamespace(warmup_steps=0, cosine=True))
    return SimpleNamespace(
        should_stop=False,
        accumulate_grad_batches=accumulate,
        global_step=step,
        is_global_zero=True,
        callback_metrics={"validation/psnr": 30.0, "train/loss": 1.0},
        strategy=SimpleNamespace(broadcast=lambda value: value),
        lr_scheduler_configs=[SimpleNamespace(scheduler=SimpleNamespace(lr_lambdas=[factor]))],
    )


def test_the_clock_counts_training_alone_and_through_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, module = Time(monkeypatch), SimpleNamespace()
    clock, trainer = Clock(1.0, tmp_path / "curve.csv"), make_trainer(step=5)
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "curve.tmp").symlink_to(tmp_path / "victim")  # of somebody else
    clock.on_fit_start(trainer, module)
    clock.on_train_start(trainer, module)
    time.now += 20
    clock.on_train_batch_end(trainer, module, {"loss": torch.tensor(2.0)}, None, 0)
    clock.on_train_batch_end(trainer, module, {"loss": torch.tensor(4.0)}, None, 0)
    clock.on_validation_start(trainer, module)
    time.now += 1000
    clock.on_validation_end(trainer, module)
    time.now += 10
    assert clock.seconds == 30
    assert clock.rows == [{"seconds": 20.0, "step": 5, "loss": 3.0, "psnr": 30.0}]
    assert (tmp_path / "victim").read_text() == "mine"
    kept = clock.state_dict() | {"loss": [6.0, 2]}  # as before the validation
    time.now += 500  # lost: a kill

    resumed, trainer = Clock(1.0, tmp_path / "curve.csv"), make_trainer(step=5)
    resumed.load_state_dict(kept)
    resumed.on_fit_start(trainer, module)
    resumed.on_train_start(trainer, module)
    assert resumed.rows == clock.rows
    assert resumed.state_dict()["loss"] == [0, 0]
    time.now += 15
    resumed.on_train_batch_start(trainer, module, None, 0)
    assert trainer.lr_scheduler_configs[0].scheduler.lr_lambdas[0].share == 0.75
    assert not trainer.should_stop
    time.now += 15
    resumed.on_train_batch_end(trainer, module, {"loss": torch.tensor(1.0)}, None, 0)
    assert trainer.should_stop


def test_the_curve_has_the_whole_loss_of_batches_that_are_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning hands on each batch's share of the step's loss."""
    Time(monkeypatch)
    clock, trainer = Clock(1.0, tmp_path / "curve.csv"), make_trainer(accumulate=2)
    module = SimpleNamespace()
    clock.on_fit_start(trainer, module)
    clock.on_train_start(trainer, module)
    for share in (1.0, 2.0):
        clock.on_train_batch_end(trainer, module, {"loss": torch.tensor(share)}, None, 0)
    clock.on_validation_start(trainer, module)
    clock.on_validation_end(trainer, module)
    assert clock.rows[0]["loss"] == 3


def test_the_curve_behind_a_checkpoint_comes_anew(tmp_path: Path) -> None:
    (tmp_path / "curve.csv").write_text("seconds,step,psnr\n10,2,30\n20,4,31\n", encoding="utf-8")
    clock, trainer = Clock(None, tmp_path / "curve.csv"), make_trainer(step=2)
    clock.on_fit_start(trainer, SimpleNamespace())
    clock.on_train_start(trainer, SimpleNamespace())
    assert clock.rows == [{"seconds": 10, "step": 2, "psnr": 30}]


@pytest.mark.parametrize("share", [None, 0.5])
def test_the_learning_rate_falls_by_steps_or_by_the_clock(share: float | None) -> None:
    factor = RateFactor(110, SimpleNamespace(warmup_steps=10, cosine=True))
    assert factor(0) == pytest.approx(1 / 11)
    factor.share = share
    half = 0.01 + 0.99 / 2
    assert factor(60) == pytest.approx(half)
    assert factor(20) == pytest.approx(half if share else 0.01 + 0.99 * (1 + 0.9510565) / 2)
    factor.share = 1.2
    assert factor(20) == pytest.approx(0.01)


def test_a_resshift_rival_trains_with_the_given_autoencoder(
    unet_task: Task, data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    densities = []
    original = DiffusionModule.log_dict

    def watched(module: DiffusionModule, values: dict[str, Any], **options: Any) -> None:
        densities.extend(float(v) for name, v in values.items() if name == "train/density")
        original(module, values, **options)

    monkeypatch.setattr(DiffusionModule, "log_dict", watched)
    out = train_rival(unet_task, data, tmp_path / "run", autoencoder=weights)
    assert densities == [1.0] * 4  # all latents, at each step
    opened = open_any(out)
    assert opened.engine.task.rival == unet_task.rival
    given = checkpoint.load(weights).autoencoder.state_dict()
    for name, value in opened.engine.autoencoder.state_dict().items():
        torch.testing.assert_close(value, given[name], atol=1e-3, rtol=1e-3)  # float16
    last = opened.engine.qdm.unet.out[2].conv.weight
    assert last.abs().max() > 0  # it was zero
    record = opened.record["rival"]
    assert record["steps"] == 4
    assert {"psnr", "psnr_bicubic", "density"} <= set(record["curve"][-1])


def test_a_resshift_rival_has_no_regions_whatever_is_asked() -> None:
    """The model's own settings, given to all rivals alike, must not break it."""
    asked = ["training.diffusion.region_steps_share=0.2", "training.diffusion.mask_training=mixed"]
    diffusion = rival_task("resshift", "tiny", asked).training.diffusion
    assert (diffusion.region_steps_share, diffusion.mask_training) == (0, "none")


def test_the_autoencoder_goes_with_resshift_alone(
    edsr_task: Task, unet_task: Task, data: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(MedQDMError, match=r"must be left out for edsr, got tiny\.safetensors"):
        train_rival(edsr_task, data, tmp_path / "run", autoencoder=weights)
    with pytest.raises(MedQDMError, match="must be weights whose autoencoder the rival takes, got"):
        train_rival(unet_task, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_minutes_end_a_model_s_own_stages_too(
    unet_task: Task, data: Path, weights: Path, tmp_path: Path
) -> None:
    settings = ["training.minutes=0.02", "training.diffusion.steps=1"]
    task = override(unet_task.model_copy(update={"rival": None}), settings)
    made = train(task, data, tmp_path / "run", autoencoder=weights)
    record = checkpoint.load(made).record["diffusion"]
    assert 1.2 <= record["seconds"] < 10
    assert record["steps"] > 1


def documented() -> dict[str, list[str]]:
    """Run folder to ``--set`` settings of each command of docs/rivals.md that trains."""
    text = (Path(__file__).parents[3] / "docs" / "rivals.md").read_text(encoding="utf-8")
    commands = re.findall(
        r"^\$ ((?:medqdm|python -m studies.baselines) train.*?[^\\])$",
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    found = {}
    for command in commands:
        (out,) = re.findall(r"--out runs/(\S+)", command)
        found[out] = re.findall(r"--set (\S+)", command)
    return found


def test_every_documented_setting_is_one() -> None:
    commands = documented()
    stages = {f"{name}-sr4" for name in ("qdm", "resshift", "dense", "published")}
    assert {"edsr-sr4", "edsr-wide-sr4", *stages} <= set(commands)
    for out, settings in commands.items():
        network = out.partition("-")[0]
        if network in {"edsr", "resshift"}:
            rival_task(network, "sr4-t", settings)
        else:
            load_task("sr4-t", settings)


def test_a_rival_s_own_task_keeps_its_network() -> None:
    trained = Path(__file__).parents[3] / "docs" / "training" / "rivals" / "edsr-wide-sr4.yaml"
    assert rival_task("edsr", trained).rival == EDSRSection(width=128, blocks=23)
    assert rival_task("edsr", trained, ["rival.blocks=2"]).rival == EDSRSection(width=128, blocks=2)
    assert isinstance(rival_task("resshift", trained).rival, ResShiftSection)


@pytest.mark.parametrize("name", ["dense-sr4", "published-sr4"])
def test_documented_variants_of_the_model_train_and_enhance(
    name: str, unet_task: Task, data: Path, weights: Path, tmp_path: Path
) -> None:
    settings = [s for s in documented()[name] if not s.startswith("training.minutes")]
    assert len(settings) >= 3
    task = override(
        unet_task.model_copy(update={"rival": None, "quadtree": QuadtreeSection()}),
        ["transformer.prediction=preconditioned", *settings],
    )
    made = train(task, data, tmp_path / "run", autoencoder=weights)
    done = Enhancer(made, device="cpu", precision="fp32").enhance_slice(
        np.linspace(-900, 900, 256, dtype=np.float32).reshape(16, 16)
    )
    assert done.refined.all() == (name == "dense-sr4")
    assert np.isfinite(done.hu).all()
