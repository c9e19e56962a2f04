"""Many series: each on its own, one loaded model, failures at the end."""

import csv
import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medqdm import batch, cli, enhance, io, loading
from medqdm.batch import enhance_all, find_many
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.io import dicom_scan
from medqdm.volume import Volume


@pytest.fixture
def root(ct_series, tmp_path: Path) -> Path:
    """Two patients: two series and a scout in one folder, and a damaged series elsewhere."""
    rng = np.random.default_rng(0)

    def make(folder: str, **tags: object) -> Path:
        hu = rng.normal(0, 200, (2, 16, 16)).round()
        return ct_series(hu, folder=folder, **tags)

    make("root/a", PatientName="Canary^One", PatientID="CANARY-1")
    for name, tags in (("b", {}), ("scout", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})):
        made = make(f"made/{name}", PatientName="Canary^One", **tags)
        for file in made.iterdir():
            shutil.move(file, tmp_path / "root" / "a" / f"{name}-{file.name}")
    bad = make("root/second/deep", PatientName="Canary^Two", PatientID="CANARY-2")
    victim = sorted(bad.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-50])
    (tmp_path / "root" / "note.txt").write_text("not DICOM")
    return tmp_path / "root"


@pytest.fixture
def enhancer(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Enhancer:
    for companion in ("_add_companions", "_add_report"):
        monkeypatch.setattr(f"medqdm.enhance.{companion}", lambda *_: None)
    return Enhancer(weights, device="cpu", precision="fp32")


def read_summary(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_series_is_done_and_failures_are_kept_apart(enhancer, root, tmp_path) -> None:
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    out = tmp_path / "out"
    rows = enhance_all(enhancer, root, out)
    statuses = sorted(row.status for row in rows)
    assert statuses == ["enhanced", "enhanced", "refused", "scout", "skipped"]
    for row in rows:
        if row.status == "skipped":
            assert (row.slices, row.message) == (1, "not DICOM")
            continue
        assert (out / row.output).exists() == (row.status == "enhanced")
        assert row.is_failure == (row.status == "refused")
    done = [row for row in rows if row.status == "enhanced"]
    for row in done:
        written = io.read(out / row.output)
        assert written.shape == (2, 64, 64)
        assert (row.slices, row.rows, row.columns) == (2, 16, 16)
        assert (row.spacing_z_mm, row.spacing_y_mm, row.spacing_x_mm) == (2.5, 0.8, 0.6)
    (refused,) = (row for row in rows if row.status == "refused")
    assert "truncated" in refused.message
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before

    listed = read_summary(out)
    assert [line["status"] for line in listed] == [row.status for row in rows]
    assert [line["series"] for line in listed] == [row.series for row in rows]
    assert float(listed[rows.index(done[0])]["seconds_per_slice"]) > 0
    text = (out / "summary.csv").read_text()
    assert "canary" not in text.lower()
    assert not list(out.glob(".*"))


def test_outputs_are_those_of_single_runs(enhancer, root, tmp_path) -> None:
    rows = enhance_all(enhancer, root, tmp_path / "out", dates="source", transfer_syntax="rle")
    for number, row in enumerate(row for row in rows if row.status == "enhanced"):
        volume = io.read(root, series=row.series)
        single = tmp_path / f"single{number}"
        enhance.enhance_volume(enhancer, volume, single, dates="source", transfer_syntax="rle")
        for file in single.glob("*.dcm"):
            assert file.read_bytes() == (tmp_path / "out" / row.output / file.name).read_bytes()


def test_resume_leaves_out_what_is_finished(enhancer, root, tmp_path) -> None:
    out = tmp_path / "out"

    def interrupt(row: batch.Row) -> None:
        if row.status == "enhanced":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enhance_all(enhancer, root, out, resume=True, report=interrupt)
    assert sum(line["status"] == "waiting" for line in read_summary(out)) >= 1
    with pytest.raises(MedQDMError, match="must be empty, got files in it"):
        enhance_all(enhancer, root, out)
    rows = enhance_all(enhancer, root, out, resume=True)
    statuses = sorted(row.status for row in rows)
    assert statuses == ["enhanced", "finished before", "refused", "scout", "skipped"]
    again = enhance_all(enhancer, root, out, resume=True)
    assert sorted(row.status for row in again)[:2] == ["finished before"] * 2
    assert [row.share_refined for row in again] == [row.share_refined for row in rows]
    anew = enhance_all(enhancer, root, out, overwrite=True)
    assert sorted(row.status for row in anew)[:2] == ["enhanced"] * 2


def test_a_corrected_patient_is_made_anew_and_the_others_are_left_out(
    enhancer, root, tmp_path
) -> None:
    out = tmp_path / "out"
    rows = enhance_all(enhancer, root, out, resume=True)
    row = next(r for r in rows if r.status == "enhanced")
    for file in (root / "a").iterdir():
        dataset = pydicom.dcmread(file)
        if dataset.SeriesInstanceUID == row.series:
            dataset.PatientName = "Canary^Corrected"
            dataset.save_as(file)
    before = {p: p.read_bytes() for p in (out / row.output).iterdir()}
    again = enhance_all(enhancer, root, out, resume=True)
    assert sorted(r.status for r in again)[:2] == ["failed", "finished before"]
    (failed,) = (r for r in again if r.status == "failed")
    assert failed.output == row.output
    assert "add --overwrite to make it anew" in failed.message
    assert {p: p.read_bytes() for p in (out / row.output).iterdir()} == before
    assert {r.status for r in again if r.is_failure} == {"failed", "refused"}
    anew = enhance_all(enhancer, root, out, resume=True, overwrite=True)
    assert sorted(r.status for r in anew)[:2] == ["enhanced", "finished before"]
    names = {str(pydicom.dcmread(f).PatientName) for f in (out / row.output).glob("*.dcm")}
    assert names == {"Canary^Corrected"}


def test_a_bug_in_one_series_costs_no_other(enhancer, root, tmp_path, monkeypatch, caplog) -> None:
    real, calls, text = batch.enhance_volume, [], "what a header holds"

    def broken(*arguments: object, **options: object) -> object:
        calls.append(None)
        if len(calls) == 1:
            raise ZeroDivisionError(text)
        return real(*arguments, **options)

    monkeypatch.setattr(batch, "enhance_volume", broken)
    rows = enhance_all(enhancer, root, tmp_path / "out")
    statuses = sorted(row.status for row in rows)
    assert statuses == ["enhanced", "failed", "refused", "scout", "skipped"]
    (failed,) = (row for row in rows if row.status == "failed")
    assert failed.message == "internal error (ZeroDivisionError); 'medqdm --debug' shows where"
    assert caplog.text == ""
    calls.clear()
    with caplog.at_level("DEBUG", logger="medqdm"):
        enhance_all(enhancer, root, tmp_path / "again")
    assert f"series {failed.series} failed" in caplog.text
    assert "in broken" in caplog.text
    assert text not in caplog.text


def test_a_damaged_file_is_named_and_costs_no_series(enhancer, root, tmp_path) -> None:
    whole = (root / "a" / "001").read_bytes()
    (root / "a" / "torn").write_bytes(whole[:300])
    start = whole.index(b"\x02\x00\x10\x00UI") + 8
    two = b"1.2.840.10008.1.2\\1.2"[: struct.unpack("<H", whole[start - 2 : start])[0]]
    shutil.copytree(root / "a", root / "third")
    for file in (root / "third").iterdir():
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=False)
        if file.name != "001":
            file.unlink()
        else:
            dataset.SeriesInstanceUID = "1.2.77"
            dataset.save_as(file)
            whole = file.read_bytes()
            file.write_bytes(whole[:start] + two.ljust(20, b"\\") + whole[start + 20 :])
    rows = enhance_all(enhancer, root, tmp_path / "out")
    statuses = sorted(row.status for row in rows)
    assert statuses == ["enhanced"] * 2 + ["refused"] * 2 + ["scout"] + ["skipped"] * 2
    (third,) = (row for row in rows if row.series == "1.2.77")
    assert "TransferSyntaxUID must be one transfer syntax" in third.message
    skipped = {row.message: row.series for row in rows if row.status == "skipped"}
    assert skipped["not DICOM"] == ""
    assert "a/torn" in skipped.values()
    assert [row.series for row in rows if row.status == "skipped" and row.is_failure] == ["a/torn"]
    listed = {line["message"]: line["series"] for line in read_summary(tmp_path / "out")}
    assert "a/torn" in listed.values()


def test_each_file_is_looked_into_twice_however_many_series_lie_there(
    enhancer, ct_series, tmp_path, monkeypatch
) -> None:
    """Once to find the series, once to read its own: headers of a whole root are not kept."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in "abcd":
        for file in ct_series(np.zeros((2, 16, 16)), folder=f"made/{name}").iterdir():
            shutil.move(file, flat / f"{name}{file.name}")
    looked_into: list[str] = []
    real = dicom_scan.read_header
    monkeypatch.setattr(
        dicom_scan, "read_header", lambda file: looked_into.append(file.name) or real(file)
    )
    rows = enhance_all(enhancer, flat, tmp_path / "out")
    assert [row.status for row in rows] == ["enhanced"] * 4
    assert sorted(looked_into) == sorted([file.name for file in flat.iterdir()] * 2)


def test_labels_are_refused_unless_any_values_are_taken(enhancer, ct_series, tmp_path) -> None:
    labels = np.zeros((2, 48, 48))
    labels[:, 10:30, 10:30] = 3
    for name in ("one", "other"):
        ct_series(labels, folder=f"root/{name}", intercept=0)
    root, out = tmp_path / "root", tmp_path / "out"
    with pytest.raises(MedQDMError, match="got 2 that cannot"):
        enhance_all(enhancer, root, out)
    rows = enhance_all(enhancer, root, out, any_values=True)
    assert [(row.status, row.warnings) for row in rows] == [("enhanced", 1)] * 2


def test_skip_bad_takes_what_is_whole_and_counts_the_rest(enhancer, root, tmp_path) -> None:
    made = root / "second" / "deep"
    for name in ("003", "004"):  # one good slice, one cut in the middle of its header
        shutil.copy(made / "002", made / name)
        dataset = pydicom.dcmread(made / name)
        dataset.SOPInstanceUID = f"1.2.{int(name)}"
        dataset.ImagePositionPatient = [-11, -17, 30 + 10 * int(name)]
        dataset.save_as(made / name)
    (made / "004").write_bytes((made / "004").read_bytes()[:300])
    rows = enhance_all(enhancer, root, tmp_path / "out", skip_bad=True)
    assert sorted(row.status for row in rows) == ["enhanced"] * 3 + ["scout", "skipped", "skipped"]
    (row,) = (r for r in rows if r.left_out)
    assert (row.slices, row.left_out, row.warnings, row.is_failure) == (2, 2, 2, True)
    reason = "left out 1 damaged slice(s): 001; 1 file(s) may be slices but are damaged: 004"
    assert row.message == reason
    run = json.loads((tmp_path / "out" / row.output / "run.json").read_text())
    assert (run["input"]["left_out"], run["warnings"][-2:]) == (2, reason.split("; "))
    assert io.read(tmp_path / "out" / row.output).shape == (2, 64, 64)
    (line,) = (x for x in read_summary(tmp_path / "out") if x["left_out"] not in ("", "0"))
    assert (line["slices"], line["left_out"], line["status"]) == ("2", "2", "enhanced")
    assert line["message"] == reason
    skipped = {r.message: r.slices for r in rows if r.status == "skipped"}
    assert skipped == {"DICOM without SOPClassUID": 1, "not DICOM": 1}


def test_outputs_of_medqdm_are_left_out(enhancer, ct_series, tmp_path) -> None:
    root = tmp_path / "root"
    series = ct_series(np.zeros((2, 16, 16)), folder="root/series")
    enhance.enhance_volume(enhancer, io.read(series), root / "enhanced")
    rows = enhance_all(enhancer, root, tmp_path / "out")
    assert sorted(row.status for row in rows) == ["enhanced", "enhanced already", "skipped"]
    shutil.rmtree(series)
    with pytest.raises(MedQDMError, match="must hold a CT series that can be enhanced, got 1"):
        enhance_all(enhancer, root, tmp_path / "again")
    done = enhance.enhance_volume(enhancer, io.read(root / "enhanced"), tmp_path / "twice")
    assert any("its detail is synthetic already" in warning for warning in done.warnings)


def test_acquisitions_of_one_series_get_numbers_of_their_own(enhancer, ct_series, tmp_path) -> None:
    same = {"StudyInstanceUID": "1.2.8", "SeriesInstanceUID": "1.2.3",
            "FrameOfReferenceUID": "1.2.9"}  # fmt: skip
    for n in (1, 2, 3):
        hu = np.full((2, 16, 16), n)
        ct_series(hu, folder=f"root/{4 - n}", AcquisitionNumber=n, **same)
    for out in ("out", "again"):
        enhance_all(enhancer, tmp_path / "root", tmp_path / out, dates="source")
    written = {}
    for file in sorted((tmp_path / "out").glob("*/IM0001.dcm")):
        again = tmp_path / "again" / file.relative_to(tmp_path / "out")
        assert file.read_bytes() == again.read_bytes()
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        written[dataset.AcquisitionNumber] = dataset.SeriesDescription, int(dataset.SeriesNumber)
    assert [written[n][0] for n in (1, 2, 3)] == [f"Thorax #{n} SRx4 AI" for n in (1, 2, 3)]
    numbers = [written[n][1] % 10_000 for n in (1, 2, 3)]
    assert [(number - numbers[0]) % 10_000 for number in numbers] == [0, 1, 2]


def test_one_batch_at_a_time(enhancer, root, tmp_path) -> None:
    other = """if True:
        import sys
        from pathlib import Path
        from medqdm.errors import MedQDMError
        from medqdm.io.whole import alone
        try:
            with alone(Path(sys.argv[1]) / "batch"):
                pass
        except MedQDMError as error:
            print(error)
        """
    said = []

    def track(slices, _total):
        command = [sys.executable, "-c", other, tmp_path / "out"]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        said.append(ended.stdout)
        return slices

    enhance_all(enhancer, root, tmp_path / "out", track=track)
    assert "one run at a time may write an output" in said[0]
    assert not list((tmp_path / "out").glob(".*"))


def test_a_folder_of_somebody_else_is_left_alone(enhancer, root, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(MedQDMError, match=r"must be empty|only an earlier output"):
            enhance_all(enhancer, root, out, **options)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    with pytest.raises(MedQDMError, match="must not lie in the input folder"):
        enhance_all(enhancer, root, root / "out")


def test_nothing_to_enhance_is_told(enhancer, ct_series, tmp_path) -> None:
    for name in ("root/one", "root/two"):
        ct_series(folder=name, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    with pytest.raises(MedQDMError, match="must hold a CT series that can be enhanced, got 2"):
        enhance_all(enhancer, tmp_path / "root", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_volume_files_count_only_where_there_is_no_dicom(root, tmp_path) -> None:
    volume = Volume.from_spacing(np.zeros((2, 16, 16)), (2, 0.7, 0.7))
    for name in ("one", "two"):
        io.write(volume, volume, tmp_path / "files" / name / "ct.nii.gz")
    assert [s.kind for s in find_many(tmp_path / "files").series] == ["nifti", "nifti"]
    assert find_many(tmp_path / "files" / "one" / "ct.nii.gz").series == ()
    shutil.copytree(tmp_path / "files", root / "masks")
    found = find_many(root)
    assert {s.kind for s in found.series} == {"dicom"}
    assert found.skipped == {
        "NIfTI, NRRD or MetaImage file beside DICOM series": 2, "not DICOM": 1,
    }  # fmt: skip


def test_volume_files_of_one_name_do_not_meet(enhancer, tmp_path) -> None:
    for number, name in enumerate(("one", "two")):
        volume = Volume.from_spacing(np.full((2, 16, 16), number), (2, 0.7, 0.7))
        io.write(volume, volume, tmp_path / "files" / name / "ct.nii.gz")
    rows = enhance_all(enhancer, tmp_path / "files", tmp_path / "out", file_format="nifti")
    assert [(row.status, row.series) for row in rows] == [("enhanced", "ct.nii.gz")] * 2
    assert rows[0].output != rows[1].output


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(weights, tmp_path, monkeypatch, capsys) -> Run:
    """The command line on a folder: exit code, stdout and stderr."""
    for companion in ("_add_companions", "_add_report"):
        monkeypatch.setattr(f"medqdm.enhance.{companion}", lambda *_: None)

    def enhance_cli(root: Path, *options: str) -> tuple[int, str, str]:
        arguments = ["enhance", root, "-o", tmp_path / "out", "--weights", weights,
                     "--device", "cpu", "--precision", "fp32", *options]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["medqdm", *map(str, arguments)])
        for name, stream in (("console", sys.stdout), ("messages", sys.stderr)):
            monkeypatch.setattr(getattr(cli, name), "_file", stream)  # "file" is a property
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return enhance_cli


def test_the_command_line_ends_with_code_3_if_a_series_failed(run, root, monkeypatch) -> None:
    loads = []
    real = loading.load_enhancer

    def load(*arguments: object, **options: object) -> Enhancer:
        loads.append(None)
        return real(*arguments, **options)

    monkeypatch.setattr(loading, "load_enhancer", load)
    code, out, err = run(root)
    assert (code, len(loads)) == (3, 1)
    assert "4 series, each to a folder of its own" in out
    assert "2 enhanced" in out
    assert "skipped 1 file(s): not DICOM" in out
    assert err.count("refused: series ") == 1
    assert "canary" not in (out + err).lower()
    code, out, err = run(root, "--resume", "--skip-bad")
    assert code == 3
    assert "1 enhanced" in out
    assert re.search(r"enhanced: series-\w+ \(1 image\(s\) left out\)", out)
    assert re.search(r"incomplete: series \S+: left out 1 damaged slice\(s\): 001", err)
    shutil.rmtree(root / "second")
    code, out, _ = run(root, "--resume")
    assert code == 0
    assert "2 finished before" in out
    code, _, err = run(root, "--slice-axis", "1", "--overwrite")
    assert code == 2
    assert "--slice-axis must go with one file" in err


@pytest.mark.parametrize(
    ("what", "code"),
    [("scouts", 0), ("duplicate", 0), ("frames", 0), ("matrix", 3), ("torn", 3), ("halves", 2)],
)  # fmt: skip
def test_exit_codes_of_one_series(run, ct_series, tmp_path, what, code) -> None:
    def edit(dataset: pydicom.Dataset, k: int) -> None:
        every = {"frames": {"FrameOfReferenceUID": f"1.2.{k + 1}"},
                 "halves": {"PixelSpacing": [0.8 + k // 2, 0.6]}}  # fmt: skip
        second = {"matrix": {"Rows": 15, "PixelData": dataset.PixelData[: 15 * 16 * 2]},
                  "scouts": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}}  # fmt: skip
        tags = every.get(what, second.get(what, {}) if k == 1 else {})
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)

    hu = np.random.default_rng(0).normal(0, 200, (4, 16, 16)).round()
    root = ct_series(hu, folder="root/one", edit=edit)
    if what in ("duplicate", "torn"):
        whole = (root / "001").read_bytes()
        (root / "copy").write_bytes(whole if what == "duplicate" else whole[:200])
    found, _, err = run(root)
    assert found == code
    if code == 2:
        assert "2 groups of 2, 2" in err
        assert not (tmp_path / "out").exists()
    else:
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert record["input"]["left_out"] == int(code == 3)
        assert ("incomplete: 1 image(s) left out, see the warnings" in err) == (code == 3)
        assert all(f"warning: {warning}" in err for warning in record["warnings"])


def test_a_series_that_lacks_slices_ends_with_code_3_each_time(run, ct_series, tmp_path) -> None:
    def edit(dataset: pydicom.Dataset, k: int) -> None:
        dataset.PixelSpacing = [0.8 + (k == 1), 0.6]

    hu = np.random.default_rng(0).normal(0, 200, (3, 16, 16)).round()
    one = ct_series(hu, folder="root/one", edit=edit)
    for is_again in (False, True):
        code, out, _ = run(one, "--resume")
        assert (code, "finished before" in out) == (3, is_again)
    shutil.rmtree(tmp_path / "out")
    ct_series(hu[:2], folder="root/two")
    code, _, err = run(one.parent)
    assert code == 3
    assert err.count("incomplete: series") == 1
    lines = [line for line in read_summary(tmp_path / "out") if line["status"] == "enhanced"]
    assert sorted((line["left_out"], line["message"]) for line in lines) == [
        ("0", ""), ("1", "left out 1 image(s) of another orientation, matrix or spacing"),
    ]  # fmt: skip
