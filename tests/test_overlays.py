"""``medqdm enhance --segmentation --parametric-map``: the objects appear with the series."""

import json
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from typer.testing import CliRunner

from medqdm import enhance_series, io
from medqdm.batch import enhance_all
from medqdm.cli import app
from medqdm.enhance import enhance_volume
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.review import load_review


@pytest.fixture
def source(ct_series: Any) -> Path:
    folder: Path = ct_series(np.random.default_rng(0).normal(0, 300, (2, 16, 16)).round())
    return folder


def in_slice_order(image: Any, slices: list[Path]) -> Any:
    """The frames of an object, each where the slice is that it names."""
    uids = [
        item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for item in image.PerFrameFunctionalGroupsSequence
    ]
    return image.pixel_array[[uids.index(pydicom.dcmread(f).SOPInstanceUID) for f in slices]]


def test_they_appear_with_the_series_and_do_not_disturb_it(
    source: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    enhancer = Enhancer(weights, device="cpu", draws=2)
    for parameter in enhancer.engine.qdm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # so that draws differ
    enhance_volume(enhancer, io.read(source), out, segmentation=True, parametric_map=True)
    names = ["overlays/segmentation.dcm", "overlays/uncertainty.dcm"]
    assert json.loads((out / "run.json").read_text())["output"]["overlays"] == names
    refined = np.load(out / "refined.npz")["refined"]
    deviation = np.load(out / "uncertainty.npz")["deviation_hu"]
    slices = sorted(out.glob("IM*.dcm"))
    segmentation = highdicom.seg.segread(out / names[0])
    marked = in_slice_order(segmentation, slices).astype(bool)
    np.testing.assert_array_equal(marked, refined.repeat(8, axis=1).repeat(8, axis=2))
    uncertainty = highdicom.pm.ParametricMap.from_file(out / names[1])
    map_hu = in_slice_order(uncertainty, slices)
    np.testing.assert_array_equal(map_hu, deviation)
    assert marked.any()
    assert map_hu.any()

    series = {pydicom.dcmread(file).SeriesInstanceUID for file in slices}
    assert len(series) == 1
    assert io.read(out).shape == (2, 64, 64)
    assert load_review(out, source).num_slices == 2


def test_none_are_written_unless_asked_for(source: Path, weights: Path, tmp_path: Path) -> None:
    enhance_series(source, tmp_path / "out", weights=weights, device="cpu")
    assert not (tmp_path / "out" / "overlays").exists()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["output"]["overlays"] == []


def test_a_finished_run_without_them_is_not_taken_for_one_with_them(
    source: Path, weights: Path, tmp_path: Path
) -> None:
    out, options = tmp_path / "out", {"weights": weights, "device": "cpu", "resume": True}
    assert enhance_series(source, out, **options).finished is None
    assert enhance_series(source, out, **options).finished is not None
    with pytest.raises(MedQDMError, match="add --overwrite to make it anew"):
        enhance_series(source, out, segmentation=True, **options)
    enhance_series(source, out, segmentation=True, overwrite=True, **options)
    assert enhance_series(source, out, segmentation=True, **options).finished is not None
    (out / "overlays" / "segmentation.dcm").unlink()
    again = enhance_series(source, out, segmentation=True, overwrite=True, **options)
    assert again.finished is None


def test_a_broken_run_leaves_no_half_of_them(
    source: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "out", {"weights": weights, "device": "cpu", "segmentation": True}

    def interrupt(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medqdm.enhance.write_segmentation", interrupt)
        with pytest.raises(KeyboardInterrupt):
            enhance_series(source, out, resume=True, dates="source", **options)
    assert not out.exists()
    enhance_series(source, out, resume=True, dates="source", **options)
    enhance_series(source, tmp_path / "whole", dates="source", **options)
    for name in ("overlays/segmentation.dcm", "report.html", "IM0001.dcm"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_each_series_of_a_folder_gets_its_own(
    ct_series: Any, weights: Path, tmp_path: Path
) -> None:
    for name in ("root/a", "root/b"):
        ct_series(np.random.default_rng(0).normal(0, 300, (1, 16, 16)), folder=name)
    rows = enhance_all(
        Enhancer(weights, device="cpu"), tmp_path / "root", tmp_path / "out", segmentation=True
    )
    uids = set()
    for row in rows:
        folder = tmp_path / "out" / row.output
        assert (folder / "report.html").is_file()
        uids.add(str(pydicom.dcmread(folder / "overlays" / "segmentation.dcm").SeriesInstanceUID))
    assert len(uids) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parametric-map"], "--parametric-map: must go with several draws .*--uncertainty 8"),
        (["--segmentation", "--format", "nifti"], "--segmentation: must go with --format dicom"),
        (["--parametric-map", "--mean", "2", "--format", "mha"], "must go with --format dicom"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_what_cannot_be_had_is_told_before_the_work(
    ct_series: Any, tmp_path: Path, options: list[str], message: str, count: int
) -> None:
    for k in range(count):
        ct_series(np.zeros((1, 16, 16)), folder=f"root/{k}")
    command = ["enhance", str(tmp_path / "root"), "-o", str(tmp_path / "out"), *options]
    ended = CliRunner().invoke(app, [*command, "--weights", "no-such-file"])
    assert isinstance(ended.exception, MedQDMError)
    with pytest.raises(MedQDMError, match=message):
        raise ended.exception
    assert not (tmp_path / "out").exists()
