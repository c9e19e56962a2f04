import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from medqdm import checkpoint, cli, io
from medqdm.config import load_task, task_names
from medqdm.enhance import enhance_series
from medqdm.errors import MedQDMError
from medqdm.volume import Volume


def run(
    *arguments: str | Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> tuple[int, str, str]:
    """The whole command line in this process, ``main`` included: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["medqdm", *map(str, arguments)])
    for name, stream in (("console", sys.stdout), ("messages", sys.stderr)):
        monkeypatch.setattr(getattr(cli, name), "_file", stream)  # "file" is a property
        monkeypatch.setattr(getattr(cli, name), "quiet", False)
    code = 0
    try:
        cli.main()
    except SystemExit as ended:  # typer ends even a good run this way
        code = int(ended.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def medqdm(capsys, monkeypatch):
    return lambda *arguments: run(*arguments, capsys=capsys, monkeypatch=monkeypatch)


def test_entry_point_answers_without_torch() -> None:
    code = "import sys; from medqdm import cli; sys.exit(any(m in sys.modules for m in " \
           "('torch', 'monai', 'pytorch_lightning')))"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    help_ = subprocess.run(
        [sys.executable, "-m", "medqdm", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("enhance", "train", "evaluate", "prepare", "tasks", "info", "import-weights"):
        assert command in help_.stdout


def test_tasks_are_listed(medqdm) -> None:
    code, out, _ = medqdm("tasks")
    assert code == 0
    assert all(name in out for name in task_names())
    assert "150 HU" in out


def test_enhance_says_what_it_found_and_did(medqdm, weights: Path, ct_series, tmp_path) -> None:
    series = ct_series(np.zeros((2, 16, 16)), PatientName="Secret^Name", PatientID="SECRET-1")
    code, out, err = medqdm(
        "enhance",
        series,
        "-o",
        tmp_path / "out",
        "--weights",
        weights,
        "--device",
        "cpu",
        "--precision",
        "fp32",  # an untrained network shifts in bf16, which is said
    )
    assert (code, err) == (0, "")
    assert "2 slices of 16 x 16" in out
    assert "on cpu, about" in out
    assert "refined, largest shift of a flat area" in out
    assert "secret" not in out.lower()
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 2


def test_dry_run_prints_a_task_that_loads_again(medqdm, tmp_path) -> None:
    code, out, _ = medqdm("train", "--task", "tiny", "--data", tmp_path, "--out", tmp_path / "run",
                          "--set", "quadtree.threshold=0.2", "--dry-run")  # fmt: skip
    assert code == 0
    assert not (tmp_path / "run").exists()
    file = tmp_path / "again.yaml"
    file.write_text(out)
    assert load_task(file) == load_task("tiny", ["quadtree.threshold=0.2"])


def test_info_names_series_and_refusals(medqdm, ct_series) -> None:
    first = ct_series(folder="all/one", PatientName="Secret^Name")
    ct_series(folder="all/two", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (first.parent / "note.txt").write_text("not DICOM")
    code, out, _ = medqdm("info", first.parent)
    assert code == 0
    assert "4 slices of 40 x 48" in out
    assert "can be enhanced" in out
    assert "refused" in out
    assert "secret" not in out.lower()
    code, out, _ = medqdm("info", first.parent, "--json")
    assert len(json.loads(out)["series"]) == 2


def test_prepare_then_evaluate(medqdm, weights: Path, tmp_path) -> None:
    data = tmp_path / "data"
    for number in range(2):
        hu = np.random.default_rng(number).normal(0, 100, (5, 64, 64))
        source = Volume.from_spacing(hu, (3.0, 0.7, 0.7))
        io.write(source, source, data / f"patient{number}.nii.gz")
    code, out, _ = medqdm("prepare", "--task", "tiny", "--data", data, "--out", tmp_path / "set")
    assert code == 0, out
    assert "10 pairs" in out
    code, out, _ = medqdm("evaluate", "--data", tmp_path / "set", "--weights", weights, "--limit",
                          "2", "--out", tmp_path / "evaluation", "--device", "cpu")  # fmt: skip
    assert code == 0, out
    assert "PSNR" in out
    names = {p.name for p in (tmp_path / "evaluation").iterdir()}
    pictures = {"detail.png", "pictures.png", "failures.png"}
    assert names == {"results.md", "results.json", *pictures}


def test_import_weights(medqdm, tmp_path) -> None:
    folder = Path(__file__).parent / "parity"
    out = tmp_path / "imported.safetensors"
    code, text, err = medqdm(
        "import-weights", "-o", out, "--task", "sr4",
        "--qdm", folder / "qdm_sr4_weights.npz", "--autoencoder", folder / "kl_vae_weights.npz",
        *[a for s in ("transformer.size=custom", "transformer.depth=2", "transformer.num_heads=4",
                      "transformer.hidden_size=48") for a in ("--set", s)],
    )  # fmt: skip
    assert code == 0, text + err
    loaded = checkpoint.load(out)
    assert loaded.qdm is not None
    assert loaded.task.diffusion.published_masking
    assert loaded.task.quadtree.inclusive


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["/nowhere"], "nowhere"),
        (["--series", "1.2.3"], "1.2.3"),
        (["--device", "tpu"], "--device: must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--set", "quadtre.threshold=1"], "did you mean quadtree"),
        (["--weights", __file__], "test_cli.py"),
        (["--task", "sr9"], "no weights for task 'sr9'"),
        (["--task=sr8"], "must be weights for task sr8 (x8), got weights of tiny (x4)"),
    ],
)
def test_mistakes_end_in_one_line_and_code_2(
    medqdm, weights: Path, ct_series, tmp_path, change: list[str], message: str
) -> None:
    series = str(ct_series(np.zeros((1, 16, 16))))
    arguments = ["enhance", series, "-o", str(tmp_path / "out"), "--weights", str(weights)]
    if change[0].startswith("/"):
        arguments[1] = change[0]
    elif change[0] == "--task":
        arguments = [*arguments[:-2], *change]
    else:
        arguments += change
    code, out, err = medqdm(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("medqdm: ")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in out + err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--debug", "-v", "--verbose"])
def test_debug_shows_where_a_mistake_came_from(
    medqdm, ct_series, tmp_path, caplog, option: str
) -> None:
    folder = ct_series(np.zeros((2, 16, 16)), RescaleSlope="0")
    (folder / "torn").write_bytes((folder / "001").read_bytes()[:300])
    arguments = ["enhance", folder, "-o", tmp_path / "out"]
    code, out, err = medqdm(*arguments)
    assert (code, len(err.splitlines()), "Traceback" in out + err + caplog.text) == (2, 1, False)
    code, _, debugged = medqdm(option, *arguments)
    assert (code, debugged.splitlines()[-1]) == (2, err.strip())
    shown = debugged + caplog.text  # the log goes to the terminal, but pytest takes it
    assert shown.count("Traceback (most recent call last)") >= 2  # the torn file's, and the end
    assert "_check_tags" in shown


def test_debug_is_in_the_help_and_its_old_names_are_not() -> None:
    text = CliRunner().invoke(cli.app, ["--help"]).output
    assert "--debug" in text
    assert "--verbose" not in text


def test_a_folder_with_one_volume_file_is_enhanced(medqdm, weights: Path, tmp_path) -> None:
    volume = Volume.from_spacing(np.zeros((2, 16, 16)), (2, 0.7, 0.7))
    io.write(volume, volume, tmp_path / "folder" / "ct.nii.gz")
    code, _, err = medqdm("enhance", tmp_path / "folder", "-o", tmp_path / "out", "--weights",
                          weights, "--device", "cpu", "--precision", "fp32")  # fmt: skip
    assert code == 0, err
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 2


def test_one_of_several_series_is_chosen(medqdm, weights: Path, ct_series, tmp_path) -> None:
    first = ct_series(np.zeros((1, 16, 16)), folder="all/one")
    ct_series(np.zeros((2, 16, 16)), folder="all/two")
    with pytest.raises(MedQDMError, match="choose one with --series"):
        enhance_series(first.parent, tmp_path / "out", weights=weights)
    uid = pydicom.dcmread(next(first.iterdir())).SeriesInstanceUID
    code, _, _ = medqdm("enhance", first.parent, "-o", tmp_path / "out", "--weights", weights,
                        "--series", uid)  # fmt: skip
    assert code == 0
    assert [p.name for p in (tmp_path / "out").glob("*.dcm")] == ["IM0001.dcm"]


def test_truncated_file_is_named(medqdm, weights: Path, ct_series, tmp_path) -> None:
    folder = ct_series(np.zeros((2, 16, 16)))
    victim = sorted(folder.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    code, _, err = medqdm("enhance", folder, "-o", tmp_path / "out", "--weights", weights)
    assert code == 2
    assert victim.name in err


def test_sigterm_leaves_nothing_behind(weights: Path, ct_series, tmp_path) -> None:
    series = ct_series(np.zeros((40, 64, 64)))
    out = tmp_path / "results" / "out"
    command = [sys.executable, "-m", "medqdm", "enhance", series, "-o", out, "--weights", weights]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("results/.out*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.terminate()
    assert running.wait(timeout=30) == 143
    assert not (tmp_path / "results").exists()
    assert len(list(series.iterdir())) == 40


def test_usage_errors_come_from_the_parser() -> None:
    result = CliRunner().invoke(cli.app, ["enhance"])
    assert result.exit_code == 2
    assert "Missing argument" in result.output


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(("enhance", f"--{name}") for name in (
            "uncertainty", "mean", "batch-size", "seed", "steps", "slice-axis",
        )),
        *(("evaluate", f"--{name}") for name in ("mean", "seed")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("number", ["1" + 19 * "0", 400 * "9", "-1", "inf", "nan"])
def test_huge_numbers_are_refused(
    medqdm, weights: Path, ct_series, tmp_path, command: str, option: str, number: str
) -> None:
    series = ct_series(np.zeros((2, 16, 16)))
    out = ("--out", tmp_path / "out")
    arguments: dict[str, tuple[str | Path, ...]] = {
        "enhance": (series, *out, "--weights", weights, "--device", "cpu"),
        "evaluate": ("--data", series.parent, *out, "--weights", weights, "--device", "cpu"),
    }
    began = time.perf_counter()
    code, _, err = medqdm(command, *arguments[command], f"{option}={number}")
    assert time.perf_counter() - began < 10
    assert code == 2
    assert "Traceback" not in err
    assert option.removeprefix("--") in err
    assert not (tmp_path / "out").exists()
