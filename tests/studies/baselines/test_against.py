"""Rivals beside the model in one evaluation."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medqdm import checkpoint
from medqdm.build import build_autoencoder, build_qdm
from medqdm.config import Task, load_task
from medqdm.errors import MedQDMError
from medqdm.evaluate import Model, evaluate_weights
from medqdm.evaluate.api import Others
from studies.baselines import rival_task
from studies.baselines.__main__ import app
from studies.baselines.against import describe_against, open_against, parse_against
from studies.baselines.weights import build_edsr, build_unet, resshift_engine, save

TINY = load_task("tiny")


def write_edsr(path: Path, *settings: str) -> Path:
    task = rival_task("edsr", "tiny", ["rival.width=8", "rival.blocks=1", *settings])
    record = {"rival": {"steps": 7, "seconds": 8.5}}
    save(path, build_edsr(task), task=task, record=record)
    return path


def write_resshift(path: Path) -> Path:
    settings = ["rival.channels=[32]", "autoencoder.latent_scale=1", "diffusion.sampling_steps=2"]
    task = rival_task("resshift", "tiny", settings)
    engine = resshift_engine(task, build_autoencoder(task), build_unet(task))
    save(path, engine, task=task, record={})
    return path


def beside(path: Path) -> Others:
    def others(task: Task) -> tuple[list[Model], dict[str, str]]:
        methods = open_against([str(path)], task, device="cpu", seed=0)
        return methods, describe_against(methods)

    return others


def refusal(text: str, task: Task = TINY) -> str:
    with pytest.raises(MedQDMError) as caught:
        open_against([text], task, device="cpu", seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_rival_is_trained_and_evaluated_by_two_commands(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    run, out = tmp_path / "edsr-run", tmp_path / "out"
    short = ["training.validation_patients=[p2]", "training.precision=fp32"]
    short += ["rival.width=8", "rival.blocks=1", "training.validation_slices=1"]
    short += ["training.regression={steps: 2, batch_size: 2}", "training.accelerator=cpu"]
    short += ["training.validate_every=2"]
    command = ["train", "edsr", "--task", "tiny", "--data", str(data), "--out", str(run)]
    done = CliRunner().invoke(app, [*command, *(x for s in short for x in ("--set", s))])
    assert done.exit_code == 0, done.output
    unet = write_resshift(tmp_path / "unet.safetensors")

    command = ["evaluate", "--data", str(data), "--out", str(out), "--weights", str(weights)]
    command += ["--device", "cpu", "--limit", "3"]
    command += ["--against", str(run / "weights.safetensors"), "--against", str(unet)]
    command += ["--against", f"four: weights={unet} diffusion.sampling_steps=4"]
    command += ["--against", f"dense: weights={weights} quadtree.threshold=0"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    names = ["edsr-run", "unet", "four", "dense"]
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    mean = results["regions"]["whole"]["mean"]
    assert set(mean) >= {"medqdm", "bicubic", "lanczos", *names}
    # hardly trained, so nearly bicubic
    bicubic = mean["bicubic"]["psnr_db"]["mean"]
    assert mean["edsr-run"]["psnr_db"]["mean"] == pytest.approx(bicubic, abs=0.5)
    assert mean["unet"]["share_refined"]["mean"] == mean["four"]["share_refined"]["mean"] == 1
    assert all(mean[name]["seconds"]["mean"] > 0 for name in names)
    assert results["data"]["against edsr-run"].startswith("edsr, weights sha256 ")
    text = (out / "results.md").read_text(encoding="utf-8")
    for name in names:
        assert f"| {name} |" in text
        assert f"medqdm - {name}" in text
    assert str(tmp_path) not in text + json.dumps(results)


def test_an_untrained_edsr_scores_as_bicubic_and_says_how_long_it_was_trained(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    rival = write_edsr(tmp_path / "edsr.safetensors", "diffusion.conserve_hu=false")
    found = evaluate_weights(
        data, tmp_path / "out", weights=weights, device="cpu", limit=2, others=beside(rival)
    )
    for metric in ("psnr_db", "ssim"):
        one, other = (found.mean(metric, name) for name in ("edsr", "bicubic"))
        assert one is not None
        assert other is not None
        assert one.mean == pytest.approx(other.mean, rel=1e-5)
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["data"]["against edsr"].endswith("rival 7 steps in 8.5 s")


def test_the_report_says_that_a_training_was_not_the_first(tmp_path: Path) -> None:
    task, path = load_task("tiny", ["autoencoder.latent_scale=1"]), tmp_path / "qdm.safetensors"
    checkpoint.save(
        path, task=task, autoencoder_state=build_autoencoder(task).state_dict(),
        qdm_state=build_qdm(task).state_dict(), dtype="float32",
        record={"diffusion": {"steps": 7, "seconds": 8.5, "start_sha256": "0", "before": {}}},
    )  # fmt: skip
    lines = describe_against(open_against([str(path)], TINY, device="cpu", seed=0))
    assert lines["against qdm"].endswith("7 steps in 8.5 s, begun from other weights")


def test_a_run_names_its_weights() -> None:
    assert parse_against("runs/edsr-sr4/weights.safetensors").name == "edsr-sr4"
    assert parse_against("other/model.safetensors").name == "model"
    row = parse_against("s = 0: weights=a.safetensors quadtree.threshold=0")
    assert (row.name, row.weights) == ("s = 0", Path("a.safetensors"))


@pytest.mark.parametrize("text", ["a: b.safetensors", "a: x=1", ": weights=a", "a: weights=b c"])
def test_another_form_is_refused(text: str) -> None:
    assert "--against: must be FILE or 'NAME: weights=FILE KEY=VALUE ...'" in refusal(text)


def test_a_file_that_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    assert "a weights file must exist, got none" in refusal(str(tmp_path / "none.safetensors"))
    (tmp_path / "text.safetensors").write_text("no weights", encoding="utf-8")
    assert "must be a safetensors file" in refusal(str(tmp_path / "text.safetensors"))


def test_another_factor_or_window_is_refused(tmp_path: Path) -> None:
    for setting, got in (("upscale=8", "got x8"), ("window.width_hu=400", "width_hu=400")):
        path = write_edsr(tmp_path / "edsr.safetensors", setting, "training.regression.crop_px=64")
        told = refusal(str(path))
        assert "--against edsr: must be for x4" in told
        assert got in told


def test_damaged_rivals_are_refused(tmp_path: Path) -> None:
    path = write_edsr(tmp_path / "edsr.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert "must be a safetensors file, got a damaged" in refusal(str(path))


@pytest.mark.parametrize("number", ["1" + 19 * "0", 400 * "9", "-1", "inf", "nan"])
def test_huge_numbers_are_refused(refused, data: Path, tmp_path: Path, number: str) -> None:
    arguments = ("train", "edsr", "--task", "tiny", "--data", data, "--out", tmp_path / "out")
    assert refused(app, *arguments, f"--minutes={number}")
    assert not (tmp_path / "out").exists()
