"""Real files that readers meet in the wild: a table of what medqdm makes of each.

``MEDQDM_ODD_DIR=folder pytest tests/test_odd.py -s`` reads every file of any folder and reports
what became of it. The folder of odd CT that this project was developed with is not in the
repository; name it in ``MEDQDM_ODD_CT`` to run its table too.
"""

import os
import re
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pydicom.data
import pytest

from medqdm import io
from medqdm.errors import MedQDMError

HERE = Path(__file__).parent / "data" / "odd"
BUNDLED = Path(pydicom.data.__file__).parent
ODD_CT = Path(os.environ.get("MEDQDM_ODD_CT", Path(__file__).parents[2] / "shared/ct/odd"))

LOSSY, SILENT = "compressed with loss", "does not declare"
SCREENSHOT = "got none (1 x Secondary Capture Image Storage)"
NO_HU = "pixels must be in HU, got a map of another quantity"
NO_DECODER = "pixels must be readable, got "
AXIS = "say which with --slice-axis"

# name -> shape and what is warned of, or a part of the refusal; the first match counts
BUNDLED_TABLE = {
    "test_files/693_J2KI.dcm": ((1, 512, 512), LOSSY),
    "test_files/CT_small.dcm": ((1, 128, 128), ""),
    "test_files/J2K_pixelrep_mismatch.dcm": ((1, 512, 512), SILENT),
    "test_files/eCT_Supplemental.dcm": NO_HU,
    "test_files/dicomdirtests/77654033/CT2/*": ((1, 16, 16), ""),
    "test_files/dicomdirtests/98892001/CT2N/*": "1 localizers only",
    "test_files/dicomdirtests/98892001/CT5N/*": ((1, 16, 16), ""),
    "test_files/dicomdirtests/TINY_ALPHA/PT*": "must have ImageOrientationPatient",
    "test_files/dicomdirtests/DICOMDIR": "must hold one CT series, got 3",
    "test_files/dicomdirtests/DICOMDIR-*": "got none (1 x ",
    "test_files/dicomdirtests/TINY_ALPHA/DICOMDIR": "must have ImageOrientationPatient",
    "*": "got none (1 x ",
}
ODD_CT_TABLE = {
    "ami-big-endian-signed/*": ((1, 512, 512), "values above 3000 HU (up to 3071)"),
    "coronal-nonsquare/*": ((1, 512, 512), ""),
    "covid-p002-invalid-uids/*": ((1, 512, 512), "1 slice(s) without SOPInstanceUID"),
    "dcm4che-elscint/*": ((1, 512, 512), ""),
    "dcmqi-enhanced/23x38x3/image/*": ((1, 38, 23), ""),
    "dcmqi-enhanced/23x38x3/multiframe/mf.dcm": ((3, 38, 23), ""),
    "dcmqi-enhanced/24x38x3/image/*": ((1, 38, 24), ""),
    "dcmqi-enhanced/24x38x3/multiframe/mf.dcm": ((3, 38, 24), ""),
    "dcmqi-enhanced/ct-3slice/*": ((1, 512, 512), ""),
    "dicom2nifti-geometry/*": ((1, 512, 512), ""),
    "fo-dicom-reports/FreezePattern.dcm": SCREENSHOT,
    "fo-dicom-reports/GH1728.dcm": SCREENSHOT,
    "fo-dicom-reports/GH178.dcm": SCREENSHOT,
    "fo-dicom-reports/GH355.dcm": "got none (1 x DICOM object of an unknown class)",
    "fo-dicom-reports/GH342.dcm": "1 localizers only",
    "fo-dicom-reports/ct.dcm": ((1, 512, 512), SILENT),
    "fo-dicom-reports/*": ((1, 512, 512), ""),
    "ge-head-tilt-18.5/*": ((1, 512, 512), ""),
    "philips-localizer-and-screenshots/S21570_S1000_I10": "1 localizers only",
    "philips-localizer-and-screenshots/*": SCREENSHOT,
    "philips-skull-tilt/*": ((1, 512, 512), ""),
    "pydicom/CT_small.dcm": ((1, 128, 128), ""),
    "pydicom/J2K_pixelrep_mismatch.dcm": ((1, 512, 512), SILENT),
    "pydicom/eCT_Supplemental.dcm": NO_HU,
    "rt-utils/ct_?.dcm": ((1, 512, 512), ""),
    "rt-utils/oriented*": ((1, 50, 100), ""),
    "totalsegmentator-nifti/*": AXIS,
    "transfer-syntaxes/CT0012.*": NO_HU,
    "transfer-syntaxes/CT1_J2KR": ((1, 512, 512), ""),
    "transfer-syntaxes/*JPEGProcess10_12*": NO_DECODER,
    "transfer-syntaxes/*JPEGProcess2_4*": NO_DECODER,
    "transfer-syntaxes/*JPEGProcess6_8*": NO_DECODER,
    "transfer-syntaxes/*JPEGProcess1Transfer*": ((1, 512, 512), LOSSY),
    "transfer-syntaxes/*JPEG2000Transfer*": ((1, 512, 512), LOSSY),
    "transfer-syntaxes/*JPEGLSLossyTransfer*": ((1, 512, 512), LOSSY),
    "transfer-syntaxes/*": ((1, 512, 512), SILENT),
    "truncated-j2k/*": NO_DECODER,
}
# folder -> of each series: slices, warnings, gaps, degrees of tilt; or a part of the refusal
ODD_CT_SERIES = {
    "coronal-nonsquare": [(8, 0, 0, 0)],
    "covid-p002-invalid-uids": [(12, 1, 0, 0)],
    "dcmqi-enhanced/24x38x3": [(3, 0, 0, 0), (3, 0, 0, 0)],
    "dicom2nifti-geometry/notavolume": [(1, 0, 0, 0)] * 4,
    "dicom2nifti-geometry/sliceincrement/001": [(4, 1, 1, 0)],
    "dicom2nifti-geometry/sliceincrement/002": [(4, 1, 1, 15.5)],
    "ge-head-tilt-18.5": [(28, 1, 13, 18.5)],
    "philips-localizer-and-screenshots": ["1 localizers only"],
    "transfer-syntaxes": ["no tag tells apart", (1, 0, 0, 0), NO_HU, (1, 0, 0, 0)],
    "truncated-j2k": [NO_DECODER],
}


def outcome(path: Path) -> tuple[tuple[int, int, int], str] | str:
    """What became of a file: shape and warnings, or the refusal; any other exception is a bug."""
    try:
        volume = io.read(path)
        assert np.isfinite(volume.hu[len(volume.hu) // 2]).all()
    except MedQDMError as error:
        return str(error)
    finally:
        io.take_inventory(path)
    return volume.shape, "; ".join(volume.source.warnings)


def check(table: dict, root: Path) -> Counter:
    """Compare every file below a folder with the table; how many were read and refused."""
    counts, wrong = Counter(), []
    for path in files_below(root):
        name = path.relative_to(root).as_posix()
        expected = next((e for pattern, e in table.items() if fnmatch(name, pattern)), None)
        found = outcome(path)
        if isinstance(found, str) or isinstance(expected, str) or expected is None:
            right = isinstance(found, str) and isinstance(expected, str) and expected in found
            right = right and "\n" not in str(found)
        else:
            right = found[0] == expected[0] and bool(expected[1]) == bool(found[1])
            right = right and expected[1] in found[1]
        if not right:
            wrong.append(f"{name}: expected {expected}, got {found}")
        counts["refused" if isinstance(found, str) else "read"] += 1
    assert not wrong, "\n".join(wrong)
    return counts


def files_below(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def need_odd_ct() -> None:
    if not ODD_CT.is_dir():
        pytest.skip("the folder of odd CT is not here; name it in MEDQDM_ODD_CT")


@pytest.mark.parametrize("folder", ["test_files", "charset_files", "palettes"])
def test_pydicoms_own_files(folder: str) -> None:
    table = {
        pattern.removeprefix(f"{folder}/"): expected
        for pattern, expected in BUNDLED_TABLE.items()
        if pattern == "*" or pattern.startswith(folder)
    }
    counts = check(table, BUNDLED / folder)
    assert counts["read"] == (12 if folder == "test_files" else 0)
    assert counts["refused"] >= 9


def test_small_odd_files() -> None:
    volume = io.read(HERE / "rt-utils-oblique")
    assert volume.shape == (3, 50, 100)
    assert volume.spacing_mm == pytest.approx((3.5, 2.5))
    assert volume.is_regular
    (summary,) = io.find_series(HERE / "rt-utils-oblique")
    assert (summary.num_slices, summary.problem) == (3, None)
    assert "every slice names a study of its own" in summary.warnings[0]
    shape, warnings = outcome(HERE / "jpeg-baseline" / "CTImage.dcm")
    assert shape == (1, 512, 512)
    assert LOSSY in warnings


def test_pydicoms_dicomdir_leads_to_three_series() -> None:
    path = BUNDLED / "test_files" / "dicomdirtests" / "DICOMDIR"
    listed = str(outcome(path))
    uids = re.findall(r"([\d.]{20,}) \(", listed)
    assert len(uids) == 3
    found = [io.find_series(path.parent / folder)[0] for folder in ("77654033/CT2", "98892001")]
    assert [series.series_instance_uid in uids for series in found] == [True, True]
    assert sorted(len(io.read(path, series=s.series_instance_uid).hu) for s in found[:1]) == [4]


@pytest.mark.slow
def test_odd_ct() -> None:
    need_odd_ct()
    counts = check(ODD_CT_TABLE, ODD_CT)
    assert counts["read"] > counts["refused"] > 20


@pytest.mark.parametrize("folder", ODD_CT_SERIES)
def test_odd_series(folder: str) -> None:
    need_odd_ct()
    found = [
        (s.num_slices, len(s.warnings), s.num_gaps, round(s.tilt_degrees, 1)) if s.problem is None
        else s.problem
        for s in io.find_series(ODD_CT / folder)
    ]  # fmt: skip
    expected = ODD_CT_SERIES[folder]
    assert len(found) == len(expected)
    for series in found:
        assert any(series == e or (isinstance(e, str) and e in str(series)) for e in expected)


@pytest.mark.skipif("MEDQDM_ODD_DIR" not in os.environ, reason="MEDQDM_ODD_DIR names no folder")
def test_any_folder(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(os.environ["MEDQDM_ODD_DIR"])
    counts: Counter[str] = Counter()
    failed = []
    with capsys.disabled():
        for path in files_below(root):
            try:
                found = outcome(path)
                kind = "refused" if isinstance(found, str) else "read"
            except Exception as error:
                found, kind = f"{type(error).__name__}: {error}", "TRACEBACK"
                failed.append(path)
            counts[kind] += 1
            print(f"{kind}: {path.relative_to(root)}: {found}")  # noqa: T201  (it is the report)
        print(dict(counts))  # noqa: T201
    assert not failed
