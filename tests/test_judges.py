"""What other people's tools say of an enhanced series: dicom3tools, dcm2niix, highdicom."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest

from medqdm import io
from medqdm.picture import upsample_bicubic
from medqdm.volume import check_same_edges

DATA = Path(__file__).parent / "data"
SOURCES = ["demo-series", "hr-slices/chest-covid-cap001", "hr-slices/head-harvard02"]


def need(tool: str) -> str:
    found = shutil.which(tool)
    if found is None and "MEDQDM_REQUIRE_JUDGES" not in os.environ:
        pytest.skip(f"{tool} is not installed")
    assert found, f"{tool} must be installed for this run"
    return found


@pytest.fixture(scope="module", params=SOURCES)
def pair(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[Path, Path]:
    """A real series, and the series written from its bicubic enlargement."""
    source = DATA / request.param
    volume = io.read(source)
    out = tmp_path_factory.mktemp("judged") / "out"
    io.write_series(
        volume,
        (upsample_bicubic(hu, 4) for hu in volume.hu),
        out,
        upscale=4,
        description="bicubic enlargement for a test",
        software_version="0",
        weights_id="none",
        uid_entropy=["test"],
    )
    return source, out


def complaints(tool: str, files: list[Path], *options: str) -> dict[str, str]:
    """What a tool says, without values and paths: message to the attribute it is about."""
    ended = subprocess.run(
        [tool, *options, *map(str, files)], capture_output=True, text=True, check=False
    )
    found = {}
    for line in (ended.stdout + ended.stderr).splitlines():
        if re.match(r"Error|Warning", line):
            attribute = re.search(r"</(\w+)\(", line)
            name = attribute[1] if attribute else ""
            found[f"{name}: " + re.sub(r"<[^>]*>?|/\S+", "", line)] = name
    return found


def test_dciodvfy_finds_nothing_that_the_source_lacks(pair: tuple[Path, Path]) -> None:
    tool = need("dciodvfy")
    before, after = {}, {}
    for collected, folder in ((before, pair[0]), (after, pair[1])):
        for file in folder.glob("*.dcm"):
            collected.update(complaints(tool, [file], "-new"))
    # what the source lacks against the standard is added empty: an error becomes a warning
    mended = {name for message, name in before.items() if "Error" in message}
    new = {m for m, name in after.items() if m not in before and name not in mended}
    assert new == set()
    assert not [m for m in after if "Error" in m and m not in before]


def test_dcentvfy_sees_one_study_and_two_series(pair: tuple[Path, Path]) -> None:
    tool = need("dcentvfy")
    before = complaints(tool, sorted(pair[0].glob("*.dcm")))
    both = complaints(tool, sorted(pair[0].glob("*.dcm")) + sorted(pair[1].glob("*.dcm")))
    assert [m for m in both if "Error" in m and m not in before] == []


def test_highdicom_builds_the_volume_at_the_same_place(pair: tuple[Path, Path]) -> None:
    volumes = [
        highdicom.get_volume_from_series([highdicom.imread(f) for f in sorted(p.glob("*.dcm"))])
        for p in pair
    ]
    corners = [
        v.map_indices_to_reference(
            np.array([[0, -0.5, -0.5], [0, v.shape[1] - 0.5, v.shape[2] - 0.5]])
        )
        for v in volumes
    ]
    np.testing.assert_allclose(corners[1], corners[0], atol=1e-3)


# Debian's dcm2niix cannot read the other sources (JPEG-LS)
@pytest.mark.parametrize("pair", ["demo-series"], indirect=True)
def test_dcm2niix_puts_it_at_the_same_place(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tool = need("dcm2niix")
    edges = []
    for name, folder in zip(("source", "out"), pair, strict=True):
        (tmp_path / name).mkdir()
        subprocess.run(
            [tool, "-z", "n", "-b", "n", "-f", "v", "-o", tmp_path / name, folder],
            check=True,
            capture_output=True,
        )
        image = nibabel.load(tmp_path / name / "v.nii")
        height, width = image.shape[:2]
        index = np.array([[-0.5, -0.5, 0, 1], [height - 0.5, width - 0.5, 0, 1]])
        edges.append((image.affine @ index.T).T[:, :3])
    np.testing.assert_allclose(edges[1], edges[0], atol=1e-3)


def test_edges_by_our_own_reader(pair: tuple[Path, Path]) -> None:
    source, out = (io.read(p) for p in pair)
    check_same_edges(source.corners_mm(), out.corners_mm(), where="test")
