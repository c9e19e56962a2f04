"""What a benchmark counts and how it adds up; never how fast anything is."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from medqdm.build import build_qdm
from medqdm.config import load_task
from medqdm.diffusion.quadtree import Quadtree
from medqdm.errors import MedQDMError
from medqdm.models.windows import WindowIndex
from studies import benchmark
from studies.benchmark import report
from studies.benchmark.__main__ import app
from studies.benchmark.measure import MATRIX_SIDE, PeakMemory, matrix_rate, multiply_adds
from studies.benchmark.pipeline import Outcome, dense_index, refined_difference
from studies.benchmark.run import STAGES, Benchmark, variants_for
from studies.benchmark.subject import Subject, open_subject, phantom

CPU = torch.device("cpu")


def subject(series: Path | None = None, **changes) -> Subject:
    settings = {
        "task": "tiny", "weights": None, "device": "cpu", "settings": ["slice_px=128"],
        "series_uid": None, "num_slices": 2, "degraded": False, "random": False,
    }  # fmt: skip
    return open_subject(series, **(settings | changes))


@pytest.fixture(autouse=True, scope="module")
def small_matrices() -> Iterator[None]:
    """The machine's rate is of no interest here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MATRIX_SIDE, "cpu", 128)
        yield


@pytest.fixture(scope="module")
def found() -> Benchmark:
    """The tiny task on two phantom slices of four windows each."""
    return benchmark.run_benchmark(subject(), repeats=1)


@pytest.mark.parametrize(("size", "tera"), [("S", 1.34), ("B", 5.17), ("L", 18.20)])
def test_multiply_adds_are_the_published_ones(size: str, tera: float) -> None:
    task = load_task("sr4", [f"transformer.size={size}", "autoencoder.image_channels=3"])
    with torch.device("meta"):
        qdm = build_qdm(task)
    counted = multiply_adds(qdm, WindowIndex.everywhere((1, 128, 128), CPU), 15)
    assert counted / 1e12 == pytest.approx(tera, abs=0.005)


@pytest.mark.parametrize("corrector", ["null", "{channels: 8, blocks: 3}"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_multiply_adds_are_those_torch_counts(share: float, corrector: str) -> None:
    task = load_task("tiny", ["slice_px=128", f"transformer.corrector={corrector}"])
    qdm = build_qdm(task).eval()
    index = WindowIndex(torch.full((2, 16, 16), bool(share)))
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter does not know the CPU's fused attention
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        modulations = qdm.modulations(torch.tensor([3]))
        once = counter.get_total_flops()
        qdm(torch.rand(2, 3, 32, 32), modulations, torch.rand(2, 1, 32, 32), index)
    assert 2 * multiply_adds(qdm, index, 1) == counter.get_total_flops() - once


def test_work_follows_tokens() -> None:
    qdm = build_qdm(load_task("tiny", ["slice_px=128"]))
    refined = torch.zeros(1, 16, 16, dtype=torch.bool)
    refined[0, 3, 3:5] = True
    none = multiply_adds(qdm, WindowIndex(torch.zeros_like(refined)), 1)
    tokens = multiply_adds(qdm, WindowIndex(refined, packing="tokens"), 1)
    windows = multiply_adds(qdm, WindowIndex(refined), 1)
    dense = multiply_adds(qdm, WindowIndex.everywhere((1, 32, 32), CPU), 1)
    assert none < tokens < windows < dense
    assert multiply_adds(qdm, WindowIndex(refined), 7) == 7 * windows
    both = WindowIndex(refined.expand(2, -1, -1))
    assert multiply_adds(qdm, both, 1) == 2 * windows


def test_peak_memory_counts_what_the_block_adds() -> None:
    before = np.ones(30_000_000)
    with PeakMemory(CPU) as memory:
        for _ in range(2):
            block = np.ones(20_000_000)
            del block
    assert 155e6 < memory.num_bytes < 0.9 * (160e6 + before.nbytes)


def test_matrix_rate_is_work_over_time(monkeypatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))  # each lap takes a second
    assert matrix_rate(CPU, torch.float32, side=16) == pytest.approx(3 * 2 * 16**3)


def test_dense_keeps_the_refined_regions() -> None:
    refined = torch.zeros(1, 8, 16, dtype=torch.bool)
    refined[0, 2, 12] = True
    dense, windows = dense_index(refined), WindowIndex(refined)
    assert (dense.count, windows.count) == (128, 64)
    assert torch.equal(dense.refined, windows.refined)


def test_difference_to_dense_is_that_of_refined_latents() -> None:
    refined = torch.zeros(1, 8, 8, dtype=torch.bool)
    refined[0, 1, 1] = True  # latents 2 and 3 along both axes
    z = torch.zeros(1, 3, 16, 16)
    one, other = (Outcome({}, np.zeros(1), WindowIndex(refined), z.clone()) for _ in range(2))
    other.z_0[0, 0, 9, 9] = 5.0
    assert refined_difference(one, other) == 0
    other.z_0[0, 1, 2, 3] = -0.25
    assert refined_difference(one, other) == 0.25


def test_variants_need_bf16_in_hardware() -> None:
    names = [variant.name for variant in variants_for(15, has_bf16=True)]
    assert names == [
        "dense fp32, 15 steps", "windows fp32, 15 steps", "tokens fp32, 15 steps",
        "dense bf16, 15 steps", "tokens bf16, 15 steps", "tokens bf16, 8 steps",
        "tokens bf16, 4 steps", "tokens bf16, 1 step",
    ]  # fmt: skip
    assert {v.precision for v in variants_for(15, has_bf16=False)} == {"fp32"}


def test_phantom_has_a_quarter_of_its_cells_refined() -> None:
    window = load_task("sr4").hu_window
    lr = torch.from_numpy(window.normalize(phantom(128)))[None, None]
    assert 0.2 < float(Quadtree(lr, 0.15).density) < 0.3
    assert np.array_equal(phantom(32, seed=1), phantom(32, seed=1))
    assert not np.array_equal(phantom(32, seed=1), phantom(32, seed=2))


def test_series_are_cut_or_degraded_to_one_tile(ct_series) -> None:
    hu = np.tile(np.arange(40, dtype=np.int16), (3, 40, 1))
    series = ct_series(hu)
    asis = np.asarray(subject(series).lr.hu)  # tiles of 32
    assert np.array_equal(asis, hu[[0, 2], 4:36, 4:36])
    small = subject(series, num_slices=4, settings=["slice_px=256"])
    assert small.lr.shape == (4, 64, 64)
    degraded = subject(series, degraded=True)
    assert degraded.lr.shape == (2, 32, 32)
    assert degraded.lr.spacing_mm == pytest.approx((3.2, 2.4))


def test_weights_and_settings_must_fit(weights: Path) -> None:
    with pytest.raises(MedQDMError, match=r"--set transformer.size: .* add --random"):
        subject(weights=weights, settings=["transformer.size=S"])
    with pytest.raises(MedQDMError, match="--random: must stand without --weights"):
        subject(weights=weights, random=True)
    assert not subject(weights=weights, settings=["transformer.packing=tokens"]).is_random
    assert subject().is_random


def test_random_networks_have_no_empty_branch() -> None:
    engine = subject().enhancer.engine
    assert all(bool(p.any()) for p in engine.parameters() if p.ndim > 1)
    assert torch.equal(subject().enhancer.engine.qdm.upstream.head.linear.weight,
                       engine.qdm.upstream.head.linear.weight)  # fmt: skip


def test_figures_of_the_variants_add_up(found: Benchmark) -> None:
    dense, windows, tokens = found.variants[:3]
    for measured in found.variants:
        assert tuple(measured.seconds) == STAGES
        assert measured.total == pytest.approx(sum(measured.seconds.values()))
        assert measured.speedup == pytest.approx(dense.total / measured.total)
        assert measured.flops == pytest.approx(
            2 * measured.multiply_adds / measured.seconds["denoise"]
        )
        rate = found.matrix_flops[measured.variant["precision"]]
        assert measured.matrix_share == pytest.approx(measured.flops / rate)
    assert dense.tokens == 256
    assert tokens.tokens == 256 * found.about["share_refined"]
    assert windows.tokens == 64 * windows.windows
    assert tokens.multiply_adds < dense.multiply_adds
    assert windows.dense_difference is not None
    assert windows.dense_difference <= 1e-4
    assert all((m.shift_hu is None) == (m.variant["precision"] == "fp32") for m in found.variants)
    bf16 = [m.shift_hu for m in found.variants if m.shift_hu is not None]
    assert all(0 < shift < 50 for shift in bf16)


def test_report_holds_every_figure(found: Benchmark, tmp_path: Path) -> None:
    benchmark.write_report(found, tmp_path / "out")
    benchmark.write_json(found, tmp_path / "found.json")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "results.json", "results.md", "benchmark.png",
    }  # fmt: skip
    data = json.loads((tmp_path / "found.json").read_text())
    assert data == json.loads((tmp_path / "out" / "results.json").read_text())
    assert [v["name"] for v in data["variants"]] == [v.name for v in found.variants]
    assert data["about"]["weights_sha256"] is None
    text = (tmp_path / "out" / "results.md").read_text()
    assert "random weights" in text
    for table in report.tables(found):
        assert table.title in text
        assert all(len(row) == len(table.head) for row in table.rows)
    with pytest.raises(MedQDMError, match="--overwrite"):
        benchmark.write_report(found, tmp_path / "out")


def test_command_measures_weights_on_a_series(weights: Path, ct_series, tmp_path: Path) -> None:
    series = ct_series(np.full((1, 20, 20), 30))
    arguments = [series, "--weights", weights, "--device", "cpu", "--quick",
                 "--repeats", 1, "--json", tmp_path / "found.json"]  # fmt: skip
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert "Seconds a slice, from DICOM to DICOM" in result.output
    data = json.loads((tmp_path / "found.json").read_text())
    assert data["about"]["weights_sha256"]
    assert data["about"]["share_refined"] == 0
    assert str(series) not in json.dumps(data)


def test_the_papers_autoencoder_can_be_what_others_are_compared_with() -> None:
    first, *rest = variants_for(15, has_bf16=True, has_paper=True)
    assert first == ("dense", "fp32", 15, "paper")
    assert rest == variants_for(15, has_bf16=True)
    light = ["slice_px=64", "autoencoder={light: {channels: 8, decoder_blocks: 1}}"]
    small = subject(settings=light, random=True)
    assert small.enhancer.engine.task.autoencoder.light is not None
    found = benchmark.run_benchmark(small, repeats=1, quick=True, paper_autoencoder=True)
    paper, dense = found.variants[:2]
    assert (paper.name, dense.name) == ("KL-VAE dense fp32, 15 steps", "dense fp32, 15 steps")
    assert paper.speedup == 1
    assert paper.seconds["decode"] > 3 * dense.seconds["decode"]  # 55 M parameters against 0.02 M
    windows = next(m for m in found.variants if m.variant["packing"] == "windows")
    assert windows.dense_difference is not None
    assert windows.dense_difference < 1e-4
    deep = subject(settings=["autoencoder={light: {compression: 8}}", "slice_px=128"], random=True)
    with pytest.raises(MedQDMError, match="--paper-autoencoder: the task's latents must be of 4"):
        benchmark.run_benchmark(deep, repeats=1, quick=True, paper_autoencoder=True)


@pytest.mark.parametrize("option", ["--slices", "--repeats"])
@pytest.mark.parametrize("number", ["1" + 19 * "0", 400 * "9", "-1", "inf", "nan"])
def test_huge_numbers_are_refused(refused, option: str, number: str) -> None:
    assert refused(app, "--quick", f"{option}={number}")
