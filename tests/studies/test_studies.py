"""Thresholds, lesions and the error decomposition, from the command to the files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from typer.testing import CliRunner

from medqdm import io, metrics
from medqdm.config import load_task
from medqdm.data import Pair, prepare
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate import Evaluation
from medqdm.evaluate.methods import enhance_one
from medqdm.loading import bundled_weights
from studies.detectability.__main__ import app as detectability
from studies.error_decomposition import measure_budget
from studies.error_decomposition.__main__ import app as error
from studies.error_decomposition.budget import (
    BICUBIC,
    DENSE,
    DRAW,
    IN_TILES,
    MODEL,
    NO_TRANSFORMER,
    STAGES,
    TRUE_EVERYWHERE,
    TRUE_REFINED,
    TRUE_UNREFINED,
    TRUE_WITH_TEXTURE,
    Tiled,
    draws,
    stages,
    true_until,
)
from studies.error_decomposition.budget_report import losses, markdown
from studies.thresholds import parse_thresholds
from studies.thresholds.__main__ import app as thresholds

Image = NDArray[np.float32]
HR_SLICES = Path(__file__).parent.parent / "data" / "hr-slices"


Command = Callable[..., str]
APPS = {"thresholds": thresholds, "detectability": detectability, "error": error}


@pytest.fixture
def command(model: Path, data: Path, tmp_path: Path) -> Command:
    """A study of the tiny model; the output's text, or the error's."""

    def call(study: str, *arguments: str, on: Path = data) -> str:
        result = CliRunner().invoke(
            APPS[study],
            ["--data", str(on), "--weights", str(model), "--device", "cpu",
             "--out", str(tmp_path / "out"), *arguments],
        )  # fmt: skip
        if isinstance(result.exception, MedQDMError):
            return str(result.exception)
        assert result.exit_code == 0, result.output
        return result.output

    return call


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


# thresholds


def test_thresholds_are_rising_numbers() -> None:
    assert parse_thresholds("0.3,0,0.15,0.3") == [0.0, 0.15, 0.3]
    for text in ("", "a", "0,-1", "0,3", "nan"):
        with pytest.raises(MedQDMError, match="--thresholds: must be numbers from 0 to 2"):
            parse_thresholds(text)


def test_a_higher_threshold_runs_fewer_tokens_and_all_rows_are_there(
    command: Command, tmp_path: Path
) -> None:
    told = command("thresholds", "--thresholds", "0,0.1,2")
    assert "thresholds.md" in told
    files = ["thresholds.json", "thresholds.md", "thresholds.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == files
    results = read(tmp_path / "out" / "thresholds.json")
    assert results["threshold_hu"] == {"s = 0": 0, "s = 0.1": 100, "s = 0.15": 150, "s = 2": 2000}
    mean = results["regions"]["whole"]["mean"]
    tokens = [mean[name]["tokens"]["mean"] for name in ("s = 0", "s = 0.1", "s = 0.15", "s = 2")]
    assert tokens[0] > tokens[1] >= tokens[2] > tokens[3] == 0
    assert mean["s = 0"]["windows"]["mean"] == 4
    assert mean["s = 2"]["windows"]["mean"] == 0
    assert "s = 0.15_minus" in results["regions"]["whole"]
    text = (tmp_path / "out" / "thresholds.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| (\*\*)?s = ", line)]
    assert [row.split("|")[1].strip() for row in rows[:4]] == [
        "s = 0", "s = 0.1", "**s = 0.15**", "s = 2",
    ]  # fmt: skip


# lesions


def test_lesions_are_looked_for_at_each_threshold(command: Command, tmp_path: Path) -> None:
    told = command("detectability", "--thresholds", "0", "--degradation", "clean")
    assert "- No verdict: of no kind does bicubic show 3 discs" in told  # so few slices
    files = ["discs.png", "lesions.json", "lesions.md", "lesions.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == files
    results = read(tmp_path / "out" / "lesions.json")
    assert {row["method"] for row in results["rows"]} == {"bicubic", "s = 0", "s = 0.15"}
    assert results["default"] == "s = 0.15"
    assert results["data"]["degradation"]["gaussian_probability"] == 1  # as it was done
    bicubic = [row["recovered"] for row in results["rows"] if row["method"] == "bicubic"]
    assert np.mean(bicubic) > 0.2


def test_lesions_of_a_prepared_set_are_refused(
    command: Command, data: Path, tmp_path: Path
) -> None:
    task = load_task("tiny", ["slice_px=128"])
    prepare(task, data, tmp_path / "set")
    told = command("detectability", on=tmp_path / "set")
    assert "must be a folder of volumes for lesions" in told


# budget


@pytest.fixture(scope="module")
def chest() -> Pair:
    """A real chest slice, reduced by area and noisy."""
    volume = io.read(HR_SLICES / "chest-covid-cap001")
    task = load_task("sr4-t")
    hr = task.hu_window.clip(np.asarray(volume.hu[1]))
    noise = np.random.default_rng(0).normal(0, 15, (128, 128)).astype(np.float32)
    lr = task.hu_window.clip(metrics.reduce_by_area(hr, 4) + noise)
    return Pair(hr_hu=hr, lr_hu=lr, patient="chest", slice=7, spacing_mm=0.7)


@pytest.fixture(scope="module")
def sr4() -> Enhancer:
    return Enhancer(bundled_weights("sr4"), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def drawing() -> Enhancer:
    settings = ["diffusion.sampling_steps=3", "diffusion.one_step=draw"]
    return Enhancer(bundled_weights("sr4"), device="cpu", precision="fp32", overrides=settings)


@pytest.fixture(scope="module")
def budget(sr4: Enhancer, drawing: Enhancer, chest: Pair) -> Evaluation:
    return measure_budget(sr4, [chest], drawing)


@pytest.fixture(scope="module")
def outputs(sr4: Enhancer, chest: Pair) -> dict[str, Image]:
    return dict(stages(sr4, chest))


def psnr(found: Evaluation, stage: str) -> float:
    mean = found.mean("psnr_db", stage)
    assert mean is not None
    return mean.mean


def test_the_more_truth_the_better(budget: Evaluation) -> None:
    assert list(STAGES) == budget.methods[: len(STAGES)]
    assert psnr(budget, TRUE_EVERYWHERE) > psnr(budget, TRUE_REFINED) > psnr(budget, MODEL)
    assert psnr(budget, TRUE_EVERYWHERE) > psnr(budget, TRUE_UNREFINED) > psnr(budget, MODEL)
    assert psnr(budget, MODEL) > psnr(budget, NO_TRANSFORMER) > psnr(budget, BICUBIC)
    assert psnr(budget, DENSE) == pytest.approx(psnr(budget, MODEL), abs=0.3)
    assert psnr(budget, IN_TILES) == pytest.approx(psnr(budget, MODEL), abs=0.3)


def test_draws_lose_with_each_step_that_they_sample(
    budget: Evaluation, drawing: Enhancer, chest: Pair
) -> None:
    chain = [TRUE_WITH_TEXTURE, true_until(0), true_until(7), DRAW]
    assert budget.methods[len(STAGES) :] == chain
    reached = [psnr(budget, stage) for stage in (TRUE_EVERYWHERE, *chain)]
    assert reached[0] > reached[1] + 1  # texture is chance
    assert reached[2] == pytest.approx(reached[1], abs=0.8)  # step 0 is all but the truth
    assert reached[2] > reached[3] + 0.5
    assert reached[3] > reached[4] + 0.5
    assert dict(draws(drawing, chest))[DRAW] == pytest.approx(
        drawing.enhance_slice(chest["lr_hu"], position_mm=7.0).hu, abs=0.5
    )
    section = markdown(budget, {}).partition("## Draws")[2].partition("## Seams")[0]
    assert "steps 3, gamma 1, noise as strong as the model's errors" in section
    assert f"| {true_until(7)} |" in section


def test_draws_whose_last_step_would_start_anew_are_refused(sr4: Enhancer, chest: Pair) -> None:
    with pytest.raises(MedQDMError, match=r"diffusion.one_step must be draw, got mean"):
        next(draws(sr4, chest))


def test_losses_are_differences_of_stages(budget: Evaluation) -> None:
    lost = losses(budget)
    mask = lost["unrefined regions (the mask)"]
    assert mask.mean == pytest.approx(psnr(budget, TRUE_EVERYWHERE) - psnr(budget, TRUE_REFINED))
    assert 0 < mask.mean < lost["both together"].mean
    parts = mask.mean + lost["denoiser in refined regions"].mean
    assert lost["both together"].mean < parts


def test_the_models_row_is_what_enhancing_gives_and_truth_goes_where_it_should(
    sr4: Enhancer, chest: Pair, outputs: dict[str, Image]
) -> None:
    done = sr4.enhance_slice(chest["lr_hu"], position_mm=7.0)
    assert np.abs(outputs[MODEL] - done.hu).max() < 0.5
    assert np.abs(outputs[NO_TRANSFORMER] - done.hu).max() > 5

    # far from refined regions, because the decoder's reach mixes what lies near
    refined = done.refined.repeat(8, axis=0).repeat(8, axis=1)
    far = ndimage.binary_erosion(~refined, iterations=24, border_value=1)
    assert far.sum() > 1000

    def apart(one: str, other: str) -> float:
        return float(np.abs(outputs[one] - outputs[other])[far].mean())

    assert apart(TRUE_UNREFINED, TRUE_EVERYWHERE) < apart(TRUE_UNREFINED, MODEL) / 3
    assert apart(TRUE_REFINED, MODEL) < apart(TRUE_REFINED, TRUE_EVERYWHERE) / 3


def test_tiles_meet_near_the_middle_and_change_little_elsewhere(
    sr4: Enhancer, chest: Pair, outputs: dict[str, Image]
) -> None:
    tiled = Tiled(sr4)
    borders = tiled.borders((128, 128))
    assert borders.rows == borders.columns == [224, 288]  # 112 and 128 of 240, from 56 on, times 4
    cut, _ = enhance_one(tiled, chest["lr_hu"], 7.0)
    assert cut.shape == outputs[MODEL].shape
    assert 0 < np.abs(cut - outputs[MODEL]).mean() < 10


def test_the_budget_is_written(command: Command, tmp_path: Path) -> None:
    told = command("error", "--limit", "2", "--degradation", "clean")
    assert "true latent everywhere" in told
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["budget.json", "budget.md"]
    results = read(tmp_path / "out" / "budget.json")
    assert results["data"]["degradation"]["true_kernel_sizes"] == []
    assert set(results["regions"]["whole"]["mean"]) == {*STAGES, "reference"}
    text = (tmp_path / "out" / "budget.md").read_text("utf-8")
    assert "## Draws" not in text  # the weights have no spread
    for title in ("## Stages", "## What is lost", "## Seams"):
        assert title in text


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("thresholds", ["--thresholds", "0,x"], "--thresholds: must be numbers from 0 to 2"),
        ("detectability", ["--degradation", "all"], "--degradation: must be one preset, got all"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    name: str, arguments: list[str], message: str, command: Command, tmp_path: Path
) -> None:
    told = command(name, *arguments)
    assert message in told
    assert "\n" not in told
    assert not (tmp_path / "out").exists()
