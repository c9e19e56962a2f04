"""Nothing of the patient is told: not by a message, a log, a record, a picture or a file name.

Every text, name, code and date that a header may hold is a canary here, at the top, in items and in
private elements; then everything that medqdm says and writes is searched, DICOM files aside, which
are the patient's.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medqdm import batch, cli
from medqdm.engine import Engine
from medqdm.io.dicom_scan import tolerant

NAME, CODE, DATE = "Zyxwvut^Canary", "ZYXWVUT", "19110711"
CANARIES = ("zyxwvut", "canary", DATE)
KINDS = {"PN": NAME, "LO": NAME, "SH": NAME, "LT": NAME, "ST": NAME, "UT": NAME, "UC": NAME,
         "UR": NAME, "AE": CODE, "CS": CODE, "DA": DATE, "DT": DATE}  # fmt: skip
NEEDED = {  # by the reader, to take it for a CT slice in HU
    "SpecificCharacterSet", "ImageType", "PhotometricInterpretation", "RescaleType", "Modality",
}  # fmt: skip


def fill(dataset: Dataset) -> None:
    """Every element of a kind that may name somebody, in the dataset, an item, and private ones."""
    item = Dataset()
    for place in (dataset, item):
        for tag, (vr, *_) in DicomDictionary.items():
            if vr in KINDS and 0x0002 < tag >> 16 < 0x5000 and keyword_for_tag(tag) not in NEEDED:
                place[tag] = DataElement(tag, vr, KINDS[vr])
        for vr, value in KINDS.items():
            block = place.private_block(0x0029, f"{CODE} {vr}", create=True)
            block.add_new(0x01, vr, value)
    dataset.RequestAttributesSequence = Sequence([item])
    dataset.OtherPatientIDsSequence = Sequence([item])
    dataset.ContributingEquipmentSequence = Sequence([item])


def canary_series(ct_series: Callable[..., Path], folder: str, **tags: object) -> Path:
    def edit(dataset: Dataset, _k: int) -> None:
        with tolerant():
            fill(dataset)
            for keyword, value in tags.items():
                setattr(dataset, keyword, value)

    with tolerant():
        return ct_series(np.random.default_rng(0).normal(0, 200, (3, 16, 16)).round(),
                         folder=folder, edit=edit)  # fmt: skip


def told(folder: Path) -> str:
    """Names and contents of all files but DICOM."""
    found = []
    for file in sorted(folder.rglob("*")):
        found.append(file.name)
        if file.is_file() and file.suffix != ".dcm":
            found.append(file.read_bytes().decode("latin-1"))
    return "\n".join(found)


@pytest.fixture
def run(weights, monkeypatch, capsys, caplog):
    """A command line in this process, and all that it said."""

    def command(*arguments: object) -> tuple[int, str]:
        if arguments[0] == "enhance":
            arguments += ("--weights", weights, "--device", "cpu", "--precision", "fp32")
        monkeypatch.setattr(sys, "argv", ["medqdm", "-v", *map(str, arguments)])
        for name, stream in (("console", sys.stdout), ("messages", sys.stderr)):
            monkeypatch.setattr(getattr(cli, name), "_file", stream)  # "file" is a property
        caplog.clear()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err + caplog.text

    return command


def assert_nothing_of_the_patient(text: str) -> None:
    assert text
    assert [canary for canary in CANARIES if canary in text.lower()] == []


@pytest.mark.parametrize("file_format", ["dicom", "nifti", "nrrd", "mha"])
def test_a_run_that_ends_well(run, ct_series, tmp_path, file_format: str) -> None:
    series = canary_series(ct_series, "series")
    for options in ([], ["--json"]):
        code, said = run("info", series, *options)
        assert (code, "3" in said) == (0, True)
        assert_nothing_of_the_patient(said)
    code, said = run("enhance", series, "-o", tmp_path / "out", "--format", file_format,
                     "--uncertainty", 2)  # fmt: skip
    assert code == 0, said
    assert_nothing_of_the_patient(said)
    found = told(tmp_path / "out")
    assert "comparison.png" in found
    assert "run.json" in found
    assert_nothing_of_the_patient(found)
    if file_format == "dicom":  # where it belongs
        written = pydicom.dcmread(tmp_path / "out" / "IM0001.dcm")
        assert written.PatientName == NAME
        assert written.OtherPatientIDsSequence[0].PatientBirthDate == DATE


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelSpacing": None},
        {"RescaleSlope": None},
        {"RescaleType": NAME},
        {"BitsStored": 0},
        {"PixelData": b"\0\0"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"StudyInstanceUID": None},
        {"SOPInstanceUID": "1.2.3"},
        {"Rows": 40000},
    ],
    ids=str,
)
def test_a_run_that_is_refused(run, ct_series, tmp_path, tags: dict[str, object]) -> None:
    series = canary_series(ct_series, "series", **tags)
    for arguments in (["info", series], ["enhance", series, "-o", tmp_path / "out"]):
        code, said = run(*arguments)
        assert code == (2 if arguments[0] == "enhance" else 0), said
        assert_nothing_of_the_patient(said)
    assert not (tmp_path / "out").exists()


def test_a_batch_with_refusals_and_a_bug(run, ct_series, tmp_path, monkeypatch) -> None:
    root = tmp_path / "root"
    series = [canary_series(ct_series, f"root/{name}") for name in "abcd"]
    canary_series(ct_series, "root/scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    victim = series[1] / "002"
    victim.write_bytes(victim.read_bytes()[:-50])
    shutil.copy(series[2] / "002", series[2] / "copy")
    real, calls = batch.enhance_volume, []

    def broken(enhancer: object, volume: object, *arguments: object, **options: object) -> object:
        calls.append(None)
        if len(calls) == 1:
            raise ValueError(f"could not understand {NAME!r} of {DATE}")
        return real(enhancer, volume, *arguments, **options)

    monkeypatch.setattr(batch, "enhance_volume", broken)
    code, said = run("enhance", root, "-o", tmp_path / "out")
    assert code == 3
    assert "2 enhanced" in said
    assert "internal error (ValueError)" in said
    assert_nothing_of_the_patient(said)
    found = told(tmp_path / "out")
    assert "summary.csv" in found
    assert "left out 1 duplicate" in found
    assert_nothing_of_the_patient(found)


def test_a_network_that_fails(run, ct_series, tmp_path, monkeypatch) -> None:
    series = canary_series(ct_series, "series")
    real = Engine.decode
    monkeypatch.setattr(Engine, "decode", lambda *arguments: real(*arguments) * float("nan"))
    code, said = run("enhance", series, "-o", tmp_path / "out")
    assert code == 2
    assert_nothing_of_the_patient(said)
    assert not list(tmp_path.glob("*out*"))
