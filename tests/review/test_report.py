import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from medqdm import enhance_series
from medqdm.metrics import TISSUES
from medqdm.picture import PRESETS, upsample_bicubic
from medqdm.report import (
    TALLY,
    ReportContent,
    SlicePair,
    chosen_slices,
    render_report,
    tally_slice,
)
from medqdm.report.panels import limits_of, make_panels
from medqdm.volume import Volume

UPSCALE = 4
RECORD = {
    "medqdm": "1.0", "torch": "2.0", "python": "3.11", "device": "cpu", "batch_size": 1,
    "precision": {"used": "fp32"}, "seed": 0, "draws": 4, "mean": True, "spread": True,
    "weights_sha256": "ab" * 32, "threshold_hu": 150.0,
    "task": {
        "name": "sr4", "window": {"center_hu": 0.0, "width_hu": 2000.0},
        "quadtree": {"threshold": 0.15},
        "diffusion": {"sampling_steps": 1, "num_steps": 15, "gamma": 1.0, "consistency": 0,
                      "sampler": {"name": "uniform"}},
    },
    "input": {"kind": "dicom"},
    "output": {"format": "dicom", "upscale": UPSCALE, "overlays": ["overlays/segmentation.dcm"]},
    "summary": {"share_refined": 0.25, "lr_consistency_hu": 8.2, "flat_shift_hu": -0.3,
                "flat_shift_place": "slice 1, row 9, column 9",
                "clipped_voxels": 3},
    "warnings": ["spacing <b>0.1</b> mm is odd"],
}  # fmt: skip


def pair_of(z: int, side: int = 40, *, draws: bool = True, seed: int = 0) -> SlicePair:
    """Noise over a body in air."""
    random = np.random.default_rng(seed + z)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = np.where(y**2 + x**2 < 0.7, 40, -1000).astype(np.float32)
    enhanced = upsample_bicubic(body, UPSCALE)
    enhanced += random.normal(0, 20 + z, enhanced.shape).astype(np.float32)
    refined = random.random((-(-side // 2), -(-side // 2))) < 0.3
    deviation = random.uniform(0, 50, enhanced.shape).astype(np.float32) if draws else None
    return SlicePair(z, body, enhanced, refined, deviation)


def content_of(count: int, **options: Any) -> ReportContent:
    pairs = [pair_of(z, **options) for z in range(count)]
    tallies = np.stack([
        tally_slice(p.source_hu, p.enhanced_hu, p.refined, p.deviation_hu) for p in pairs
    ])  # fmt: skip
    volume = Volume.from_spacing(np.stack([p.source_hu for p in pairs]), (2.0, 0.8, 0.8))
    return ReportContent(RECORD, volume, tallies, pairs.__getitem__)


def test_a_shift_is_found_in_its_tissue() -> None:
    lr = np.full((12, 12), 40, dtype=np.float32)
    lr[:, 6:] = -800
    hr = lr.repeat(2, axis=0).repeat(2, axis=1)
    hr[:, :12] += 7
    hr[0, 0] = 5000
    hr[-1, -1] = -5000
    tally = tally_slice(lr, hr, np.zeros((6, 6), dtype=bool))
    rows = dict(zip(TISSUES, tally["tissue"], strict=True))
    pixels, total, squares = rows["soft tissue"]
    assert pixels == 72
    assert total == pytest.approx(72 * 7 + (5000 - 47) / 4)
    assert squares == pytest.approx(71 * 49 + (7 + (5000 - 47) / 4) ** 2)
    assert rows["lung"][:2] == pytest.approx([72, (-5000 + 800) / 4])
    assert [rows[name][0] for name in ("air", "fat", "bone")] == [0, 0, 0]
    assert tally["before"].sum() == 144
    assert tally["after"].sum() == 576
    assert (tally["after"][0], tally["after"][-1]) == (1, 1)


def test_noise_alone_does_not_shift_a_tissue() -> None:
    """Pixels near a tissue's bounds would, were they picked by their own noisy value."""
    random = np.random.default_rng(0)
    truth = np.full((200, 200), -40, dtype=np.float32)  # near the upper bound of fat
    noisy = truth + random.normal(0, 12, truth.shape).astype(np.float32)
    clean = truth.repeat(2, axis=0).repeat(2, axis=1)
    tally = tally_slice(noisy, clean, np.zeros((100, 100), dtype=bool))
    pixels, total, _ = dict(zip(TISSUES, tally["tissue"], strict=True))["fat"]
    picked = noisy[(noisy >= -190) & (noisy < -30)]
    assert abs(total / pixels) < 0.5 * abs((truth.mean() - picked).mean())


def test_deviations_are_counted_inside_and_outside_of_refined_cells() -> None:
    refined = np.zeros((3, 3), dtype=bool)
    refined[0, 0] = True
    deviation = np.full((20, 20), 3.5, dtype=np.float32)
    deviation[:8, :8] = 900
    lr = np.zeros((5, 5), dtype=np.float32)
    tally = tally_slice(lr, np.zeros((20, 20), np.float32), refined, deviation)
    outside, inside = tally["deviation"]
    assert outside[3] == outside.sum() == 400 - 64
    assert inside[255] == inside.sum() == 64


def test_six_slices_are_chosen_with_the_worst_among_them() -> None:
    tallies = np.zeros(40, dtype=TALLY)
    tallies["lr_pixels"] = 1
    for worst in (0, 3, 17, 20, 39):
        tallies["lr_square_sum"] = 1.0
        tallies["lr_square_sum"][worst] = 4.0
        chosen = chosen_slices(tallies)
        assert worst in chosen
        assert len(chosen) == len(set(chosen)) == 6
        assert chosen == sorted(chosen)
        assert max(chosen) - min(chosen) > 25
    assert chosen_slices(tallies[:4]) == [0, 1, 2, 3]


def test_the_page_needs_nothing_else_and_is_the_same_each_time() -> None:
    html = render_report(content_of(7))
    assert html == render_report(content_of(7))
    assert not re.findall(r"(?:https?:)?//\w", re.sub(r"base64,[^\"]+", "", html))
    sources = re.findall(r'(?:src|href)="([^"]{0,16})', html)
    assert len(sources) == 6 * 5 * 2 + 2
    assert all(source.startswith("data:image/") for source in sources)
    assert "<script" not in html
    assert "default-src 'none'" in html


def test_the_page_tells_what_was_done() -> None:
    html = render_report(content_of(7))
    for text in ("x4", "25.0 %", "8.2 HU", "-0.3 HU", "ab" * 32, "150 HU",
                 "uniform, steps 1, gamma 1",
                 "4; the mean is written", "Research use only", "synthetic", "Slice 7 of 7",
                 "least like its source", "overlays/segmentation.dcm",
                 "Spacing &lt;b&gt;0.1&lt;/b&gt; mm is odd"):  # fmt: skip
        assert text in html, text
    assert html.count("least like its source<") == 1
    assert "<b>" not in html


@pytest.mark.parametrize(("one_step", "draws", "spread", "told"), [
    ("mean", 1, True, "no"), ("mean", 8, True, "in the draws"), ("draw", 1, True, "in the draws"),
    ("mean", 8, False, "no"),
])  # fmt: skip
def test_the_page_says_whether_draws_have_the_spread(
    one_step: str, draws: int, spread: bool, told: str
) -> None:
    diffusion = {**RECORD["task"]["diffusion"], "one_step": one_step}
    task = {**RECORD["task"], "diffusion": diffusion}
    record = {**RECORD, "task": task, "draws": draws, "mean": False, "spread": spread}
    html = render_report(replace(content_of(2), record=record))
    assert f"spread of the model&#x27;s errors</dt><dd>{told}</dd>" in html


def test_without_draws_there_is_no_uncertainty() -> None:
    html = render_report(content_of(2, draws=False))
    assert "median deviation" not in html
    assert 'class="panels of4"' in html
    assert 'class="panels of5"' not in html


def test_a_close_up_holds_the_pixels_themselves() -> None:
    pair = pair_of(0, side=64)
    volume = Volume.from_spacing(pair.source_hu[None], (2.0, 0.8, 0.8))
    panels = make_panels(pair, volume, limits_of([pair]))
    shown = np.asarray(Picture.open(BytesIO(panels[1].close_up)).convert("L"))
    factor = 4  # 64 pixels of the output on 256
    sharp = shown[factor // 2 :: factor, factor // 2 :: factor].astype(float)
    window = PRESETS["soft tissue"]
    grey = 255 * (window.normalize(pair.enhanced_hu) / 2 + 0.5)
    found = [
        np.abs(grey[y : y + 40, x : x + 64] - sharp[10:50]).max()
        for y in range(10, grey.shape[0] - 53)
        for x in range(grey.shape[1] - 63)
    ]  # without the rows of the marks
    assert min(found) < 2


def test_pictures_have_the_shape_of_the_slice_in_mm() -> None:
    pair = pair_of(0)
    volume = Volume.from_spacing(pair.source_hu[None], (2.0, 1.2, 0.6))
    for panel in make_panels(pair, volume, limits_of([pair])):
        for picture in (panel.whole, panel.close_up):
            width, height = Picture.open(BytesIO(picture)).size
            assert height == pytest.approx(2 * width, abs=1)


def test_the_size_is_bounded_even_for_noise() -> None:
    random = np.random.default_rng(0)
    enhanced = random.uniform(-1000, 1000, (2048, 2048)).astype(np.float32)
    source = enhanced[::4, ::4].copy()
    refined = random.random((256, 256)) < 0.5
    pair = SlicePair(0, source, enhanced, refined, np.abs(enhanced) / 10)
    volume = Volume.from_spacing(source[None], (2.0, 0.8, 0.8))
    panels = make_panels(pair, volume, limits_of([pair]))
    size = sum(len(panel.whole) + len(panel.close_up) for panel in panels)
    assert 6 * size * 4 / 3 < 6.6e6  # six slices in base64; CT takes half of it


@pytest.fixture
def patient(ct_series: Any) -> Path:
    folder: Path = ct_series(
        PatientName="Zyxwvut^Canary", PatientID="Canary-77", PatientBirthDate="19110711",
        StudyDescription="Canary study", SeriesDescription="Canary series",
        InstitutionName="Canary hospital", AccessionNumber="CANARY9",
    )  # fmt: skip
    return folder


def test_enhance_writes_a_report_that_names_no_patient(
    patient: Path, weights: Path, tmp_path: Path
) -> None:
    enhance_series(patient, tmp_path / "out", weights=weights, device="cpu", mean=2)
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"base64,[^\"]+", "", html).lower()
    for word in ("canary", "zyxwvut", "19110711", "20200102", str(tmp_path).lower(), "1.2.826"):
        assert word not in text, word
    assert "slice 4 of 4" in text
    assert "median deviation over 2 draws" in text


def test_every_format_has_a_report(patient: Path, weights: Path, tmp_path: Path) -> None:
    enhance_series(patient, tmp_path / "o", weights=weights, device="cpu", file_format="nifti")
    html = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert "nifti" in html


@pytest.mark.parametrize("width", [1400, 640])
def test_a_browser_shows_it(browser: Any, tmp_path: Path, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(render_report(content_of(8)), encoding="utf-8")
    browser.set_window_size(width, 860)
    browser.get(file.as_uri())
    loaded = browser.execute_script(
        "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    )
    assert loaded
    outside = browser.execute_script(
        "return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'))"
    )
    assert outside == []
    overflow = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0
    unnamed = browser.execute_script("return [...document.images].filter(i => !i.alt).length")
    assert unnamed == 0
    browser.set_window_size(1400, 860)
