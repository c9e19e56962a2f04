"""Hostile input: sizes that lie, bombs, wrong kinds of values, and a fuzz of the readers.

``MEDQDM_FUZZ=5000 pytest tests/test_hostile.py -k fuzz`` runs the fuzz for longer, with new seeds.
"""

import gzip
import json
import logging
import os
import resource
import shutil
import struct
import zlib
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless
from typer.testing import CliRunner

from medqdm import cli, io
from medqdm.errors import MedQDMError
from medqdm.io import dicom_open, dicom_scan, inventory
from medqdm.io.dicom_pixels import stream_shape
from medqdm.io.dicom_scan import tolerant

CT = Path(str(get_testdata_file("CT_small.dcm")))
OBLIQUE = Path(__file__).parent / "data" / "odd" / "rt-utils-oblique" / "0.dcm"
FUZZ = int(os.environ.get("MEDQDM_FUZZ", "60"))
MOST_GROWTH = 64 << 20  # bytes; a slice of the seeds takes well below one MiB
CANARY, CANARY_DATE = "Zyxwvut^Canary", "19110711"
ITEM = b"\xfe\xff\x00\xe0"


def survive(path: Path, out: Path | None = None) -> str:
    """Read a path both ways; the message if it was refused. Any other exception is a bug.

    With ``out``, what was read is enlarged and written there as DICOM, or refused too.
    """
    io.take_inventory(path)
    try:
        volume = io.read(path)
        for image in volume.hu:
            assert np.isfinite(image).all()
        if out is not None:
            larger = (image.repeat(2, 0).repeat(2, 1) for image in volume.hu)
            io.write_series(volume, larger, out, upscale=2, description="nearest, test",
                            software_version="0", weights_id="none", uid_entropy=["0"])  # fmt: skip
    except MedQDMError as error:
        return str(error)
    return ""


def changed_ct(tmp_path: Path, **tags: object) -> Path:
    """CT_small with tags set, unchecked."""
    with tolerant():
        dataset = pydicom.dcmread(CT)
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        return saved(dataset, tmp_path)


def saved(dataset: Dataset, folder: Path, name: str = "file") -> Path:
    with tolerant():
        dataset.save_as(folder / name)
    return folder / name


def with_raw_element(tmp_path: Path, tag: bytes, vr: bytes, value: bytes) -> Path:
    """CT_small with an element of any VR in the place of one with the same tag."""
    whole = CT.read_bytes()
    start = whole.index(tag + b"", 132)
    length = struct.unpack_from("<H", whole, start + 6)[0]
    new = tag + vr + struct.pack("<H", len(value)) + value
    (tmp_path / "file").write_bytes(whole[:start] + new + whole[start + 8 + length :])
    return tmp_path / "file"


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 65535, "Columns": 65535}, "must have 1 to 8192 rows and columns"),
        ({"Rows": 0}, "must have 1 to 8192 rows and columns"),
        ({"Rows": 8000, "Columns": 8000}, "got a truncated file"),
        ({"NumberOfFrames": 2**31 - 1}, "pixels must be readable"),
        ({"BitsAllocated": 64}, "one sample of 16 bits"),
        ({"SamplesPerPixel": 60000}, "one sample of 16 bits"),
        ({"BitsStored": 60000}, "must fit in 16 bits"),
        ({"HighBit": 60000}, "must fit in 16 bits"),
        ({"RescaleSlope": 0}, "RescaleSlope must not be 0"),
        ({"RescaleSlope": "nan"}, ""),
        ({"PixelSpacing": [1e308, 1e308]}, ""),
        ({"ImagePositionPatient": [1e308, -1e308, 1e308]}, ""),
    ],
    ids=str,
)
def test_sizes_and_numbers_that_lie(tmp_path: Path, tags: dict[str, object], message: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = survive(changed_ct(tmp_path, **tags))
    assert message in found
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH


def test_streams_larger_than_the_header_says_are_not_decoded(tmp_path: Path) -> None:
    bomb = pydicom.dcmread(CT)
    bomb.Rows = bomb.Columns = 6000
    bomb.PixelData = bytes(2 * 6000 * 6000)
    bomb.compress(JPEGLSLossless)
    bomb.Rows = bomb.Columns = 128
    path = saved(bomb, tmp_path)
    assert path.stat().st_size < 100_000
    assert "got (6000, 6000) in the compressed stream" in survive(path)


def test_the_size_of_a_stream_is_found() -> None:
    def frame(name: str) -> bytes:
        dataset = pydicom.dcmread(str(get_testdata_file(name)))
        return next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))

    assert stream_shape(frame("693_J2KI.dcm")) == (512, 512)
    assert stream_shape(frame("SC_rgb_jpeg_dcmtk.dcm")) == (100, 100)
    assert stream_shape(frame("JPEGLSNearLossless_16.dcm")) == (50, 10)
    assert stream_shape(b"") is None
    assert stream_shape(b"\xff\xd8\xff\xff\xff\xff") is None


def test_deflated_bombs_are_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = pydicom.dcmread(CT)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = saved(dataset, tmp_path)
    assert survive(path) == ""
    monkeypatch.setattr(dicom_open, "MOST_INFLATED", 30_000)
    assert "1 x damaged DICOM file" in survive(path)


@pytest.mark.parametrize("side", [300, 1024, 2500])
def test_large_deflated_files_are_read_whole(tmp_path: Path, side: int) -> None:
    dataset = pydicom.dcmread(CT)
    dataset.Rows = dataset.Columns = side
    words = np.arange(side**2).reshape(side, side) % 1900
    dataset.PixelData = words.astype("<i2").tobytes()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = saved(dataset, tmp_path)
    with path.open("ab") as file:
        file.write(b"\0\0")
    intercept = float(dataset.RescaleIntercept)
    np.testing.assert_array_equal(io.read(path).hu[0], words + intercept)


def test_endless_sequences_are_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, end = CT.read_bytes(), CT.read_bytes().index(b"\xe0\x7f\x10\x00")
    items = (ITEM + bytes(4)) * 2000
    open_end = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff" + items
    closed = b"\x40\x00\x75\x02SQ\0\0" + struct.pack("<I", len(items)) + items
    monkeypatch.setattr(dicom_open, "MOST_ITEMS", 1000)
    (tmp_path / "open").write_bytes(whole[:end] + open_end)
    assert "1 x damaged DICOM file" in survive(tmp_path / "open")
    (tmp_path / "closed").write_bytes(whole[:end] + closed + whole[end:])
    assert survive(tmp_path / "closed") == ""
    monkeypatch.setattr(dicom_open, "MOST_READS", 100)
    assert "1 x damaged DICOM file" in survive(CT)


def test_values_without_number_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, end = CT.read_bytes(), CT.read_bytes().index(b"\xe0\x7f\x10\x00")
    numbers = b"1\\" * 30_000
    tags = [struct.pack("<HH", 0x0040, 0x0300 + 2 * k) for k in range(100)]  # of no dictionary
    extra = b"".join(tag + b"DS" + struct.pack("<H", len(numbers)) + numbers for tag in tags)
    (tmp_path / "file").write_bytes(whole[:end] + extra + whole[end:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(dicom_open, "MOST_VALUES", 100_000)
    assert survive(tmp_path / "file") == ""
    header = io.read(tmp_path / "file").source.headers[0]
    assert sum(tag.group == 0x0040 and tag.element >= 0x0300 for tag in header.keys()) == 2  # noqa: SIM118
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH


@pytest.mark.parametrize("depth", [20, 60, 3000])
@pytest.mark.parametrize("is_closed", [True, False])
def test_deep_nesting_ends_nothing(tmp_path: Path, depth: int, is_closed: bool) -> None:
    whole, end = CT.read_bytes(), CT.read_bytes().index(b"\xe0\x7f\x10\x00")
    start = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff" + ITEM + b"\xff\xff\xff\xff"
    stop = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" if is_closed else b""
    (tmp_path / "file").write_bytes(whole[:end] + start * depth + stop * depth + whole[end:])
    found = survive(tmp_path / "file")
    if is_closed and depth < 100:
        assert found == ""
        header = io.read(tmp_path / "file").source.headers[0]
        assert ("RequestAttributesSequence" in header) == (depth <= dicom_open.DEEPEST)


NEEDED = {
    "SOPClassUID": b"\x08\x00\x16\x00", "SeriesInstanceUID": b"\x20\x00\x0e\x00",
    "ImageType": b"\x08\x00\x08\x00", "ImagePositionPatient": b"\x20\x00\x32\x00",
    "ImageOrientationPatient": b"\x20\x00\x37\x00", "PixelSpacing": b"\x28\x00\x30\x00",
    "Rows": b"\x28\x00\x10\x00", "BitsStored": b"\x28\x00\x01\x01",
    "PixelRepresentation": b"\x28\x00\x03\x01", "RescaleSlope": b"\x28\x00\x53\x10",
    "PixelPaddingValue": b"\x28\x00\x20\x01", "SpecificCharacterSet": b"\x08\x00\x05\x00",
}  # fmt: skip


@pytest.mark.parametrize("keyword", NEEDED)
def test_wrong_kinds_of_values(tmp_path: Path, keyword: str) -> None:
    for vr, value in (
        (b"LO", b"Zyxwvut^Canary"),
        (b"DS", b"1e999\\-\\abc "),
        (b"US", b"\xff\xff\xff\xff\xff\xff"),
        (b"FD", bytes.fromhex("000000000000f87f") * 6),
        (b"PN", b"\x1b$)C\xff\xfe=="),
        (b"AT", b"\x01\x02\x03"),
        (b"??", b"junk"),
    ):
        found = survive(with_raw_element(tmp_path, NEEDED[keyword], vr, value))
        assert "Canary" not in found


USED = (
    "TransferSyntaxUID", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "PatientID", "ImageType", "Manufacturer", "AcquisitionNumber",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows",
    "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation", "SliceThickness",
)  # fmt: skip
UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
LONG_VRS = (b"OB", b"OW", b"UN", b"SQ", b"UT", b"UC")
SHORT_VRS = (b"UI", b"CS", b"DS", b"IS", b"LO", b"US", b"SS", b"FD", b"PN", b"DA", b"AT", b"??")
VALUES = (
    b"1.2.840.10008.1.2.1\\1.2.840.10008.1.2", b"1.2.3\\4.5.6 ", b"\\ ", b"", b"Zyxwvut^Canary",
    b"1e999\\-1e999\\nan", b"0\\0", b"-1\\-1", b"\xff\xff\xff\xff\xff\xff", bytes(6),
    bytes.fromhex("000000000000f87f") * 6, ITEM + b"\xff\xff\xff\xff", b"1\\2\\3\\4\\5\\6\\7\\8 ",
)  # fmt: skip


def with_element(whole: bytes, keyword: str, vr: bytes, value: bytes) -> bytes:
    """A file of explicit VR with an element in the place of one with the same tag."""
    tag = pydicom.tag.Tag(keyword)
    name = struct.pack("<HH", tag.group, tag.element)
    start = next(whole.index(name + old) for old in (b"UI", *SHORT_VRS) if name + old in whole)
    old_length = struct.unpack_from("<H", whole, start + 6)[0]
    value += b" " * (len(value) % 2)
    length = b"\0\0" + struct.pack("<I", len(value)) if vr in LONG_VRS else None
    new = name + vr + (length or struct.pack("<H", len(value))) + value
    changed = whole[:start] + new + whole[start + 8 + old_length :]
    if tag.group == 2:  # the length of file meta is its first element
        meta = struct.unpack_from("<I", whole, 140)[0] + len(new) - 8 - old_length
        changed = changed[:140] + struct.pack("<I", meta) + changed[144:]
    return changed


def read_or_refusal(summary: io.SeriesSummary) -> str:
    """What reading the series that a summary names came to: nothing, or the refusal."""
    try:
        np.asarray(io.read(summary.path, files=summary.files).hu)
    except MedQDMError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("keyword", USED)
def test_one_odd_file_costs_no_other_series(ct_series, tmp_path: Path, keyword: str) -> None:
    """A wrong kind of value, or number of them, in one slice of a series beside two others."""
    rng = np.random.default_rng(USED.index(keyword))
    good = [ct_series(np.zeros((2, 8, 8)), folder=f"root/{name}") for name in ("a", "z")]
    victim = ct_series(np.zeros((2, 8, 8)), folder="root/b") / "001"
    whole = victim.read_bytes()
    vrs = (b"UI", *SHORT_VRS, *LONG_VRS)
    for k in range(16):
        vr = vrs[rng.integers(len(vrs))] if k else b"UI"
        value = VALUES[rng.integers(len(VALUES))] if k else VALUES[0]
        victim.write_bytes(with_element(whole, keyword, vr, value))
        found = io.take_inventory(tmp_path / "root")
        text = json.dumps(asdict(found), default=str)
        assert "Canary" not in text.replace("Zyxwvut^Canary", "" if keyword in UIDS else "Canary")
        by_path = {s.path: s for s in found.series}
        for folder in good:
            summary = by_path[folder]
            assert (summary.problem, summary.num_slices) == (None, 2)
            volume = io.read(folder, series=summary.series_instance_uid, files=summary.files)
            assert volume.shape == (2, 8, 8)
        for summary in found.series:
            if summary.path not in good:
                assert "\n" not in read_or_refusal(summary)
        refused = sum(s.num_slices for s in found.series if s.path not in good)
        assert refused + sum(found.skipped.values()) >= 2, "no slice is lost without a word"


@pytest.mark.parametrize(
    "value", [VALUES[0], b"1.2.3\\", b"Zyxwvut^Canary", b"1.2.840.10008.5.1.4.1.1.2", b"1..2",
              b"1.2.840.10008.1.2.999"],
)  # fmt: skip
@pytest.mark.parametrize("vr", [b"UI", b"LO", b"UC"])
def test_a_damaged_transfer_syntax_is_a_reason_of_its_own(
    ct_series, tmp_path: Path, vr: bytes, value: bytes
) -> None:
    victim = ct_series(np.zeros((3, 8, 8))) / "002"
    victim.write_bytes(with_element(victim.read_bytes(), "TransferSyntaxUID", vr, value))
    (summary,) = io.find_series(victim.parent)
    assert summary.problem.startswith("002: TransferSyntaxUID must be one transfer syntax")
    assert "Canary" not in repr(summary)
    with pytest.raises(MedQDMError, match="TransferSyntaxUID must be one transfer syntax"):
        io.read(victim.parent)
    volume = io.read(victim.parent, skip_bad=True)
    assert (volume.shape[0], volume.source.left_out) == (2, 1)


def test_whatever_a_file_raises_it_is_damaged_and_named(
    ct_series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Faults that nobody thought of, in files and in series."""
    for name in "abc":
        ct_series(np.zeros((2, 8, 8)), folder=f"root/{name}", SeriesInstanceUID=f"1.2.{ord(name)}")
    real_read, real_arrange = dicom_scan.read_header, inventory.arrange
    kinds = (AttributeError, TypeError, OverflowError, MemoryError, RecursionError, AssertionError)

    def read(file: Path) -> object:
        if file.name == "002" and file.parent.name in "ab":
            raise kinds[ord(file.parent.name) % len(kinds)](CANARY)
        return real_read(file)

    def arrange(slices: list, *, label: str) -> object:
        if label.endswith(str(ord("b"))):
            raise ZeroDivisionError(CANARY)
        return real_arrange(slices, label=label)

    monkeypatch.setattr(dicom_scan, "read_header", read)
    monkeypatch.setattr(inventory, "arrange", arrange)
    with caplog.at_level(logging.DEBUG, logger="medqdm"):
        found = io.take_inventory(tmp_path / "root")
    assert found.skipped == {"damaged DICOM file": 2}
    assert found.lost == {"damaged DICOM file": "a/002, b/002"}
    assert [s.problem is None for s in found.series] == [True, False, True]
    assert "got ZeroDivisionError" in found.series[1].problem
    assert caplog.text.count("Traceback (most recent call last)") == 3
    assert "ZeroDivisionError" in caplog.text
    assert "in arrange" in caplog.text
    assert "Canary" not in caplog.text + repr(found)


def test_at_most_a_handful_of_damaged_files_is_named(ct_series, tmp_path: Path) -> None:
    folder = ct_series(np.zeros((2, 8, 8)))
    for k in range(9):
        (folder / f"torn{k}").write_bytes((folder / "001").read_bytes()[:300])
    for options in ([], ["--json"]):
        result = CliRunner().invoke(cli.app, ["info", str(folder), *options])
        assert "torn0, torn1, torn2, torn3, torn4 and 4 more" in result.output


@pytest.mark.parametrize("form", ["zip", "gztar", "bztar", "xztar"])
def test_an_archive_is_to_be_unpacked(ct_series, tmp_path: Path, form: str) -> None:
    name = shutil.make_archive(str(tmp_path / "packed"), form, ct_series(np.zeros((2, 8, 8))))
    with pytest.raises(MedQDMError, match=r"got none \(1 x archive \(unpack it first\)\)"):
        io.read(Path(name))


def test_bad_character_sets_are_no_obstacle(tmp_path: Path) -> None:
    for name in (b"ISO_IR 999", b"\\\\\\\\", b"utf-9 \xff\xfe", b"ISO 2022 IR 13\\ISO_IR 192 "):
        path = with_raw_element(tmp_path, NEEDED["SpecificCharacterSet"], b"CS", name)
        assert survive(path) == ""


def test_uids_are_no_paths(tmp_path: Path) -> None:
    for uid in ("../../etc/passwd", "/etc/passwd", "1.2/../3", "..", "[/red]", "1.2\n.3", "a" * 70):
        path = changed_ct(tmp_path, SeriesInstanceUID=uid)
        (summary,) = io.find_series(path)
        assert str(summary.series_instance_uid).startswith("2.25.")
        assert io.read(path, series=summary.series_instance_uid).shape == (1, 128, 128)
    kept = "09bc8aea-ff9c-4106-8514-294cbcf9a082"  # no UID either, but harmless
    (summary,) = io.find_series(changed_ct(tmp_path, SeriesInstanceUID=kept))
    assert summary.series_instance_uid == kept


def test_a_dicomdir_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "medium").mkdir()
    saved(pydicom.dcmread(CT), tmp_path, "outside")
    for parts in (["..", "outside"], ["", "tmp"], ["../outside"], ["A\0B"]):
        with tolerant():
            record, directory = Dataset(), pydicom.dcmread(CT, stop_before_pixels=True)
            record.ReferencedFileID = parts
            directory.DirectoryRecordSequence = Sequence([record])
        with pytest.raises(MedQDMError, match="DICOMDIR must"):
            io.read(saved(directory, tmp_path / "medium", "DICOMDIR"))


def test_pipes_and_unreadable_files_do_not_stop_a_scan(tmp_path: Path) -> None:
    saved(pydicom.dcmread(CT), tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert io.take_inventory(tmp_path).skipped == {"no regular file": 2}
    assert io.read(tmp_path).shape == (1, 128, 128)


def test_markup_in_names_is_printed_as_it_is(tmp_path: Path) -> None:
    name = "[" + "/red]x"
    (tmp_path / "[").mkdir()
    saved(changed := pydicom.dcmread(CT), tmp_path, "[bold]")
    del changed.PixelSpacing
    saved(changed, tmp_path / "[", name.partition("/")[2])
    result = CliRunner().invoke(cli.app, ["info", str(tmp_path)])
    assert result.exit_code == 0


def _canaries(dataset: Dataset) -> None:
    """Every text, name and date that a header may have, at the top level."""
    kinds = {"PN": CANARY, "LO": CANARY, "SH": CANARY[:16], "LT": CANARY, "ST": CANARY,
             "UT": CANARY, "DA": CANARY_DATE, "DT": CANARY_DATE, "UC": CANARY}  # fmt: skip
    for tag, (vr, *_) in DicomDictionary.items():
        if vr in kinds and tag >> 16 > 0x0002 and keyword_for_tag(tag) != "RescaleType":
            dataset[tag] = DataElement(tag, vr, kinds[vr])


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"Rows": 0},
        {"RescaleType": CANARY},
        {"PixelSpacing": None},
        {"BitsStored": 0},
        {"PixelData": b"\0\0"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"SOPClassUID": CANARY},
        {"SeriesInstanceUID": CANARY},
        {"FrameOfReferenceUID": CANARY},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
    ],
    ids=str,
)
def test_nothing_of_the_patient_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tags: dict[str, object]
) -> None:
    with tolerant():
        dataset = pydicom.dcmread(CT)
        _canaries(dataset)
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
    path = saved(dataset, tmp_path)
    saved(dataset, tmp_path, "again")  # a duplicate
    with caplog.at_level(logging.DEBUG):
        told = [survive(path), survive(tmp_path), caplog.text]
        for options in ([], ["--json"]):
            result = CliRunner().invoke(cli.app, ["info", str(tmp_path), *options])
            assert result.exit_code == 0, result.exception
            told.append(result.output)
    text = "".join(told).lower()
    assert not [word for word in ("zyxwvut", "canary", CANARY_DATE) if word in text]
    if not tags:
        (volume,) = [io.read(tmp_path)]
        assert volume.source.warnings == ("left out 1 duplicate file(s)",)


def nifti_bytes(*, dims: tuple[int, ...] | None = None, packed: bool = False) -> bytes:
    image = nibabel.Nifti1Image(np.zeros((8, 8, 4), np.int16), np.diag([0.7, 0.7, 2, 1]))
    whole = bytearray(image.to_bytes())
    if dims is not None:
        struct.pack_into(f"<{len(dims) + 1}h", whole, 40, len(dims), *dims)
    return gzip.compress(bytes(whole)) if packed else bytes(whole)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dims", [(32767, 32767, 32767), (4000, 4000, 4000), (8, 8, 0), (-1, 8, 8)])
def test_nifti_sizes_that_lie(tmp_path: Path, dims: tuple[int, ...], packed: bool) -> None:
    path = tmp_path / ("scan.nii.gz" if packed else "scan.nii")
    path.write_bytes(nifti_bytes(dims=dims, packed=packed))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert survive(path) != ""
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH


def test_gzip_bombs_are_counted_before_they_are_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    honest = nifti_bytes(dims=(1000, 1000, 1000))  # 2 GB, as little as a thousandth packed
    bomb = gzip.compress(honest[:352] + bytes(1 << 21))
    path.write_bytes(bomb + os.urandom(2_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "must hold the 2000000" in survive(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH


NRRD = (
    b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: %s\n"
    b"space directions: (0.7,0,0) (0,0.7,0) (0,0,2)\nkinds: domain domain domain\nendian: little\n"
    b"encoding: %s\nspace origin: (0,0,0)\n"
)
MHA = (
    b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    b"CompressedData = %s\nElementSpacing = 0.7 0.7 2\nDimSize = %s\nElementType = MET_SHORT\n"
)


@pytest.mark.parametrize("size", [b"90000 90000 90000", b"3000 3000 3000", b"8 8 0", b"-8 8 8"])
def test_itk_sizes_that_lie(tmp_path: Path, size: bytes) -> None:
    (tmp_path / "raw.nrrd").write_bytes(NRRD % (size, b"raw") + b"\n" + bytes(512))
    packed = NRRD % (size, b"gzip") + b"\n" + gzip.compress(bytes(512))
    (tmp_path / "packed.nrrd").write_bytes(packed)
    local = b"ElementDataFile = LOCAL\n"
    (tmp_path / "raw.mha").write_bytes(MHA % (b"False", size) + local + bytes(512))
    huge = b"CompressedDataSize = 99999999999999\n" + local
    (tmp_path / "packed.mha").write_bytes(MHA % (b"True", size) + huge + zlib.compress(bytes(512)))
    honest = MHA % (b"True", b"8 8 4") + huge + zlib.compress(bytes(512))
    (tmp_path / "honest.mha").write_bytes(honest)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(tmp_path.iterdir()):
        assert survive(path) != "", path.name
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH


@pytest.mark.parametrize("name", ["../secret.raw", "/dev/zero", "missing.raw", "sub/../../secret"])
def test_headers_name_no_foreign_files(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(512))
    header = NRRD % (b"8 8 4", b"raw") + f"data file: {name}\n".encode()
    (folder / "a.nhdr").write_bytes(header)
    (folder / "a.nrrd").write_bytes(header)
    meta = MHA % (b"False", b"8 8 4") + f"ElementDataFile = {name}\n".encode()
    (folder / "a.mhd").write_bytes(meta)
    for path in sorted(folder.iterdir()):
        assert "data file is missing or outside of its folder" in survive(path)
    (folder / "voxels.raw").write_bytes(bytes(512))
    (folder / "a.mhd").write_bytes(meta.replace(name.encode(), b"voxels.raw"))
    assert survive(folder / "a.mhd") == ""


def enhanced_bytes() -> bytes:
    """A small enhanced CT of two frames."""
    dataset = pydicom.dcmread(OBLIQUE)
    dataset.SOPClassUID = pydicom.uid.EnhancedCTImageStorage
    dataset.NumberOfFrames = 2
    groups = []
    for k in range(2):
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 3 * k]
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelData = dataset.PixelData * 2
    return _bytes(dataset)


def _bytes(dataset: Dataset) -> bytes:
    stream = BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def compressed_bytes(syntax: pydicom.uid.UID) -> bytes:
    dataset = pydicom.dcmread(OBLIQUE)
    if syntax.is_encapsulated:
        dataset.compress(syntax)
    dataset.file_meta.TransferSyntaxUID = syntax
    return _bytes(dataset)


SEEDS = {
    "explicit": OBLIQUE.read_bytes(),
    "deflated": compressed_bytes(DeflatedExplicitVRLittleEndian),
    "jpeg-ls": compressed_bytes(JPEGLSLossless),
    "rle": compressed_bytes(RLELossless),
    "enhanced": enhanced_bytes(),
    "no preamble": OBLIQUE.read_bytes()[132:],
    ".nii": nifti_bytes(),
    ".nii.gz": nifti_bytes(packed=True),
    ".nrrd": NRRD % (b"8 8 4", b"raw") + b"\n" + bytes(512),
    ".mha": MHA % (b"False", b"8 8 4") + b"ElementDataFile = LOCAL\n" + bytes(512),
}
INTERESTING = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"SQ", b"UN", b"\\", ITEM,
               b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xff\xfe", b"-1", b"9" * 12, b"1e999"]  # fmt: skip


@st.composite
def mutants(draw: st.DrawFn) -> tuple[str, bytes]:
    """A seed with places overwritten, inserted, cut or repeated; most of them in the header."""
    name = draw(st.sampled_from(sorted(SEEDS)))
    data = bytearray(SEEDS[name])
    for _ in range(draw(st.integers(1, 6))):
        header = min(len(data), 2200)
        reach = draw(st.sampled_from([header, header, header, len(data)]))
        at = draw(st.integers(0, max(0, reach - 1)))
        piece = draw(st.one_of(st.sampled_from(INTERESTING), st.binary(min_size=1, max_size=8)))
        how = draw(st.sampled_from(["write", "write", "insert", "cut", "repeat", "end"]))
        if how == "write":
            data[at : at + len(piece)] = piece
        elif how == "insert":
            data[at:at] = piece
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "repeat":
            data[at:at] = data[at : at + 200] * draw(st.integers(1, 5))
        else:
            del data[max(at, 140) :]
    return name, bytes(data)


outcomes = {"written": 0, "refused": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(
    max_examples=FUZZ,
    deadline=10_000,
    derandomize="MEDQDM_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(mutant=mutants())
def test_fuzz(place: Path, mutant: tuple[str, bytes]) -> None:
    name, data = mutant
    path = place / (f"scan{name}" if name.startswith(".") else "slice.dcm")
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = survive(path, place / "out")
    finally:
        path.unlink()
        shutil.rmtree(place / "out", ignore_errors=True)
    outcomes["refused" if found else "written"] += 1
    assert not list(place.glob(".*"))
    assert "\n" not in found
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH


def test_the_fuzz_came_through_to_the_pixels() -> None:
    """Mutants that are all refused at the door would prove nothing."""
    assert sum(outcomes.values()) >= FUZZ
    assert min(outcomes.values()) >= FUZZ // 20
    logging.getLogger(__name__).info("fuzz: %s", json.dumps(outcomes))
