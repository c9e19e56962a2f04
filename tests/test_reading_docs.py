"""The tables of docs/dicom-reading.md and docs/dicom-writing.md name tests that are there.

At least one a row; ``pytest -s`` prints how many rows there are.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READING, WRITING = "dicom-reading.md", "dicom-writing.md"
HOME = {  # where the tests of a section are, unless a row names another file
    (READING, "Reading"): "tests/io/test_dicom_read.py",
    (READING, "Hostile input"): "tests/test_hostile.py",
    (READING, "NIfTI and NRRD"): "tests/io/test_nifti.py",
    (WRITING, "Tag by tag"): "tests/io/test_dicom_write.py",
}
CHECK = re.compile(r"\| check(,|\s*\|$)")  # of every write, whose tests are the mutants


def rows(document: str, section: str) -> list[str]:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    part = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = part.splitlines()
    heads = {k - 1 for k, line in enumerate(lines) if line.startswith("|---")}
    return [line for k, line in enumerate(lines) if line.startswith("| ") and k not in heads]


def source(name: str) -> str:
    (file,) = [f for f in (ROOT / "tests").rglob("test_*.py") if f.name == Path(name).name]
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize(("document", "section"), HOME)
def test_every_row_has_a_test(document: str, section: str) -> None:
    found = rows(document, section)
    print(f"{document}, {section}: {len(found)} rows")  # noqa: T201  (shown with pytest -s)
    assert len(found) >= 12
    for row in found:
        named = re.findall(r"`(?:([\w/]*test_\w+\.py)(?:::)?)?(test_\w+)?`", row)
        assert CHECK.search(row) or any(file or test for file, test in named), row
        for file, test in named:
            assert f"def {test}" in source(file or HOME[document, section]), f"{file}::{test}"
