"""Nothing is lost or mixed: kills, signals, full disks, bad files, and runs that are repeated."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from medqdm import io, picture
from medqdm.engine import Drawn
from medqdm.enhance import enhance_volume
from medqdm.enhancer import Enhancer
from medqdm.errors import MedQDMError
from medqdm.io import whole
from medqdm.volume import Volume

KILLS = int(os.environ.get("MEDQDM_KILLS", "0"))
KILL_SECONDS = 20  # where no number is asked for
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def files_of(folder: Path) -> dict[str, object]:
    """The content of an output, without how long it took."""
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        if file.name == "run.json":
            run = json.loads(file.read_text())
            del run["summary"]["seconds_per_slice"]
            found[file.name] = run
        else:
            found[file.relative_to(folder).as_posix()] = sha256(file.read_bytes()).hexdigest()
    return found


@pytest.fixture
def drawing(weights: Path) -> Enhancer:
    """An enhancer whose network is random, so that noise and neighbours show in its output."""
    enhancer = Enhancer(weights, device="cpu", precision="fp32")
    torch.manual_seed(0)
    for parameter in enhancer.engine.qdm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return enhancer


@pytest.fixture
def quick_engine(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Enhancer:
    """An enhancer with a network that is as good as none."""
    enhancer = Enhancer(weights, device="cpu", precision="fp32")
    engine = enhancer.engine

    def draw(lr: torch.Tensor, _z_lr: object, noises: list, **_options: object) -> Drawn:
        return Drawn([noise(0) for noise in noises], engine.quadtree(lr).refined, cost=None)

    def show(latents: list, lr: torch.Tensor, **_options: object) -> tuple[torch.Tensor, None]:
        return engine.upsample(lr) + 0.1 * latents[0].mean(dim=(1, 2, 3), keepdim=True), None

    monkeypatch.setattr(engine, "draw", draw)
    monkeypatch.setattr(engine, "show", show)
    return enhancer


@pytest.fixture
def quick(quick_engine: Enhancer, monkeypatch: pytest.MonkeyPatch) -> Enhancer:
    """The same, without pictures and a report beside the slices."""
    for companion in ("_add_companions", "_add_report"):
        monkeypatch.setattr(f"medqdm.enhance.{companion}", lambda *_: None)
    return quick_engine


@pytest.fixture
def volume(ct_series) -> Volume:
    """Six slices of three tiles each."""
    return io.read(ct_series(np.random.default_rng(0).normal(0, 300, (6, 16, 24)).round()))


def stop_after(slices: int, error: BaseException | None = None):
    """A track that raises when so many slices are made."""

    def track(done, _total):
        for count, one in enumerate(done):
            if count == slices:
                raise error or KeyboardInterrupt
            yield one

    return track


def count_tiles(enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    real = enhancer.engine.draw

    def draw(lr: torch.Tensor, *rest: object, **options: object) -> Drawn:
        sizes.append(len(lr))
        return real(lr, *rest, **options)

    monkeypatch.setattr(enhancer.engine, "draw", draw)
    return sizes


def await_file(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def lingering_stop(slices: int, out: Path):
    """A track that raises when so many slices are on the disk but one."""

    def track(done, _total):
        for count, one in enumerate(done):
            if count == slices:
                await_file(out.parent / f".{out.name}.partial" / "new" / f"IM{slices - 1:04d}.dcm")
                raise KeyboardInterrupt
            yield one

    return track


def retag(file: Path, **tags: str) -> None:
    dataset = pydicom.dcmread(file)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file)


class TestResume:
    """Series that are finished are left out; whatever else there is, is made anew."""

    @pytest.mark.parametrize(("file_format", "draws"), [("dicom", 2), ("nifti", 1)])
    def test_an_interrupted_run_leaves_nothing_to_build_on(
        self, quick, volume, tmp_path, monkeypatch, file_format, draws
    ) -> None:
        random = np.random.default_rng(draws)
        monkeypatch.setattr(quick, "draws", draws)
        options = {"file_format": file_format, "dates": "source", "resume": True}
        enhance_volume(quick, volume, tmp_path / "whole", **options)
        for error in (KeyboardInterrupt(), SystemExit(143), MedQDMError("x"), RuntimeError()):
            track = stop_after(int(random.integers(0, 6)), error)
            with pytest.raises(type(error)):
                enhance_volume(quick, volume, tmp_path / "out", track=track, **options)
            assert [p.name for p in tmp_path.glob("*out*")] == []
        sizes = count_tiles(quick, monkeypatch)
        enhance_volume(quick, volume, tmp_path / "out", **options)
        assert sum(sizes) == 18  # all of them
        assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
        assert not list(tmp_path.glob(".*"))

    @pytest.mark.parametrize("seed", range(4))
    def test_a_corrected_patient_never_shares_an_output(
        self, quick, volume, ct_series, tmp_path, seed
    ) -> None:
        """Between an interrupted, or a finished, run and the next one with ``--resume``."""
        random = np.random.default_rng(seed)
        keyword, value = [
            ("PatientName", "Right^Name"), ("PatientID", "0001"),
            ("PatientBirthDate", "19700101"), ("AccessionNumber", "7"),
        ][seed]  # fmt: skip
        uids = {k: volume.source.headers[k].SOPInstanceUID for k in range(6)}
        first = volume.source.headers[0]
        corrected = io.read(
            ct_series(
                np.asarray(volume.hu),
                folder="corrected",
                edit=lambda header, k: setattr(header, "SOPInstanceUID", uids[k]),
                **{k: first[k].value for k in ("StudyInstanceUID", "SeriesInstanceUID",
                                              "FrameOfReferenceUID")},
                **{keyword: value},
            )
        )  # fmt: skip
        options = {"dates": "source", "resume": True}
        out = tmp_path / "out"
        track = lingering_stop(int(random.integers(2, 6)), out)
        with pytest.raises(KeyboardInterrupt):
            enhance_volume(quick, volume, out, track=track, **options)
        assert enhance_volume(quick, corrected, out, **options).finished is None
        written = [pydicom.dcmread(file) for file in sorted(out.glob("*.dcm"))]
        assert [str(header[keyword].value) for header in written] == [value] * 6
        series = {header.SeriesInstanceUID for header in written}

        old = files_of(out)
        with pytest.raises(MedQDMError, match="--resume needs the finished output of this very"):
            enhance_volume(quick, volume, out, **options)
        assert files_of(out) == old
        assert enhance_volume(quick, volume, out, overwrite=True, **options).finished is None
        written = [pydicom.dcmread(file) for file in sorted(out.glob("*.dcm"))]
        assert {str(h[keyword].value) for h in written} == {str(first[keyword].value)}
        assert len(series | {header.SeriesInstanceUID for header in written}) == 2

    def test_a_finished_run_is_left_alone(self, quick, volume, tmp_path, monkeypatch) -> None:
        out = tmp_path / "out"
        first = enhance_volume(quick, volume, out, resume=True)
        before = files_of(out)
        sizes = count_tiles(quick, monkeypatch)
        for options in ({}, {"overwrite": True}):
            again = enhance_volume(quick, volume, out, resume=True, **options)
            assert again.finished == first.numbers() == again.numbers()
        assert (sizes, files_of(out)) == ([], before)

    @pytest.mark.parametrize("what", ["seed", "weights", "input", "syntax", "dates"])
    def test_another_run_replaces_a_finished_one_with_overwrite_only(
        self, quick, volume, ct_series, tmp_path, monkeypatch, what
    ) -> None:
        out = tmp_path / "out"
        enhance_volume(quick, volume, out, dates="source")
        before = files_of(out)
        options = {"dates": "source", "resume": True}
        if what == "input":
            volume = io.read(ct_series(np.asarray(volume.hu) + 1, folder="other"))
        monkeypatch.setattr(quick, "seed", int(what == "seed"))
        monkeypatch.setattr(quick, "sha256", "other" if what == "weights" else quick.sha256)
        options |= {"syntax": {"transfer_syntax": "rle"}, "dates": {"dates": "now"}}.get(what, {})
        with pytest.raises(MedQDMError, match="add --overwrite to make it anew"):
            enhance_volume(quick, volume, out, **options)
        assert files_of(out) == before
        assert enhance_volume(quick, volume, out, overwrite=True, **options).finished is None
        assert files_of(out) != before
        assert enhance_volume(quick, volume, out, **options).finished is not None

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda out: (out / "IM0003.dcm").unlink(),
            lambda out: (out / "IM0003.dcm").write_bytes(b"x"),
            lambda out: shutil.copy(out / "IM0003.dcm", out / "IM0007.dcm"),
            lambda out: shutil.copy(out / "IM0003.dcm", out / "IM0002.dcm"),
            lambda out: retag(out / "IM0005.dcm", PatientName="Other^Patient"),
            lambda out: retag(out / "IM0001.dcm", StudyInstanceUID="1.2.3"),
            lambda out: (out / "run.json").write_text("{}"),
            lambda out: os.truncate(out / "IM0004.dcm", (out / "IM0004.dcm").stat().st_size // 2),
        ],
    )
    def test_an_output_that_was_touched_is_not_finished(
        self, quick, volume, tmp_path, spoil
    ) -> None:
        out, options = tmp_path / "out", {"dates": "source", "resume": True}
        enhance_volume(quick, volume, out, **options)
        before = files_of(out)
        spoil(out)
        with pytest.raises(MedQDMError, match="or an incomplete one; add --overwrite"):
            enhance_volume(quick, volume, out, **options)
        assert enhance_volume(quick, volume, out, overwrite=True, **options).finished is None
        assert files_of(out) == before

    @pytest.mark.parametrize("seed", range(4))
    def test_slices_that_change_on_their_way_end_the_run(
        self, quick, volume, tmp_path, seed
    ) -> None:
        """Somebody writes another patient, or study, into a slice that was checked already."""
        random = np.random.default_rng(seed)
        tags = [{"PatientName": "Other"}, {"PatientID": "1"}, {"StudyInstanceUID": "1.2.3"},
                {"StudyDate": "20200103"}][seed]  # fmt: skip
        victim = tmp_path / ".out.partial" / "new" / f"IM{random.integers(1, 3):04d}.dcm"

        def track(slices, _total):
            for z, done in enumerate(slices):
                yield done
                if z == 4:
                    await_file(victim.with_name("IM0003.dcm"))
                    retag(victim, **tags)

        with pytest.raises(MedQDMError, match=f"{victim.name}: a derived slice must keep"):
            enhance_volume(quick, volume, tmp_path / "out", track=track)
        assert not list(tmp_path.glob("*out*"))

    def test_one_run_at_a_time(self, quick, volume, tmp_path) -> None:
        other = """if True:
            import sys
            from pathlib import Path
            from medqdm.errors import MedQDMError
            from medqdm.io.whole import whole_folder
            try:
                with whole_folder(Path(sys.argv[1])):
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

        enhance_volume(quick, volume, tmp_path / "out", track=track)
        assert "one run at a time may write an output" in said[0]
        assert len(list((tmp_path / "out").glob("*.dcm"))) == 6

    def test_files_that_came_meanwhile_are_not_replaced(self, quick, volume, tmp_path) -> None:
        def track(slices, _total):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine.txt").write_text("keep")
            return slices

        with pytest.raises(MedQDMError, match="must be empty, got files in it"):
            enhance_volume(quick, volume, tmp_path / "out", track=track)
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


KILLER = """
import json, os, random, shutil, signal, sys, time
from hashlib import sha256
from pathlib import Path
import torch
torch.set_num_threads(1)
import medqdm.enhance
from medqdm.engine import Drawn, Engine
from medqdm.enhance import enhance_series
from medqdm.errors import MedQDMError
from medqdm.loading import load_enhancer

def quick(self, lr, z_lr, noises, **options):
    return Drawn([noise(0) for noise in noises], self.quadtree(lr).refined, cost=None)

def shown(self, latents, lr, **options):
    return self.upsample(lr) + 0.1 * latents[0].mean(dim=(1, 2, 3), keepdim=True), None

def small_picture(lr_hu, sr_hu, refined, window, title):
    grey = medqdm.enhance.picture.to_grey(sr_hu, window)
    return medqdm.enhance.picture.grid([{"enhanced": grey}], title=title)

def loaded(seed=0, **options):
    enhancers[seed].seed = seed
    return enhancers[seed]

# kills are about files: network, picture, report and loading the weights take no time here
Engine.draw, Engine.show = quick, shown
medqdm.enhance.render_report = lambda content: "a report"
medqdm.enhance.picture.compare = small_picture
series, place, weights = map(Path, sys.argv[1:4])
kills, budget, seed = int(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6])
random.seed(seed)
enhancers = {
    seed: load_enhancer(weights=weights, device="cpu", precision="fp32", seed=seed)
    for seed in (0, 1)
}
medqdm.enhance.load_enhancer = loaded

def state(folder):
    if not folder.exists():
        return None
    found = {}
    for file in sorted(folder.rglob("*")):
        data = file.read_bytes()
        if file.name == "run.json":
            run = json.loads(data)
            del run["summary"]["seconds_per_slice"]
            data = json.dumps(run).encode()
        found[file.relative_to(folder).as_posix()] = sha256(data).hexdigest()
    return found

def run(out, **options):
    child = os.fork()
    if child == 0:
        try:
            enhance_series(series, out, dates="source", **options)
        except MedQDMError as error:
            print(json.dumps({"error": str(error)}), flush=True)
            os._exit(2)
        os._exit(0)
    return child

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

enhance_series(series, place / "new", dates="source")  # everything is imported for the children
began = time.monotonic()
assert wait(run(place / "old", seed=1)) == 0
seconds = time.monotonic() - began
before, new, old = state(series), state(place / "new"), state(place / "old")
assert new != old
counts = {"kills": 0, "too_late": 0, "old": 0, "nothing": 0, "new": 0, "made_anew": 0,
          "run_seconds": round(seconds, 2)}
began = time.monotonic()
while counts["kills"] < kills or (not kills and time.monotonic() - began < budget):
    out = place / "out"
    replaces = random.random() < 0.5
    if replaces:
        shutil.copytree(place / "old", out)
    options = {"overwrite": replaces, "resume": random.random() < 0.5}
    while True:
        child = run(out, **options)
        if random.random() < 0.5:
            time.sleep(random.uniform(0, seconds))
        else:  # at the moments when files get their names
            wanted, deadline = random.randint(0, 9), time.monotonic() + seconds
            def due():
                parts = list(place.glob(".out.partial/new/*"))
                return len(parts) >= wanted or (wanted > 6 and state(out) not in (None, old))
            while not due() and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        code = wait(child)
        assert code in (0, -signal.SIGKILL)
        counts["kills" if code else "too_late"] += 1
        found = state(out)
        names = {"old": old if replaces else None, "new": new}
        allowed = [n for n in names if names[n] == found]
        assert allowed, (sorted(found or ()), options)
        counts["nothing" if found is None else allowed[0]] += 1
        assert state(series) == before
        if random.random() < 0.7 or found == new:
            break
    if state(out) != new:
        assert wait(run(out, overwrite=replaces, resume=True)) == 0
        counts["made_anew"] += 1
    assert state(out) == new
    assert not list(place.glob(".new*")) and not list(place.glob(".old*"))
    if list(place.glob(".out*")):  # the kill came when all was done but the clearing away
        assert wait(run(out, overwrite=True)) == 0
        assert state(out) == new
    assert not list(place.glob(".out*"))
    shutil.rmtree(out)
    print(json.dumps(counts), file=sys.stderr, flush=True)
print(json.dumps(counts))
"""


def test_kills_at_any_moment_lose_nothing(weights: Path, ct_series, tmp_path) -> None:
    """As many as fit into some seconds; ``MEDQDM_KILLS=100`` for as many."""
    series = ct_series(np.random.default_rng(0).normal(0, 300, (6, 16, 24)).round())
    place = tmp_path / "place"
    place.mkdir()
    command = [sys.executable, "-c", KILLER, series, place, weights, str(KILLS), str(KILL_SECONDS),
               "0"]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = json.loads(ended.stdout.splitlines()[-1])
    print(counts)  # noqa: T201  (shown with pytest -s)
    assert counts["kills"] >= max(KILLS, 5)
    assert counts["old"] + counts["nothing"] + counts["new"] == counts["kills"] + counts["too_late"]


FORKS = """
import ctypes, json, os, resource, signal, sys, time, traceback
from pathlib import Path
import torch, torch._dynamo  # loaded late otherwise, by a user who may not read it
torch.set_num_threads(1)
import matplotlib.backends.backend_agg
import medqdm.batch, medqdm.picture
from medqdm.cli import main

NEW_USER, NEW_MOUNTS, PRIVATE = 0x10000000, 0x00020000, 0x44000  # of unshare(2) and mount(2)
libc = ctypes.CDLL(None, use_errno=True)

def mount_small_disk(place, size):
    "A disk of this process alone; whether the system lets it have one."
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_MOUNTS) != 0:
        if libc.unshare(NEW_USER | NEW_MOUNTS) != 0:
            return False
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"),
                           ("gid_map", f"0 {group} 1")):
            Path("/proc/self", file).write_text(text)
    libc.mount(b"none", b"/", None, PRIVATE, None)
    return libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, b"size=%d" % size) == 0

for line in sys.stdin:
    case = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(case[name], os.O_CREAT | os.O_WRONLY, 0o666), number)
        small = "disk" in case and mount_small_disk(case["disk"], case["disk_bytes"])
        if "disk" in case and not small:
            case["most_bytes"] = case["most_bytes_else"]
        if "most_bytes" in case:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case["most_bytes"],) * 2)
        if case.get("unprivileged") and os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        sys.argv = ["medqdm", *case["arguments"]]
        code = 1
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            if "disk" in case:
                left = sorted(p.name for p in Path(case["disk"]).rglob("*"))
                Path(case["left"]).write_text(json.dumps({"small": small, "left": left}))
            os._exit(code)
    if "signal" in case:
        deadline = time.monotonic() + 60
        while not Path(case["after"]).exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(child, case["signal"])
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)
"""


@pytest.fixture(scope="module")
def forks():
    """A process that loaded medqdm once and forks a command line for each case it is sent."""
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as server:
        yield server
        server.stdin.close()


@pytest.fixture
def medqdm(forks, tmp_path_factory):
    """A command line in a process of its own: exit code, stdout and stderr."""

    def run(*arguments: object, **case: object) -> tuple[int, str, str]:
        folder = tmp_path_factory.mktemp("said")
        files = {name: str(folder / name) for name in ("out", "err")}
        request = {"arguments": [str(a) for a in arguments], **files, **case}
        forks.stdin.write(json.dumps(request) + "\n")
        forks.stdin.flush()
        code = json.loads(forks.stdout.readline())
        return code, Path(files["out"]).read_text(), Path(files["err"]).read_text()

    return run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_cleanly(medqdm, weights, ct_series, tmp_path, number, code) -> None:
    """Nothing is left of a run, with --resume or without."""
    series = ct_series(np.random.default_rng(0).normal(0, 300, (8, 48, 64)).round())
    out = tmp_path / "results" / "out"
    arguments = ["enhance", series, "-o", out, "--weights", weights, "--device", "cpu"]
    seen = out.parent / ".out.partial" / "new" / "IM0002.dcm"
    for options in ([], ["--resume"]):
        ended = medqdm(*arguments, *options, signal=int(number), after=str(seen))
        assert ended[0] == code
        assert "Traceback" not in "".join(ended[1:])
        assert not (tmp_path / "results").exists()
    assert medqdm(*arguments, "--resume")[0] == 0
    assert len(list(out.glob("*.dcm"))) == 8
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    ended = medqdm(*arguments, "--resume")
    assert ended[0] == 0
    assert "finished before" in ended[1]


@pytest.mark.parametrize("file_format", ["dicom", "nifti", "nrrd"])
def test_a_disk_that_takes_no_more_is_told_in_one_line(
    medqdm, weights, ct_series, tmp_path, file_format
) -> None:
    series = ct_series(np.random.default_rng(0).normal(0, 300, (2, 32, 32)).round())
    code, out, err = medqdm(
        "enhance", series, "-o", tmp_path / "out", "--weights", weights, "--device", "cpu",
        "--precision", "fp32", "--format", file_format, most_bytes=25_000,
    )  # fmt: skip
    assert code == 2, err
    assert "must fit on a disk that can be written, got 'File too large'" in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in out + err
    assert [p.name for p in tmp_path.iterdir() if p != series] == []


def test_a_small_disk_fills_up(medqdm, weights, ct_series, tmp_path) -> None:
    """A file system of 300 KB; where none may be mounted, files of 60 KB at the most."""
    series = ct_series(np.random.default_rng(0).normal(0, 300, (8, 48, 64)).round())
    before = files_of(series)
    disk, left = tmp_path / "disk", tmp_path / "left.json"
    disk.mkdir()
    code, out, err = medqdm(
        "enhance", series, "-o", disk / "results" / "out", "--weights", weights, "--device", "cpu",
        "--precision", "fp32", "--transfer-syntax", "rle",
        disk=str(disk), disk_bytes=300_000, most_bytes_else=60_000, left=str(left),
    )  # fmt: skip
    found = json.loads(left.read_text())
    print("mounted" if found["small"] else "limited")  # noqa: T201  (shown with pytest -s)
    said = "No space left on device" if found["small"] else "File too large"
    assert code == 2, err
    assert f"must fit on a disk that can be written, got '{said}'; " in err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in out + err
    assert found["left"] == []
    assert files_of(series) == before
    assert list(disk.iterdir()) == [] or not found["small"]


@pytest.mark.parametrize(
    "name",
    ["new/IM0004.dcm", "parts/0004.refined.npy", "new/refined.npz", "new/uncertainty.npz",
     "new/comparison.png", "new/report.html", "new/run.json"],
)  # fmt: skip
def test_no_space_is_left_for_any_of_the_files(
    quick_engine, volume, tmp_path, monkeypatch, name: str
) -> None:
    """The system itself says so, file by file: writing to /dev/full fails as on a full disk."""
    grey = np.zeros((8, 8), np.float32)
    monkeypatch.setattr("medqdm.enhance.picture.compare",
                        lambda *_, **__: picture.grid([{"picture": grey}]))  # fmt: skip
    monkeypatch.setattr("medqdm.enhance.render_report", lambda _content: "a report\n" * 1000)
    quick_engine.draws = 2
    full = tmp_path / ".out.partial" / name

    def track(slices, _total):
        full.unlink(missing_ok=True)
        full.symlink_to("/dev/full")
        return slices

    options = {"dates": "source"}
    with pytest.raises(MedQDMError, match="got 'No space left on device'; "):
        enhance_volume(quick_engine, volume, tmp_path / "out", track=track, **options)
    assert not list(tmp_path.glob("*out*"))
    enhance_volume(quick_engine, volume, tmp_path / "out", **options)
    files = list((tmp_path / "out").iterdir())
    assert len([file for file in files if file.suffix == ".dcm"]) == 6
    assert not [file for file in files if file.is_symlink()]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_on_the_way(quick, volume, tmp_path, monkeypatch, number: int) -> None:
    real, calls = np.save, []

    def save(file: Path, array: object) -> None:
        calls.append(file)
        if len(calls) == 4:
            raise OSError(number, os.strerror(number))
        real(file, array)

    with monkeypatch.context() as patched:
        patched.setattr("medqdm.io.output.np.save", save)
        match = f"got '{os.strerror(number)}'; nothing was written"
        with pytest.raises(MedQDMError, match=match):
            enhance_volume(quick, volume, tmp_path / "out", dates="source")
    assert not list(tmp_path.glob("*out*"))
    enhance_volume(quick, volume, tmp_path / "out", dates="source")
    expected = np.stack([done.hu for done in quick.slices(volume)])
    np.testing.assert_array_equal(io.read(tmp_path / "out").hu, np.rint(expected))


def test_a_disk_that_is_too_small_is_told_before_the_work(
    quick, volume, tmp_path, monkeypatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr("medqdm.io.whole.shutil.disk_usage", lambda _path: usage)
    sizes = count_tiles(quick, monkeypatch)
    quick.prepare(volume)
    sizes.clear()
    with pytest.raises(MedQDMError, match=r"the disk must have 0\.0 GB free"):
        enhance_volume(quick, volume, tmp_path / "out")
    assert sizes == []
    assert not list(tmp_path.glob("*out*"))
    enhance_volume(quick, volume, tmp_path / "out", transfer_syntax="rle")  # size unknown


def test_deviations_and_their_map_need_room_too(quick, volume, tmp_path, monkeypatch) -> None:
    pixels = math.prod(volume.shape) * quick.task.upscale**2
    monkeypatch.setattr(quick, "draws", 2)

    def begin(free: int, **options: bool) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr("medqdm.io.whole.shutil.disk_usage", lambda _path: usage)
        enhance_volume(quick, volume, tmp_path / "out", overwrite=True, **options)

    for free, options in ((4 * pixels, {}), (8 * pixels, {"parametric_map": True})):
        with pytest.raises(MedQDMError, match="the disk must have"):
            begin(free - 1, **options)
        assert not list(tmp_path.glob("*out*"))
    begin(8 * pixels, parametric_map=True)
    begin(4 * pixels)


@pytest.mark.parametrize("command", ["info", "enhance"])
def test_what_lies_below_a_closed_folder_is_told_in_one_line(
    medqdm, weights, tmp_path, command
) -> None:
    for path in (*weights.parents, *tmp_path.parents, weights, tmp_path):
        if "pytest" in path.as_posix():
            path.chmod(path.stat().st_mode | 0o755)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    options = ["-o", tmp_path / "out", "--weights", weights] if command == "enhance" else []
    code, out, err = medqdm(command, closed / "series", *options, unprivileged=True)
    closed.chmod(0o755)
    assert code == 2, err
    assert "must be accessible, got 'Permission denied'" in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("where", ["input file", "output folder"])
def test_permissions_are_told_in_one_line(medqdm, weights, ct_series, tmp_path, where) -> None:
    series = ct_series(np.zeros((3, 16, 16)))
    results = tmp_path / "results"
    results.mkdir()
    for path in (*weights.parents, *tmp_path.parents, weights, tmp_path):
        if "pytest" in path.as_posix():
            path.chmod(path.stat().st_mode | 0o755)
    results.chmod(0o777 if where == "input file" else 0o555)
    victim = sorted(series.iterdir())[1]
    victim.chmod(0 if where == "input file" else 0o644)
    code, out, err = medqdm(
        "enhance", series, "-o", results / "out", "--weights", weights, "--device", "cpu",
        unprivileged=True,
    )  # fmt: skip
    results.chmod(0o755)
    assert code == 2, err
    assert ("folder must be writable" if where == "output folder" else victim.name) in err
    assert "Traceback" not in out + err
    assert list(results.iterdir()) == []


def test_a_file_that_changes_while_it_is_read(quick, ct_series, tmp_path) -> None:
    series = ct_series(np.zeros((6, 16, 24)))
    other = ct_series(np.ones((6, 16, 24)), folder="other")
    volume = io.read(series)

    def track(slices, _total):
        for z, done in enumerate(slices):
            if z == 0:
                shutil.copy(other / "001", series / "001")  # the last slice
            yield done

    with pytest.raises(MedQDMError, match="001: a CT file must not change"):
        enhance_volume(quick, volume, tmp_path / "out", track=track)
    assert not list(tmp_path.glob("*out*"))


def test_a_network_that_gives_nan(quick, volume, tmp_path, monkeypatch) -> None:
    real, calls = quick.engine.show, []
    quick.prepare(volume)

    def show(*latents: object, **options: object) -> tuple[torch.Tensor, None]:
        calls.append(None)
        return real(*latents, **options)[0] * (float("nan") if len(calls) > 12 else 1), None

    with monkeypatch.context() as patched:
        patched.setattr(quick.engine, "show", show)
        with pytest.raises(MedQDMError, match="slice 5: the network's output must be finite"):
            enhance_volume(quick, volume, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_memory_that_runs_out_in_a_batch(quick, volume, tmp_path, monkeypatch) -> None:
    """The batch is halved, the same slices are written."""
    enhance_volume(quick, volume, tmp_path / "whole", dates="source")
    real, sizes = quick.engine.draw, []

    def draw(lr: torch.Tensor, *rest: object, **options: object) -> Drawn:
        sizes.append(len(lr))
        if len(lr) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(lr, *rest, **options)

    monkeypatch.setattr(quick.engine, "draw", draw)
    quick.batch_size = 8
    enhance_volume(quick, volume, tmp_path / "out", dates="source")
    assert sizes[:3] == [8, 4, 2]
    found, expected = io.read(tmp_path / "out").hu, io.read(tmp_path / "whole").hu
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() <= 1


class TestWhole:
    def test_names_are_exchanged_in_one_step_or_not_at_all(self, tmp_path, monkeypatch) -> None:
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            (tmp_path / name / name).touch()
        if whole.exchange(tmp_path / "one", tmp_path / "other"):
            assert (tmp_path / "one" / "other").is_file()
        monkeypatch.setattr(sys, "platform", "other")
        assert not whole.exchange(tmp_path / "one", tmp_path / "other")

    def test_without_exchange_the_old_one_is_put_aside(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(whole, "exchange", lambda _one, _other: False)
        out = tmp_path / "out"
        out.mkdir()
        (out / "old").touch()
        with whole.whole_folder(out, overwrite=True) as partial:
            (partial / "new").touch()
        assert [p.name for p in tmp_path.rglob("*")] == ["out", "new"]

    def test_what_was_put_aside_comes_back(self, tmp_path) -> None:
        """A kill between the two renames; the next run finds the old output where it was."""
        aside = tmp_path / ".out.partial" / "old"
        aside.mkdir(parents=True)
        (aside / "mine").touch()
        (aside.parent / "medqdm.lock").touch()
        seen = []

        def fail() -> None:
            with whole.whole_folder(tmp_path / "out", overwrite=True):
                seen.extend(p.name for p in (tmp_path / "out").iterdir())
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert seen == ["mine"] == [p.name for p in (tmp_path / "out").iterdir()]
        assert not aside.exists()
