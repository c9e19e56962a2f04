"""The tables of docs/dicom-reading.md name tests that are there, at least one a row."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOME = {  # where the tests of a section are, unless a row names another file
    "Reading": "tests/io/test_dicom_read.py",
    "Hostile input": "tests/test_hostile.py",
    "NIfTI and NRRD": "tests/io/test_nifti.py",
}


def rows(section: str) -> list[str]:
    text = (ROOT / "docs" / "dicom-reading.md").read_text(encoding="utf-8")
    part = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return [line for line in part.splitlines() if line.startswith("| ")][1:]


def source(name: str) -> str:
    (file,) = [f for f in (ROOT / "tests").rglob("test_*.py") if f.name == Path(name).name]
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("section", HOME)
def test_every_row_has_a_test(section: str) -> None:
    found = rows(section)
    assert len(found) >= 12
    for row in found:
        named = re.findall(r"`(?:([\w/]*test_\w+\.py)(?:::)?)?(test_\w+)?`", row)
        assert any(file or test for file, test in named), row
        for file, test in named:
            assert f"def {test}" in source(file or HOME[section]), f"{file}::{test}"
