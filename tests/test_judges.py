"""What other people's tools say of an enhanced series, beside its source.

dicom3tools, dcmtk, dcm2niix, highdicom and a PACS (Orthanc with DICOMweb), for series of three
makers and two tilted heads. ``MEDQDM_REQUIRE_JUDGES`` makes a missing tool a failure.
"""

import email
import io as bytes_io
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.pixels import get_decoder

from medqdm import io
from medqdm.io.dicom_header import PRESENT
from medqdm.io.dicom_objects import write_parametric_map, write_segmentation
from medqdm.picture import upsample_bicubic
from medqdm.volume import check_same_edges

DATA = Path(__file__).parent / "data"
SOURCES = {  # and the factor
    "demo-series": 4,  # Siemens
    "hr-slices/chest-covid-cap001": 2,  # Siemens
    "hr-slices/head-harvard02": 2,  # Philips
    "vendors/ge-lung-bases": 2,
    "vendors/ge-head-tilt": 2,
    "vendors/philips-skull-tilt": 2,
    "hr-slices/chest-covid-cap001#frames": 2,  # a frame of reference for each slice
}
TILTED = {"vendors/ge-head-tilt", "vendors/philips-skull-tilt"}
ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def need(tool: str) -> str:
    """The path of a tool; skips the test, or fails it where judges are required."""
    found = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None and "MEDQDM_REQUIRE_JUDGES" not in os.environ:
        pytest.skip(f"{tool} is not installed")
    assert found, f"{tool} must be installed for this run"
    return found


class Pair(NamedTuple):
    """A series and what was made of it."""

    name: str
    source: Path
    out: Path


def dicom_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file())


def enlarge(source: Path, out: Path, upscale: int, transfer_syntax: str = "explicit") -> None:
    volume = io.read(source)
    io.write_series(
        volume,
        (upsample_bicubic(hu, upscale) for hu in volume.hu),
        out,
        upscale=upscale,
        description="bicubic enlargement for a test",
        software_version="0",
        weights_id="none",
        uid_entropy=["test"],
        transfer_syntax=transfer_syntax,
    )


@pytest.fixture(scope="module", params=SOURCES)
def pair(request: pytest.FixtureRequest, tmp_path_factory) -> Pair:
    """A real series (decompressed: not every tool reads JPEG-LS), and its enlargement."""
    folder = tmp_path_factory.mktemp("judged")
    source, out = folder / "source", folder / "out"
    source.mkdir()
    with pydicom.config.disable_value_validation():
        name, _, edit = request.param.partition("#")
        for k, file in enumerate(dicom_files(DATA / name)):
            dataset = pydicom.dcmread(file)
            if edit == "frames":
                dataset.FrameOfReferenceUID = f"{dataset.FrameOfReferenceUID}.{k + 1}"
            if dataset.file_meta.TransferSyntaxUID.is_compressed:
                dataset.decompress(generate_instance_uid=False)
            dataset.save_as(source / f"{file.stem}.dcm")
    enlarge(source, out, SOURCES[request.param])
    return Pair(request.param, source, out)


def complaints(tool: str, files: list[Path], *options: str) -> dict[str, str]:
    """What a tool says, without values and paths: message to the attribute it is about."""
    ended = subprocess.run(
        [tool, *options, *map(str, files)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    found = {}
    for line in (ended.stdout + ended.stderr).splitlines():
        if re.match(r"Error|Warning", line):
            attribute = re.search(r"</(\w+)\(|Element=<(\w+)>", line)
            name = attribute[1] or attribute[2] if attribute else ""
            found[f"{name}: " + re.sub(r"<[^>]*>?|/\S+", "", line)] = name
    return found


def test_dciodvfy_finds_nothing_that_the_source_lacks(pair: Pair) -> None:
    tool = need("dciodvfy")
    before, after = {}, {}
    for collected, folder in ((before, pair.source), (after, pair.out)):
        for file in dicom_files(folder):
            collected.update(complaints(tool, [file], "-new"))
    # what the source lacks against the standard is added empty: an error becomes a warning
    mended = {name for message, name in before.items() if "Error" in message}
    new = {m for m, name in after.items() if m not in before and name not in mended}
    assert new == set()
    assert not [m for m in after if "Error" in m and m not in before]


def test_dcentvfy_sees_one_study_and_two_series(pair: Pair) -> None:
    tool = need("dcentvfy")
    before = complaints(tool, dicom_files(pair.source))
    both = complaints(tool, dicom_files(pair.source) + dicom_files(pair.out))
    # what every CT must have though the source lacks it (type 2) is added empty
    headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in dicom_files(pair.source)]
    added = {keyword for keyword in PRESENT if any(keyword not in header for header in headers)}
    assert {m for m, name in both.items() if m not in before and name not in added} == set()


def test_dcmtk_reads_it(pair: Pair, tmp_path: Path) -> None:
    files = dicom_files(pair.out)
    for tool, options in (("dcmdump", ["-q"]), ("dcmftest", [])):
        command = [need(tool), *options, *map(str, files)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0, tool
    picture = tmp_path / "picture.pgm"
    shown = subprocess.run(
        [need("dcm2pnm"), "+Ww", "40", "400", files[0], picture], capture_output=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    header = picture.read_bytes()[:40].split()
    first = pydicom.dcmread(files[0], stop_before_pixels=True)
    assert [int(v) for v in header[1:3]] == [first.Columns, first.Rows]


def test_highdicom_builds_the_volume_at_the_same_place(pair: Pair) -> None:
    def load(folder: Path) -> Any:
        with pydicom.config.disable_value_validation():
            images = [highdicom.imread(f) for f in dicom_files(folder)]
            if folder == pair.source:  # it wants one frame of reference, which the output has
                for image in images:
                    image.FrameOfReferenceUID = images[0].FrameOfReferenceUID
            return highdicom.get_volume_from_series(images)

    if pair.name in TILTED:  # no regular volume: refused before as after
        for folder in pair[1:]:
            with pytest.raises(ValueError, match="regularly-spaced"):
                load(folder)
        return
    corners = []
    for folder in pair[1:]:
        volume = load(folder)
        index = np.array([[0, -0.5, -0.5], [0, volume.shape[1] - 0.5, volume.shape[2] - 0.5]])
        corners.append(volume.map_indices_to_reference(index))
    np.testing.assert_allclose(corners[1], corners[0], atol=1e-3)


def upright(affine: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """The affine of a tilted series without a fault of dcm2niix 1.0.20220720.

    It divides the step in y by the cosine of the tilt instead of multiplying, of any tilted series:
    the first row that it stores is where it should be, the last one 26 mm off. The outer edge of
    the first row, half a step away, is off by less in smaller pixels, which would look like a move.
    """
    step, cosine = float(header.PixelSpacing[0]), float(header.ImageOrientationPatient[4])
    np.testing.assert_allclose(affine[1, 1], step / cosine, rtol=1e-5)
    put_right = affine.copy()
    put_right[1, 1] = step * cosine
    return put_right


def test_dcm2niix_puts_it_at_the_same_place(pair: Pair, tmp_path: Path) -> None:
    tool = need("dcm2niix")
    edges: list[dict[str, np.ndarray]] = []
    for name, folder in zip(("source", "out"), pair[1:], strict=True):
        (tmp_path / name).mkdir()
        subprocess.run(
            [tool, "-z", "n", "-b", "n", "-f", "v", "-o", tmp_path / name, folder],
            check=True,
            capture_output=True,
        )
        edges.append({})
        for file in (tmp_path / name).iterdir():
            image = nibabel.load(file)
            affine = image.affine
            if file.name == "v.nii" and pair.name in TILTED:
                affine = upright(affine, pydicom.dcmread(dicom_files(folder)[0]))
            height, width = image.shape[:2]
            last = image.shape[2] - 1
            index = np.array(
                [[y, x, z, 1] for y in (-0.5, height - 0.5) for x in (-0.5, width - 0.5)
                 for z in (0, last)]
            )  # fmt: skip
            edges[-1][file.name] = (affine @ index.T).T[:, :3]
    assert "v.nii" in edges[0]
    # Its sheared copies are resampled to other matrices and not compared.
    np.testing.assert_allclose(edges[1]["v.nii"], edges[0]["v.nii"], atol=1e-3)
    assert set(edges[0]) == set(edges[1])


def test_edges_by_our_own_reader(pair: Pair) -> None:
    source, out = (io.read(p) for p in pair[1:])
    check_same_edges(source.corners_mm(), out.corners_mm(), where="test")
    assert source.z_steps_mm == pytest.approx(out.z_steps_mm, abs=1e-6)


@pytest.fixture
def overlays(pair: Pair, tmp_path: Path) -> list[Path]:
    """The objects that lie beside the enlargement: every third cell, and a ramp in HU."""
    files, upscale = dicom_files(pair.out), SOURCES[pair.name]
    first = pydicom.dcmread(files[0], stop_before_pixels=True)
    cells = np.zeros((-(-first.Rows // (2 * upscale)), -(-first.Columns // (2 * upscale))), bool)
    cells[::3, 1::3] = True
    ramp = np.linspace(0, 80, first.Columns, dtype=np.float16)[None].repeat(first.Rows, axis=0)
    return [
        *write_segmentation(
            files, lambda _: cells, tmp_path, cell_px=2 * upscale, threshold_hu=150
        ),
        *write_parametric_map(files, lambda _: ramp, tmp_path, draws=8),
    ]


def test_dciodvfy_finds_no_error_in_overlays(pair: Pair, overlays: list[Path]) -> None:
    tool = need("dciodvfy")
    before: dict[str, str] = {}
    for file in dicom_files(pair.out):
        before.update(complaints(tool, [file], "-new"))
    wrong = {name for message, name in before.items() if "Error" in message}
    for file in overlays:
        found = complaints(tool, [file], "-new")
        assert [m for m, name in found.items() if "Error" in m and name not in wrong] == []


def test_dcentvfy_sees_overlays_in_the_same_study(pair: Pair, overlays: list[Path]) -> None:
    tool = need("dcentvfy")
    before = complaints(tool, dicom_files(pair.out))
    both = complaints(tool, [*dicom_files(pair.out), *overlays])
    assert [m for m in both if "Error" in m and m not in before] == []


def test_dcmtk_and_highdicom_read_overlays(overlays: list[Path]) -> None:
    for tool, options in (("dcmdump", ["-q"]), ("dcmftest", [])):
        command = [need(tool), *options, *map(str, overlays)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0, tool
    segmentation = highdicom.seg.segread(overlays[0])
    assert segmentation.number_of_segments == 1
    assert segmentation.get_stored_frame(1).any()
    uncertainty = highdicom.pm.ParametricMap.from_file(overlays[1])
    assert uncertainty.pixel_array.max() == 80


def test_a_pacs_takes_overlays_into_the_study(
    pair: Pair, overlays: list[Path], orthanc: "Orthanc"
) -> None:
    orthanc.clear()
    orthanc.store([*dicom_files(pair.out), *overlays])
    held = orthanc.json("/statistics")
    counts = [held[f"Count{kind}"] for kind in ("Patients", "Studies", "Series", "Instances")]
    assert counts == [1, 1, 3, len(dicom_files(pair.out)) + len(overlays)]
    for file in overlays:
        before = pydicom.dcmread(file)
        after = retrieve(
            orthanc, before.StudyInstanceUID, before.SeriesInstanceUID, before.SOPInstanceUID
        )
        assert after == before


class Orthanc:
    """A PACS of our own, empty."""

    def __init__(self, folder: Path) -> None:
        plugin = ORTHANC_PLUGIN
        if not plugin.is_file() and "MEDQDM_REQUIRE_JUDGES" not in os.environ:
            pytest.skip("orthanc-dicomweb is not installed")
        self.http, self.dicom = _free_port(), _free_port()
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": "ORTHANC",
            "Plugins": [str(plugin)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [need("Orthanc"), folder / "orthanc.json"], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.get("/system")
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
            else:
                return

    def get(self, path: str, accept: str = "*/*") -> tuple[bytes, str]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}{path}", headers={"Accept": accept}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read(), answer.headers.get("Content-Type", "")

    def json(self, path: str, accept: str = "application/json") -> Any:
        return json.loads(self.get(path, accept)[0])

    def clear(self) -> None:
        for patient in self.json("/patients"):
            request = urllib.request.Request(
                f"http://127.0.0.1:{self.http}/patients/{patient}", method="DELETE"
            )
            urllib.request.urlopen(request, timeout=60).close()

    def store(self, files: list[Path]) -> None:
        """C-STORE, each file as it is."""
        command = [need("dcmsend"), "--decompress-never", "-aec", "ORTHANC", "127.0.0.1",
                   str(self.dicom), *map(str, files)]  # fmt: skip
        sent = subprocess.run(command, capture_output=True, text=True, check=False)
        assert sent.returncode == 0, sent.stdout + sent.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory) -> Iterator[Orthanc]:
    need("Orthanc")
    server = Orthanc(tmp_path_factory.mktemp("orthanc"))
    yield server
    server.process.terminate()
    server.process.wait(timeout=60)


def retrieve(orthanc: Orthanc, study: str, series: str, instance: str) -> pydicom.Dataset:
    """One instance by WADO-RS, as it was stored."""
    path = f"/dicom-web/studies/{study}/series/{series}/instances/{instance}"
    body, kind = orthanc.get(path, 'multipart/related; type="application/dicom"; transfer-syntax=*')
    message = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    (part,) = message.get_payload()
    return pydicom.dcmread(bytes_io.BytesIO(part.get_payload(decode=True)))


def test_a_pacs_takes_it_in_and_gives_it_back(pair: Pair, orthanc: Orthanc) -> None:
    orthanc.clear()
    source, out = dicom_files(pair.source), dicom_files(pair.out)
    orthanc.store([*source, *out])
    held = orthanc.json("/statistics")
    counts = [held[f"Count{kind}"] for kind in ("Patients", "Studies", "Series", "Instances")]
    assert counts == [1, 1, 2, 2 * len(source)]
    written = [pydicom.dcmread(file) for file in out]
    study, series = written[0].StudyInstanceUID, written[0].SeriesInstanceUID

    found = [orthanc.json(f"/series/{identifier}") for identifier in orthanc.json("/series")]
    (ours,) = [s for s in found if s["MainDicomTags"]["SeriesInstanceUID"] == series]
    ordered = orthanc.json(f"/series/{ours['ID']}/ordered-slices")["SlicesShort"]
    uids = [
        orthanc.json(f"/instances/{identifier}")["MainDicomTags"]["SOPInstanceUID"]
        for identifier, _, _ in ordered
    ]
    expected = [d.SOPInstanceUID for d in written]
    assert uids in (expected, expected[::-1])
    for identifier, _, _ in ordered:
        picture, kind = orthanc.get(f"/instances/{identifier}/preview", "image/png")
        assert kind == "image/png"
        assert picture.startswith(b"\x89PNG")

    listed = orthanc.json(f"/dicom-web/series?StudyInstanceUID={study}", "application/dicom+json")
    assert {item["0020000E"]["Value"][0] for item in listed} == {
        series, pydicom.dcmread(source[0], stop_before_pixels=True).SeriesInstanceUID,
    }  # fmt: skip
    described = orthanc.json(
        f"/dicom-web/studies/{study}/series/{series}/metadata", "application/dicom+json"
    )
    assert len(described) == len(out)
    for item in described:
        assert item["00280010"]["Value"] == [written[0].Rows]
        assert item["00280030"]["Value"] == pytest.approx(
            [float(v) for v in written[0].PixelSpacing]
        )

    for before in written:
        after = retrieve(orthanc, study, series, before.SOPInstanceUID)
        assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
        assert after == before  # every element, pixels included


@pytest.mark.parametrize("syntax", ["explicit", "jpeg-ls", "jpeg2000", "rle"])
@pytest.mark.parametrize("name", ["demo-series", "vendors/ge-head-tilt"])
def test_transfer_syntaxes_of_signed_and_unsigned_words(
    name: str, syntax: str, tmp_path: Path
) -> None:
    """Every decoder at hand gives the very words back; dciodvfy and dcmtk accept the files."""
    source = tmp_path / "source"
    shutil.copytree(DATA / name, source)
    for file in dicom_files(source)[1:]:
        file.unlink()
    for kind in ("explicit", syntax):
        if not (tmp_path / kind).exists():
            enlarge(source, tmp_path / kind, 2, kind)
    (plain,), (packed,) = dicom_files(tmp_path / "explicit"), dicom_files(tmp_path / syntax)
    words = pydicom.dcmread(plain).pixel_array
    written = pydicom.dcmread(packed)
    assert written.file_meta.TransferSyntaxUID == io.SYNTAXES[syntax]
    plugins = get_decoder(io.SYNTAXES[syntax]).available_plugins if syntax != "explicit" else [""]
    assert plugins
    for plugin in plugins:
        found = pydicom.pixels.pixel_array(packed, decoding_plugin=plugin)
        np.testing.assert_array_equal(found, words, err_msg=plugin)
    np.testing.assert_array_equal(io.read(packed).hu, io.read(plain).hu)
    tool = need("dciodvfy")
    assert set(complaints(tool, [packed], "-new")) <= set(complaints(tool, [plain], "-new"))
    tools = {"jpeg-ls": "dcmdjpls", "rle": "dcmdrle"}
    if syntax in tools:
        unpacked = tmp_path / "unpacked.dcm"
        subprocess.run([need(tools[syntax]), packed, unpacked], check=True, capture_output=True)
        np.testing.assert_array_equal(pydicom.dcmread(unpacked).pixel_array, words)


@pytest.mark.parametrize("syntax", ["jpeg-ls", "jpeg2000", "rle"])
def test_a_pacs_keeps_compressed_series(orthanc: Orthanc, tmp_path: Path, syntax: str) -> None:
    orthanc.clear()
    enlarge(DATA / "demo-series", tmp_path / "out", 2, syntax)
    files = dicom_files(tmp_path / "out")
    orthanc.store(files)
    for file in files[:2]:
        before = pydicom.dcmread(file)
        after = retrieve(
            orthanc, before.StudyInstanceUID, before.SeriesInstanceUID, before.SOPInstanceUID
        )
        assert after.file_meta.TransferSyntaxUID == io.SYNTAXES[syntax]
        assert after == before
