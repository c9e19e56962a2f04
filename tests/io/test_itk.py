import gzip
import subprocess
import sys
import tempfile
import time
import zlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (its usual name)

from medqdm.errors import MedQDMError
from medqdm.io import itk, read, take_inventory, write


@pytest.fixture
def image(phantom):
    image = sitk.GetImageFromArray(phantom.astype(np.int16))
    image.SetSpacing((0.6, 0.8, 2.5))
    image.SetOrigin((-30.5, 12.25, 400.0))
    image.SetDirection((0.8, 0, 0.6, 0, 1, 0, -0.6, 0, 0.8))
    image.SetMetaData("Scanner", "phantom")
    return image


def _enhance(volume, upscale=4):
    return volume.with_pixels(volume.hu.repeat(upscale, 1).repeat(upscale, 2))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_round_trip_keeps_edges_mark_and_metadata(image, tmp_path, phantom, ending):
    sitk.WriteImage(image, str(tmp_path / f"scan{ending}"))
    volume = read(tmp_path / f"scan{ending}", slice_axis=2)
    np.testing.assert_array_equal(volume.hu, phantom)
    write(volume, _enhance(volume), tmp_path / f"out{ending}")
    assert not volume.source.is_enhanced
    assert read(tmp_path / f"out{ending}", slice_axis=2).source.is_enhanced
    after = sitk.ReadImage(str(tmp_path / f"out{ending}"))
    assert after.GetSize() == (160, 192, 4)
    assert after.GetPixelID() == sitk.sitkInt16
    expected = sitk.Expand(image, (4, 4, 1), sitk.sitkNearestNeighbor)
    np.testing.assert_allclose(after.GetOrigin(), expected.GetOrigin(), atol=1e-9)
    np.testing.assert_allclose(after.GetSpacing(), expected.GetSpacing(), atol=1e-9)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), sitk.GetArrayFromImage(expected))
    mark = np.argwhere(sitk.GetArrayFromImage(after) == 1500).mean(axis=0)[::-1]
    np.testing.assert_allclose(
        after.TransformContinuousIndexToPhysicalPoint(mark.tolist()),
        image.TransformIndexToPhysicalPoint((27, 13, 2)),
    )
    assert after.GetMetaData("Scanner") == "phantom"


def test_the_odd_spacing_is_the_slice_axis(image, tmp_path, phantom):
    image.SetSpacing((0.7, 0.7, 2.5))
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    assert read(tmp_path / "scan.nrrd").shape == phantom.shape
    image.SetSpacing((1, 1, 1))
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    with pytest.raises(MedQDMError, match="--slice-axis"):
        read(tmp_path / "scan.nrrd")


def test_detached_headers_are_read_but_not_written(image, tmp_path, phantom):
    sitk.WriteImage(image, str(tmp_path / "scan.mhd"))
    volume = read(tmp_path / "scan.mhd", slice_axis=2)
    np.testing.assert_array_equal(volume.hu, phantom)
    with pytest.raises(MedQDMError, match=r"must end in .nrrd or .mha, got .mhd"):
        write(volume, _enhance(volume), tmp_path / "out.mhd")


def test_vectors_and_four_dimensions_are_refused(image, tmp_path):
    sitk.WriteImage(sitk.Compose(image, image), str(tmp_path / "vector.nrrd"))
    with pytest.raises(MedQDMError, match=r"with 2 value\(s\) each"):
        read(tmp_path / "vector.nrrd")
    sitk.WriteImage(sitk.JoinSeries(image, image), str(tmp_path / "time.nrrd"))
    with pytest.raises(MedQDMError, match=r"got size \(40, 48, 4, 2\)"):
        read(tmp_path / "time.nrrd")


def test_damaged_files_are_refused(image, tmp_path):
    (tmp_path / "scan.nrrd").write_text("NRRD0004\nnothing")
    with pytest.raises(MedQDMError, match=r"scan.nrrd: must be a whole NRRD or MetaImage file"):
        read(tmp_path / "scan.nrrd")


NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\n{space}sizes: 8 8 4\n{steps}endian: little\n"
    "encoding: {encoding}\n\n"
)
DIRECTIONS = "space directions: (0.7,0,0) (0,0.7,0) (0,0,2)\n"
WORDS = np.random.default_rng(0).integers(-1000, 1000, (4, 8, 8)).astype("<i2")


@pytest.mark.parametrize(
    ("space", "is_guess"),
    [("", True), ("space dimension: 3\n", True), ("space: scanner-xyz\n", True),
     ("space: 3D-right-handed\n", True), ("space: left-posterior-superior\n", False),
     ("space: right-anterior-superior\n", False), ("space: LAS\n", False)],
)  # fmt: skip
def test_a_place_without_a_space_of_the_patient_is_a_guess(tmp_path, space, is_guess):
    header = NRRD.format(
        space=space, steps=DIRECTIONS if space else "spacings: 0.7 0.7 2\n", encoding="raw"
    )
    (tmp_path / "scan.nrrd").write_bytes(header.encode() + WORDS.tobytes())
    volume = read(tmp_path / "scan.nrrd")
    np.testing.assert_array_equal(volume.hu, WORDS)
    assert any("the place there is a guess" in w for w in volume.source.warnings) == is_guess


@pytest.mark.parametrize("first", [True, False])
def test_a_list_of_one_volume_is_read(tmp_path, first):
    sizes, kinds, none = ["8", "8", "4"], ["domain"] * 3, DIRECTIONS.strip().partition(": ")[2]
    at = 0 if first else 3
    sizes.insert(at, "1")
    kinds.insert(at, "list")
    steps = none.split()
    steps.insert(at, "none")
    header = (
        "NRRD0005\ntype: short\ndimension: 4\nspace: left-posterior-superior\n"
        f"sizes: {' '.join(sizes)}\nspace directions: {' '.join(steps)}\n"
        f"kinds: {' '.join(kinds)}\nendian: little\nencoding: raw\nspace origin: (1,2,3)\n\n"
    )
    (tmp_path / "list.nrrd").write_bytes(header.encode() + WORDS.tobytes())
    volume = read(tmp_path / "list.nrrd")
    np.testing.assert_array_equal(volume.hu, WORDS)
    np.testing.assert_allclose(volume.position_mm(0, 0, 0), (1, 2, 3))


def packed_file(folder, kind, data, size=None):
    """An NRRD or MetaImage file, its voxels in it or beside it."""
    if kind == "nrrd":
        header = NRRD.format(space="space: LPS\n", steps=DIRECTIONS, encoding="gzip")
    else:
        where = "LOCAL" if kind == "mha" else "voxels.zraw"
        size = f"CompressedDataSize = {len(data) if size is None else size}\n" if size != "" else ""
        header = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            "CompressedData = True\nElementSpacing = 0.7 0.7 2\nDimSize = 8 8 4\n"
            f"ElementType = MET_SHORT\n{size}ElementDataFile = {where}\n"
        )
    path = folder / f"scan.{kind}"
    path.write_bytes(header.encode() + (b"" if kind == "mhd" else data))
    if kind == "mhd":
        (folder / "voxels.zraw").write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["nrrd", "mha", "mhd"])
def test_damaged_compressed_voxels_are_refused(tmp_path, kind):
    whole = gzip.compress(WORDS.tobytes()) if kind == "nrrd" else zlib.compress(WORDS.tobytes())
    np.testing.assert_array_equal(read(packed_file(tmp_path, kind, whole)).hu, WORDS)
    rng = np.random.default_rng(1)
    for _ in range(8):
        data = bytearray(whole)
        if rng.random() < 0.5:
            del data[rng.integers(len(data)) :]
        else:  # behind the name and time that a gzip header may hold
            data[rng.integers(10, len(data) - 4)] ^= 1 << rng.integers(8)
        with pytest.raises(MedQDMError, match="must be"):
            read(packed_file(tmp_path, kind, bytes(data)))


@pytest.mark.parametrize("kind", ["mha", "mhd"])
def test_a_compressed_size_that_lies_is_refused(tmp_path, kind):
    """The library would read the header as voxels, or stop before their end."""
    whole = zlib.compress(WORDS.tobytes())
    rng = np.random.default_rng(2)
    for size in [1, len(whole) - 1, *rng.integers(2, len(whole), 3), *([""] * (kind == "mha"))]:
        with pytest.raises(MedQDMError, match="must be"):
            read(packed_file(tmp_path, kind, whole, size))
    for size in [len(whole), *([""] * (kind == "mhd"))]:
        np.testing.assert_array_equal(read(packed_file(tmp_path, kind, whole, size)).hu, WORDS)


def odd_header(rng):
    """A header with one field of a size, word or number that lies."""
    word = "A" * int(rng.integers(1000, 20_000))
    lie = str(rng.choice([2**31, 2**31 - 1, 2**32, 2**63, -1, -(2**31), 0, 17, 10**30]))
    values = [lie, word, f"{lie} {lie} {lie}", "nan", "", "MET_OTHER", "True True", "(1,0,0)"]
    if rng.random() < 0.5:
        fields = {"NDims": "3", "BinaryData": "True", "CompressedData": "False",
                  "ElementSpacing": "0.7 0.7 2", "DimSize": "8 8 4", "TransformMatrix":
                  "1 0 0 0 1 0 0 0 1", "HeaderSize": "0", "ElementNumberOfChannels": "1",
                  "CompressedDataSize": "100", "ElementType": "MET_SHORT"}  # fmt: skip
        ending, line, end = ".mha", "{} = {}\n", "ElementDataFile = LOCAL\n"
        start = "ObjectType = Image\n"
    else:
        fields = {"type": "short", "dimension": "3", "space": "left-posterior-superior",
                  "sizes": "8 8 4", "space directions": "(0.7,0,0) (0,0.7,0) (0,0,2)", "kinds":
                  "domain domain domain", "endian": "little", "encoding": "raw", "byte skip": "0",
                  "line skip": "0", "space origin": "(0,0,0)"}  # fmt: skip
        ending, line, end, start = ".nrrd", "{}: {}\n", "\n", "NRRD0005\n"
    fields[str(rng.choice(list(fields)))] = str(rng.choice(values))
    if rng.random() < 0.2:
        fields[word] = word
    text = "".join(line.format(key, value) for key, value in fields.items())
    return ending, (start + text + end).encode() + WORDS.tobytes()


@pytest.mark.parametrize("seed", range(12))
def test_headers_that_lie_end_in_one_line_or_in_a_volume(tmp_path, seed):
    ending, data = odd_header(np.random.default_rng(seed))
    path = tmp_path / f"scan{ending}"
    path.write_bytes(data)
    (summary,) = take_inventory(path).series
    if summary.problem is None:
        assert summary.num_slices > 0
    else:
        assert summary.problem.startswith(path.name)
        assert "\n" not in summary.problem
        assert "AAA" not in summary.problem


@pytest.mark.parametrize(
    ("ndims", "spacing", "message"),
    [(2147483648, "ElementSpacing = 1 1 2\n", "crashes its reader"),
     (-3, "ElementSpacing = 1 1 2\n", "crashes its reader"), (-3, "", "takes too long to read")],
)  # fmt: skip
def test_dimensions_that_crash_or_hang_the_library(tmp_path, ndims, spacing, message):
    text = f"ObjectType = Image\nNDims = {ndims}\n{spacing}DimSize = 8 8 4\n"
    text += "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "scan.mha").write_bytes(text.encode() + bytes(512))
    with pytest.raises(MedQDMError, match=f"must be a whole NRRD or MetaImage file.*{message}"):
        read(tmp_path / "scan.mha")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import time; time.sleep(60)", "takes too long to read"),
        ("import os; os.abort()", "crashes its reader"),
        ("import sys; sys.exit(1)", "cannot be read"),
        ("import sys; sys.exit(3)", "needs more memory than its voxels"),
        ("import sys; sys.exit(4)", "too little room there; free some space or set TMPDIR"),
    ],
)
def test_whatever_becomes_of_the_reader_is_one_line(image, tmp_path, monkeypatch, script, message):
    folder, watched = tmp_path / "scratch", "import os, sys, stat\nfrom pathlib import Path\n"
    folder.mkdir()
    watched += (
        f"mode = stat.S_IMODE(os.stat(sys.argv[2]).st_mode)\nPath({str(tmp_path / 'mode')!r})"
    )
    watched += f".write_text(oct(mode) + sys.argv[2])\nassert not sys.stdin.read()\n{script}\n"
    (tmp_path / "stub.py").write_text(watched)
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    monkeypatch.setattr(itk, "_READER", tmp_path / "stub.py")
    monkeypatch.setattr(itk, "_SECONDS", 1.0)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    start = time.monotonic()
    with pytest.raises(MedQDMError) as refusal:
        read(tmp_path / "scan.nrrd", slice_axis=2)
    assert time.monotonic() - start < 30
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "mode").read_text().startswith(f"0o700{folder}")
    assert not list(folder.iterdir())


def test_memory_of_the_reader_is_bounded(tmp_path):
    """A header of 100 bytes that asks for 90 TB of compressed data."""
    data = zlib.compress(WORDS.tobytes())
    path = packed_file(tmp_path, "mha", data, 99999999999999)
    with pytest.raises(MedQDMError, match="needs more memory than its voxels"):
        read(path)


def test_the_reader_imports_nothing_of_medqdm(image, tmp_path):
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    code = (
        "import runpy, sys; sys.argv[1:] = sys.argv[2:]\n"
        f"try: runpy.run_path({str(itk._READER)!r}, run_name='__main__')\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'medqdm', 'torch', 'pydicom'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-I", "-c", code, "", tmp_path / "scan.nrrd", tmp_path, "99999999",
               "99999999"]  # fmt: skip
    assert subprocess.run(command, check=False).returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "voxels.npy"), sitk.GetArrayFromImage(image))
