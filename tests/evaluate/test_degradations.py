"""Degradations, from the command to the files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medqdm.cli import app
from medqdm.config import load_task
from medqdm.data import prepare
from medqdm.errors import MedQDMError

Command = Callable[..., str]


@pytest.fixture
def command(model: Path, data: Path, tmp_path: Path) -> Command:
    """``medqdm evaluate`` of the tiny model; the output's text, or the error's."""

    def call(*arguments: str, on: Path = data) -> str:
        result = CliRunner().invoke(
            app,
            ["evaluate", "--data", str(on), "--weights", str(model), "--device", "cpu",
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


def test_all_degradations_are_reported_side_by_side(command: Command, tmp_path: Path) -> None:
    told = command("--degradation", "all", "--limit", "2", "--mean", "2")
    assert "paper-train" in told
    out = tmp_path / "out"
    names = ["clean", "paper-test", "paper-train"]
    assert sorted(p.name for p in out.iterdir()) == [*names, "results.json", "results.md"]
    drawn = [read(out / name / "results.json") for name in names]
    assert [d["data"]["degradation"]["poisson_scale"] for d in drawn] == [
        [0, 0], [0.05, 0.3], [0.05, 3],
    ]  # fmt: skip
    measured = drawn[0]["regions"]["whole"]["mean"]
    assert measured["mean of 2"]["variance_hu2"]["mean"] >= 0
    text = (out / "clean" / "results.md").read_text("utf-8")
    assert "## Deviation over draws" in text
    assert "| mean of 2 | whole |" in text
    summary = read(out / "results.json")["degradations"]
    assert summary["clean"]["regions"] == drawn[0]["regions"]
    text = (out / "results.md").read_text("utf-8")
    assert len(re.findall(r"^\| paper-test \|", text, flags=re.MULTILINE)) == 4
    bicubic = [
        read(out / name / "results.json")["regions"]["whole"]["mean"]["bicubic"]["psnr_db"]["mean"]
        for name in names
    ]
    assert bicubic[0] == max(bicubic)


def test_a_degradation_of_a_prepared_set_is_refused(
    command: Command, data: Path, tmp_path: Path
) -> None:
    prepare(load_task("tiny", ["slice_px=128"]), data, tmp_path / "set")
    told = command("--degradation", "clean", on=tmp_path / "set")
    assert "--degradation clean, got a prepared set" in told
