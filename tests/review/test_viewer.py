"""The viewer's server: what it gives to whom, and colours that all eyes tell apart."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from typer.testing import CliRunner

from medqdm import cli
from medqdm.review import Viewer, load_review, read_ratings
from medqdm.review.facts import colors

TYPES = {"int16": "<i2", "float32": "<f4", "uint8": "u1"}


@pytest.fixture
def viewer(case, tmp_path):
    review = load_review(case.out, case.source, slice_axis=2)
    with Viewer(review, tmp_path / "ratings.csv") as viewer:
        yield viewer


def fetch(url, **options):
    request = urllib.request.Request(url, **options)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read(), answer.headers


def status(url, **options):
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(url, **options)
    with caught.value as answer:
        return answer.code


class TestServer:
    def test_layers_come_as_exact_numbers(self, case, viewer):
        for name, kind, expected in (
            ("enhanced", "int16", case.enhanced_hu[3]),
            ("bicubic", "float32", case.bicubic_hu(3)),
            ("refined", "uint8", case.refined[3]),
        ):
            body, headers = fetch(f"{viewer.url}layer/{name}/axial/3")
            assert headers["X-Type"] == kind
            shape = tuple(map(int, headers["X-Shape"].split(",")))
            values = np.frombuffer(body, TYPES[kind]).reshape(shape)
            np.testing.assert_array_equal(values, expected)

    def test_listens_on_loopback_only(self, viewer):
        assert urlsplit(viewer.url).hostname == "127.0.0.1"
        assert viewer._server.server_address[0] == "127.0.0.1"

    @pytest.mark.parametrize("token", ["", "x", "x" * 32, "%2e%2e"])
    @pytest.mark.parametrize("path", ["", "facts.json", "layer/enhanced/axial/0"])
    def test_without_the_token_it_says_403(self, viewer, token, path):
        parts = urlsplit(viewer.url)
        assert status(f"http://{parts.netloc}/{token}/{path}") == 403

    def test_a_rating_needs_the_token_too(self, viewer):
        parts = urlsplit(viewer.url)
        assert status(f"http://{parts.netloc}/x/rating", data=b"{}") == 403

    def test_another_name_for_this_machine_is_refused(self, viewer):
        assert status(viewer.url, headers={"Host": "attacker.example"}) == 403

    @pytest.mark.parametrize(
        "path",
        ["../run.json", "..%2frun.json", "run.json", "IM0001.dcm", "/etc/passwd", "page/main.js",
         "layer/enhanced/axial/-1", "layer/enhanced/axial/99", "layer/enhanced/../../etc"],
    )  # fmt: skip
    def test_nothing_else_is_served(self, viewer, path):
        assert status(viewer.url + path) == 404

    def test_the_page_needs_nothing_from_elsewhere(self, viewer):
        page, headers = fetch(viewer.url)
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        names = ["style.css", "main.js", "panel.js", "paint.js", "loader.js", "measure.js"]
        for text in (page, *(fetch(viewer.url + name)[0] for name in names)):
            assert b"//cdn" not in text
            assert b"https:" not in text

    def test_facts_name_no_patient_and_no_path(self, case, viewer):
        body, _ = fetch(viewer.url + "facts.json")
        for secret in ("Doe", "Jane", str(case.out), "nii", "/"):
            assert secret not in body.decode()
        facts = json.loads(body)
        assert facts["views"]["axial"]["size_mm"] == pytest.approx([36, 35.2])
        assert facts["views"]["coronal"]["size_mm"] == pytest.approx([17.5, 35.2])
        assert facts["views"]["sagittal"]["letters"] == ["A", "P", "H", "F"]
        assert facts["windows"]["subdural"] == [75, 215]

    def test_rating_is_saved_or_refused_in_one_line(self, viewer, tmp_path):
        scores = {"sharpness": 4, "noise": 3, "artefacts": 5, "confidence": 2}
        sent = {**scores, "slice_number": 3, "comment": "clear", "reader": "r1", "window": "lung"}
        body, _ = fetch(viewer.url + "rating", data=json.dumps(sent).encode())
        assert json.loads(body) == {"saved": "slice 3 saved to ratings.csv"}
        (rating,) = read_ratings(tmp_path / "ratings.csv")
        assert (rating.series, rating.noise, rating.comment) == (viewer.review.label, 3, "clear")
        for wrong in ({**sent, "noise": None}, {**sent, "path": "x"}, ["no"]):
            assert status(viewer.url + "rating", data=json.dumps(wrong).encode()) == 400
        assert status(viewer.url + "rating", data=b"x" * (1 << 17)) == 400
        assert len(read_ratings(tmp_path / "ratings.csv")) == 1

    def test_a_notebook_shows_the_same_page(self, viewer):
        assert f'<iframe src="{viewer.url}"' in viewer._repr_html_()


# Machado et al. 2009, severity 1, on linear RGB
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3).tolist(),
}  # fmt: skip


def lab(rgb, matrix):
    """CIELAB of what such an eye sees of sRGB colours in 0 to 255."""
    share = np.asarray(rgb, dtype=float) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(matrix).T).clip(0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722],
                       [0.0193, 0.1192, 0.9505]])  # fmt: skip
    xyz = seen @ to_xyz.T / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


@pytest.mark.parametrize("eye", BLINDNESS)
class TestColours:
    def test_more_is_brighter(self, eye):
        palettes = colors(4)
        for name in ("levels", "uncertainty"):
            lightness = lab(palettes[name], BLINDNESS[eye])[:, 0]
            assert (np.diff(lightness) > -0.2).all(), name
            assert np.ptp(lightness) > 60

    def test_steps_and_signs_are_told_apart(self, eye):
        palettes = colors(4)
        levels = lab(palettes["levels"], BLINDNESS[eye])
        assert np.linalg.norm(np.diff(levels, axis=0), axis=1).min() > 15
        for name in ("difference", "residual"):
            seen = lab(palettes[name], BLINDNESS[eye])
            assert np.linalg.norm(seen[:100] - seen[::-1][:100], axis=1).min() > 10

    def test_orange_is_no_grey(self, eye):
        (seen,) = lab(colors(4)["refined"], BLINDNESS[eye])
        assert np.hypot(seen[1], seen[2]) > 30


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["."], "must be a folder written by medqdm enhance"),
            (["no-such-folder"], "must be a folder written by medqdm enhance"),
            (["{out}", "--source", "nothing-here"], "nothing-here"),
        ],
    )
    def test_mistakes_end_in_one_line_and_code_2(
        self, case, arguments, message, monkeypatch, capsys
    ):
        filled = [argument.format(out=case.out) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["medqdm", "review", *filled, "--no-browser"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        error = capsys.readouterr().err
        assert ended.value.code == 2
        assert message in error
        assert len(error.splitlines()) == 1

    def test_serves_until_it_is_told_to_end(self, case):
        command = [sys.executable, "-m", "medqdm", "review", case.out, "--no-browser"]
        # a shell's background job ignores the signal, and what it starts would too
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        signal.signal(signal.SIGINT, before)
        try:
            assert running.stdout is not None
            url = running.stdout.readline().strip()
            assert b"medqdm review" in fetch(url)[0]
            running.send_signal(signal.SIGINT)
            assert running.wait(timeout=120) == 0
        finally:
            running.kill()
            running.wait()
            running.stdout.close()

    def test_help_names_the_source(self):
        result = CliRunner().invoke(cli.app, ["review", "--help"], env={"COLUMNS": "200"})
        assert "--source" in result.output


def test_a_port_in_use_is_refused(case, viewer):
    from medqdm.errors import MedQDMError  # noqa: PLC0415

    with pytest.raises(MedQDMError, match="must be a free port"):
        Viewer(viewer.review, port=urlsplit(viewer.url).port)


def test_every_file_of_the_page_is_in_the_package():
    page = Path(cli.__file__).parents[1] / "review" / "page"
    assert {file.name for file in page.iterdir()} == {
        "index.html", "style.css", "main.js", "panel.js", "paint.js", "loader.js", "measure.js",
    }  # fmt: skip
