"""Samplers side by side: what they cost, their controls, the verdicts, and the report."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medqdm import checkpoint, metrics
from medqdm.build import build_autoencoder, build_qdm
from medqdm.config import load_task
from medqdm.degrade import DegradationParams
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.evaluate.run import describe
from medqdm.picture import upsample_bicubic
from medqdm.volume import Volume
from medqdm.window import Window
from studies.samplers import (
    Block,
    Comparison,
    Measured,
    Row,
    Trial,
    compare,
    compare_samplers,
    open_blocks,
    parse_rows,
    write_samplers,
)
from studies.samplers.__main__ import app
from studies.samplers.samplers import score
from studies.samplers.samplers_plot import plot
from studies.samplers.samplers_report import markdown

SETTINGS = [
    "autoencoder.latent_scale=1",
    "slice_px=128",
    "diffusion.num_steps=5",
    "diffusion.sampling_steps=1",
    "diffusion.sampler.groups.steps=[[4,0],[1,0]]",
]


def save_weights(path: Path, *settings: str) -> Path:
    """A tiny model of 2 x 2 regions whose steps do something, if nothing good."""
    task = load_task("tiny", [*SETTINGS, *settings])
    torch.manual_seed(0)
    qdm = build_qdm(task)
    with torch.no_grad():
        for parameter in qdm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    checkpoint.save(
        path,
        task=task,
        autoencoder_state=build_autoencoder(task).state_dict(),
        qdm_state=qdm.state_dict(),
        record={},
        dtype="float32",
    )
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("model") / "weights.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients of three slices: a body of noise beside a smooth half."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128] - 63.5
    for name in ("a", "b"):
        hu = np.full((3, 128, 128), -1000.0)
        hu[:, np.hypot(y, x) < 55] = 40
        hu[:, 20:60, 30:64] += random.normal(0, 200, (3, 40, 34))
        affine = np.diag([-0.7, -0.7, 3.0, 1.0])
        image = nibabel.Nifti1Image(hu.transpose(2, 1, 0).astype(np.int16), affine)
        nibabel.save(image, folder / f"{name}.nii.gz")
    return folder


def run(model: Path, data: Path, *texts: str, limit: int = 4) -> tuple[Comparison, list[str]]:
    """A comparison, and the names of the rows that ran, in order."""
    seen: list[str] = []

    def open_row(row: Row) -> Enhancer:
        return Enhancer(
            row.weights or model, device="cpu", precision="fp32", overrides=row.settings
        )

    task = checkpoint.load(model).task
    blocks = open_blocks(task, data, limit=limit, seed=0)
    rows = parse_rows(texts, task.diffusion.num_steps)
    return compare(open_row, rows, blocks, announce=seen.append), seen


@pytest.fixture(scope="module")
def found(model: Path, data: Path) -> tuple[Comparison, list[str]]:
    twin = "twin: diffusion.sampler.name=uniform diffusion.sampling_steps=2 diffusion.gamma=0"
    greedy = "greedy: diffusion.sampler.name=gain diffusion.sampler.gain.threshold=0.05"
    greedy += " diffusion.sampling_steps=5 diffusion.gamma=0"
    tss = "tss-3: diffusion.sampler.name=tss diffusion.sampling_steps=3 diffusion.gamma=0"
    return run(model, data, "uniform-2-g0", twin, greedy, tss)


Found = tuple[Comparison, list[str]]


# cost


def test_cost_counts_steps_and_regions(found: Found) -> None:
    results = found[0].results
    assert results["ancestral-5"].mean("evaluations") == 5
    assert results["uniform-2-g0"].mean("evaluations") == 2
    regions = results["ancestral-5"].mean("regions")
    assert regions is not None
    assert 1 <= regions <= 4
    assert results["ancestral-5"].mean("region_steps") == 5 * regions
    assert results["uniform-2-g0"].mean("region_steps") == 2 * regions
    assert results["tss-3"].mean("region_steps") == 3 * regions
    assert results["upstream-g0"].mean("region_steps") == 0
    assert results["upstream-g0"].mean("evaluations") == 5
    tokens = [results[name].mean("token_steps") for name in ("ancestral-5", "uniform-2-g0")]
    assert tokens[0] == 2.5 * tokens[1] > 0
    assert all((r.mean("seconds") or 0) > 0 for n, r in results.items() if n != "reference")


def test_the_same_setting_twice_gives_the_same_values(found: Found) -> None:
    a, b = (found[0].results[name].values for name in ("uniform-2-g0", "twin"))
    for patient in a:
        assert {k: v for k, v in a[patient].items() if k != "seconds"} == {
            k: v for k, v in b[patient].items() if k != "seconds"
        }
    other = found[0].results["ancestral-5"].values
    assert a["a"]["psnr_db"] != other["a"]["psnr_db"]


def test_a_model_is_left_as_it_was(model: Path, data: Path) -> None:
    opened: list[Enhancer] = []

    def open_row(row: Row) -> Enhancer:
        opened.append(Enhancer(model, device="cpu", precision="fp32", overrides=row.settings))
        return opened[-1]

    blocks = open_blocks(checkpoint.load(model).task, data, limit=2, seed=0)
    compare(open_row, parse_rows([""], 5), blocks)
    assert opened[0].engine.policy.__self__ is opened[0].engine
    assert "policy" not in vars(opened[0].engine)


# controls


def test_controls_have_the_policys_region_steps(found: Found) -> None:
    comparison, _ = found
    [greedy, tss] = comparison.trials
    assert (greedy.policy, tss.policy) == ("greedy", "tss-3")
    results = comparison.results
    steps = results["greedy"].by_patient("region_steps")
    whole = results["ancestral-5"].by_patient("region_steps")
    assert sum(steps.values()) < sum(whole.values())  # it did leave regions out
    assert greedy.random is not None
    assert results[greedy.random].by_patient("region_steps") == steps
    mixed = sum(w * (results[name].mean("region_steps") or 0) for name, w in greedy.uniform.items())
    assert mixed == pytest.approx(results["greedy"].mean("region_steps"))
    assert greedy.upstream == "upstream-g0"
    assert results["greedy"].mean("psnr_db") != results[greedy.random].mean("psnr_db")
    # tss leaves no region out: where it runs is no choice of its own
    assert (tss.random, tss.upstream) == (None, None)
    assert tss.uniform == {"uniform-3-g0": 1.0}


def test_nothing_runs_twice_but_what_a_user_asks_for(found: Found) -> None:
    comparison, ran = found
    assert len(ran) == len(set(ran))
    assert ran[:5] == ["ancestral-5", "uniform-2-g0", "twin", "greedy", "tss-3"]
    assert set(comparison.results) == {*ran, "bicubic", "reference"}
    assert all(comparison.results[name].kind == "control" for name in ran[5:])


def test_a_policy_with_hardly_any_regions_is_compared_with_upstream_alone(
    model: Path, data: Path
) -> None:
    late = "late: diffusion.sampler.name=groups diffusion.sampler.groups.error=1000"
    settings = " diffusion.sampler.groups.steps=[[0]] diffusion.gamma=1"
    comparison, _ = run(model, data, late + settings, limit=2)
    [trial] = comparison.trials
    assert trial.uniform == {"uniform-1": 1.0}  # one step each, the last
    assert (trial.random, trial.upstream) == ("random like late", "upstream-g1")
    # the first step, a look at it, and the last
    assert comparison.results["late"].mean("evaluations") == 3


# scores


def make_block() -> Block:
    random = np.random.default_rng(1)
    hr = np.full((4, 64, 64), -1000, dtype=np.float32)
    hr[:, 16:48, 12:50] = 40
    hr += random.normal(0, 10, hr.shape).astype(np.float32)
    hr = hr.clip(-1000, 1000)
    lr = metrics.reduce_by_area(hr, 4)
    volume = Volume.from_spacing(lr, (3.0, 2.0, 2.0))
    return Block("p", 3, hr, volume, Window(0, 2000), 0.5, DegradationParams())


def test_scores_are_the_metrics_of_the_stack() -> None:
    block = make_block()
    up = np.stack([upsample_bicubic(hu, 4) for hu in np.asarray(block.lr.hu)])
    values = score(up, block)
    window, hr = block.window, block.hr_hu
    psnr = [metrics.psnr_db(a, b, window) for a, b in zip(up, hr, strict=True)]
    assert values["psnr_db"] == pytest.approx(np.mean(psnr))
    assert values["mae_hu"] == pytest.approx(np.abs(up - hr).mean(), rel=1e-5)
    assert values["flicker_hu"] == metrics.flicker_hu(up)
    assert values["flicker_ratio"] == metrics.flicker_hu(up) / metrics.flicker_hu(hr) < 1
    assert values["edge_rise_mm"] == 0.5 * values["edge_rise_px"]
    assert values["edge_rise_ratio"] > 2  # four pixels from one
    coronal = metrics.plane_psnr_db(up, hr, window, 1, block.body)
    assert values["coronal_psnr_db"] == coronal != values["sagittal_psnr_db"]
    truth = score(hr, block)
    assert truth["edge_rise_ratio"] == truth["flicker_ratio"] == truth["ssim"] == 1
    assert truth["psnr_db"] == truth["sagittal_psnr_db"] == float("inf")


def test_what_cannot_be_measured_is_absent() -> None:
    block = replace(make_block(), hr_hu=np.zeros((4, 64, 64), dtype=np.float32))
    values = score(block.hr_hu + 1, block)
    assert "edge_rise_ratio" not in values
    assert "flicker_ratio" not in values
    assert values["flicker_hu"] == 0


# verdicts


def measured(name: str, psnr: Iterable[float], steps: float, **more: Any) -> Measured:
    values = {
        f"p{k}": {"psnr_db": v, "region_steps": steps, "seconds": steps / 100 + 1, "ssim": 0.9,
                  "edge_rise_ratio": 1.2}
        for k, v in enumerate(psnr)
    }  # fmt: skip
    sampler = {"sampler": {"name": more.pop("sampler", "uniform")}, "sampling_steps": 4}
    about = {"diffusion": sampler, "weights_sha256": "ab" * 32}
    row = Row(name, more.pop("family", name), ("diffusion.gamma=1", "diffusion.gamma=0"))
    return Measured(row, more.pop("kind", "setting"), values, about)


def by_hand(model: Path, *rows: Measured) -> Comparison:
    rows = (measured("ancestral-15", [30, 32], 1500, family="uniform g1"), *rows)
    trial = Trial("gain", {"u1": 0.25, "u2": 0.75}, "random like gain", "up")
    about = {"slices": [2, 5], "degradation": {**vars(DegradationParams())}}
    return Comparison(
        settings=describe(Enhancer(model, device="cpu", precision="fp32")),
        reference="ancestral-15",
        results={row.row.name: row for row in rows},
        trials=[trial] if "gain" in [row.row.name for row in rows] else [],
        patients={"p0": about, "p1": about},
    )


@pytest.fixture
def judged(model: Path) -> Comparison:
    return by_hand(
        model,
        measured("u1", [30.2, 32.2], 100, family="uniform g0"),
        measured("u2", [30.4, 32.4], 200, family="uniform g0"),
        measured("gain", [30.42, 32.40], 175, family="gain g0", sampler="gain"),
        measured("random like gain", [30.42, 32.4], 175, kind="control", sampler="gain"),
        measured("up", [33, 33], 0, kind="control", sampler="upstream"),
        measured("mine", [29.96, 31.96], 375),
        measured("mine too", [29.0, 31.96], 300),
        Measured(Row("bicubic", "bicubic"), "baseline", {"p0": {"psnr_db": 28.0}}),
    )


def test_the_best_row_is_the_cheapest_within_005_db_of_the_highest(judged: Comparison) -> None:
    assert judged.best() == "gain"  # u2 dearer, u1 worse, the control does not count
    assert judged.share("gain") == pytest.approx(175 / 1500)
    assert judged.share("bicubic") is None
    assert judged.cheap_and_good() == ["u1", "u2", "gain", "mine"]


def test_equally_cheap_rows_are_told_apart_by_time(model: Path) -> None:
    slow = measured("slow", [30, 32], 100)
    fast = measured("fast", [30, 32], 100)
    for values in fast.values.values():
        values["seconds"] /= 2
    assert by_hand(model, slow, fast).best() == "fast"


def test_differences_are_between_patients_of_both(judged: Comparison) -> None:
    difference = judged.difference("psnr_db", "gain", judged.trials[0].uniform)
    assert difference is not None
    assert difference.mean == pytest.approx((30.42 - 30.35 + 32.40 - 32.35) / 2)
    assert difference.kind == "t"
    assert judged.difference("psnr_db", "bicubic", {"u1": 1.0}).num_patients == 1
    assert judged.difference("region_steps", "bicubic", {"u1": 1.0}) is None


def test_the_text_says_who_wins_and_who_does_not_pay(judged: Comparison) -> None:
    text = markdown(judged, {"seed": 0})
    assert "- Best: **gain**" in text
    assert "at 0.25 of its region-steps or less: u1, u2, gain, mine." in text
    assert "- gain does not beat random regions, upstream alone in mean PSNR." in text
    assert "| gain | 175.0 | 0.25 u1 + 0.75 u2 | +0.060 [" in text
    assert "| **gain** | +0.410 [" in text
    assert "| bicubic | -2.000 | 28.00 | - |" in text
    assert "| p0 | 2 to 5 | none |" in text
    other = f"(weights `{'ab' * 6}`)"
    assert f"- random like gain {other}: `diffusion.gamma=0` with regions drawn by lot" in text


def test_the_plot_shows_every_row_with_a_network_and_rings_the_best(judged: Comparison) -> None:
    figure = plot(judged)
    left, middle, right = figure.axes
    drawn = {line.get_label(): line for line in left.get_lines()}
    line = drawn["uniform g0"]
    assert line.get_xdata() == pytest.approx([100 / 1500, 200 / 1500])
    assert line.get_ydata() == pytest.approx([31.2, 31.4])
    assert {"uniform g1", "gain g0", "mine", "mine too"} <= set(drawn)
    assert "bicubic" not in drawn
    styles = {name: line.get_linestyle() for name, line in drawn.items()}
    assert (styles["uniform g0"], styles["gain g0"], styles["mine"]) == ("-", "None", "None")
    for axes, x, y in ((left, 175 / 1500, 31.41), (middle, 2.75, 31.41), (right, 175 / 1500, 1.2)):
        [ring] = [line for line in axes.get_lines() if line.get_markersize() > 15]
        assert (ring.get_xdata()[0], ring.get_ydata()[0]) == pytest.approx((x, y))
    assert "gain" in figure.get_suptitle()
    low, high = left.get_ylim()
    assert low < 30.48
    assert high > 31.41
    assert "bicubic 28.00 dB" in " ".join(text.get_text() for text in left.texts)


# the whole way


def refuse(text: str) -> None:
    raise AssertionError(text)


def test_the_whole_way(model: Path, data: Path, tmp_path: Path) -> None:
    student = save_weights(tmp_path / "student.safetensors", "diffusion.gamma=0")
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app,
        [
            "--data", str(data), "--weights", str(model), "--device", "cpu",
            "--limit", "2", "--out", str(out), "--student", str(student),
            "--samplers", "uniform-1,student-2", "--samplers", "mine: diffusion.gamma=0.5",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "best: " in result.output
    assert sorted(p.name for p in out.iterdir()) == ["samplers.json", "samplers.md", "samplers.png"]
    text = (out / "samplers.json").read_text("utf-8")
    results = json.loads(text, parse_constant=refuse)
    rows = results["rows"]
    assert list(rows) == [
        "ancestral-5", "uniform-1", "student-2", "mine", "bicubic", "reference",
    ]  # fmt: skip
    assert rows["mine"]["diffusion"]["gamma"] == 0.5
    assert rows["student-2"]["weights_sha256"] != rows["mine"]["weights_sha256"]
    assert rows["student-2"]["mean"]["evaluations"]["mean"] == 2
    assert rows["uniform-1"]["share_of_region_steps"] == pytest.approx(0.2)
    assert results["data"]["patients"]["a"]["slices"] == [0, 1]
    assert str(tmp_path) not in text + (out / "samplers.md").read_text("utf-8")


def refused(data: Path, model: Path, out: Path, **options: Any) -> str:
    with pytest.raises(MedQDMError) as error:
        compare_samplers(data, out, weights=model, device="cpu", limit=2, **options)
    assert not out.exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("x: slice_px=64", "row x: slice_px must be 128 like the others', got 64"),
        ("x: window.width_hu=400", "row x: window must be "),
        ("x: diffusion.sampling_steps=9", "row x: diffusion.sampling_steps must be 1 to 5, got 9"),
        ("x: diffusion.gama=1", "did you mean diffusion.gamma"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_anything_runs(
    change: str, message: str, model: Path, data: Path, tmp_path: Path
) -> None:
    ran: list[str] = []
    told = refused(data, model, tmp_path / "out", samplers=[change], announce=ran.append)
    assert message in told
    assert ran == []


def test_an_earlier_comparison_is_replaced_only_if_asked(
    judged: Comparison, tmp_path: Path
) -> None:
    write_samplers(judged, tmp_path / "out", about={})
    with pytest.raises(MedQDMError, match="must be empty"):
        write_samplers(judged, tmp_path / "out", about={})
    write_samplers(judged, tmp_path / "out", about={}, overwrite=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").touch()
    with pytest.raises(MedQDMError, match=r"with samplers\.json"):
        write_samplers(judged, tmp_path / "letters", about={}, overwrite=True)
