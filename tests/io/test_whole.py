import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from medqdm.errors import MedQDMError
from medqdm.io import whole
from medqdm.io.whole import alone, whole_file, whole_folder


@contextmanager
def filled_file(path: Path):
    with whole_file(path, overwrite=True) as partial:
        partial.write_text("new")
        yield


@contextmanager
def filled_folder(path: Path):
    with whole_folder(path, overwrite=True) as partial:
        (partial / "file").write_text("new")
        yield


WAYS = {"file": filled_file, "folder": filled_folder, "lock": alone}


def test_a_file_appears_at_the_end(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with whole_file(target) as partial:
        partial.write_text("done")
        assert not target.exists()
    assert target.read_text() == "done"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


def test_nothing_is_left_of_a_failed_file(tmp_path):
    def interrupted():
        with whole_file(tmp_path / "new" / "file") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_a_file_should_be_and_the_reverse(tmp_path):
    with pytest.raises(MedQDMError, match="must be a file, got a folder"), whole_file(tmp_path):
        pass
    (tmp_path / "file").touch()
    match = "must be a folder, got a file"
    with pytest.raises(MedQDMError, match=match), whole_folder(tmp_path / "file"):
        pass


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as partial:
        (partial / "a").touch()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with (
        pytest.raises(FileNotFoundError),
        whole_folder(tmp_path / "out", overwrite=True) as partial,
    ):
        partial.rmdir()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["old"]


def test_an_unwritable_place_is_told(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(MedQDMError, match="folder must be writable"),
        whole_file(tmp_path / "file" / "below" / "out"),
    ):
        pass


def test_links_and_the_working_folder_are_filled_where_they_lead(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole_folder(tmp_path / "link") as partial:
        (partial / "a").touch()
    assert (tmp_path / "link").is_symlink()
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["a"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with whole_folder(Path()) as partial:
        (partial / "b").touch()
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["b"]
    assert {p.name for p in tmp_path.iterdir()} == {"real", "link", "here"}


def tree(folder: Path) -> dict[str, object]:
    """All that lies in a folder: modes, links as such, and the content of files."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        found[str(path.relative_to(folder))] = mode, content
    return found


def fill(folder: Path, *names: str) -> None:
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")


def link(name: str, *names: str) -> Callable[[Path], object]:
    """A link to something beside the place, a folder if it has files."""

    def plant(hidden: Path) -> None:
        victim = hidden.parent / name
        fill(victim, *names) if names else victim.write_text("mine")
        hidden.symlink_to(victim)

    return plant


def locked_link(hidden: Path) -> None:
    """A folder whose mark is none."""
    (hidden.parent / "victim").write_text("mine")
    fill(hidden, "new/file")
    (hidden / "medqdm.lock").symlink_to(hidden.parent / "victim")


FOREIGN = {
    "file": (lambda hidden: hidden.write_text("mine"), "a file"),
    "link to a folder": (link("victim", "a", "b/c"), "a link"),
    "link to a file": (link("victim"), "a link"),
    "link to nothing": (lambda hidden: hidden.symlink_to("nowhere"), "a link"),
    "link to a folder of medqdm's": (link("victim", "medqdm.lock", "new/IM0001.dcm"), "a link"),
    "folder": (lambda hidden: fill(hidden, "a", "b/c", ".d"), "a folder with other files"),
    "folder with a lock": (
        lambda hidden: fill(hidden, "lock", "new/IM0001.dcm", "parts/1", "journal.jsonl"),
        "a folder with other files",
    ),
    "folder in a folder": (lambda hidden: fill(hidden, "medqdm.lock/file"), "a folder with other"),
    "linked lock": (locked_link, "a folder with other files"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_medqdm_did_not_make_is_never_cleared(tmp_path, way, foreign):
    plant, what = FOREIGN[foreign]
    hidden = tmp_path / ".out.partial"
    plant(hidden)
    before = tree(tmp_path)
    with (
        pytest.raises(MedQDMError, match=f"{hidden}: this name must be free.*, got {what}.*; move"),
        WAYS[way](tmp_path / "out"),
    ):
        pass
    assert tree(tmp_path) == before
    hidden.rename(tmp_path / "moved")
    with WAYS[way](tmp_path / "out"):
        pass
    assert (tmp_path / "out").exists() == (way != "lock")


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_of_another_user_is_never_cleared(tmp_path, monkeypatch, way):
    hidden = tmp_path / ".out.partial"
    for names in ((), ("medqdm.lock", "new/file")):
        fill(hidden, *names)
        before = tree(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(os, "geteuid", lambda: hidden.stat().st_uid + 1)
            with (
                pytest.raises(MedQDMError, match="got a folder of another user; move it away"),
                WAYS[way](tmp_path / "out"),
            ):
                pass
        assert tree(tmp_path) == before
        whole._remove(hidden)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("way", WAYS)
def test_our_own_leftovers_are_cleared(tmp_path, way, seed):
    """Whatever a run that was killed had made; links in it are removed, not followed."""
    draw = random.Random(seed)
    victim, hidden = tmp_path / "victim", tmp_path / ".out.partial"
    fill(victim, "a", "b/c")
    names = ["new/IM0001.dcm", "new/a/b", "parts/0001.npy", "out", "journal.jsonl"]
    fill(hidden, *draw.sample(names, draw.randint(0, len(names))))
    if any(hidden.iterdir()) or seed % 2:
        (hidden / "medqdm.lock").touch()
        (hidden / draw.choice(["old-link", "zz"])).symlink_to(victim)
    before = tree(victim)
    with WAYS[way](tmp_path / "out"):
        pass
    assert tree(victim) == before
    made = set() if way == "lock" else {"out"}
    assert {p.name for p in tmp_path.iterdir()} == {"victim", *made}


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_the_hidden_folder_is_private_and_the_output_has_the_umask_s_mode(tmp_path, umask):
    before = os.umask(umask)
    try:
        with whole_folder(tmp_path / "out") as partial:
            (partial / "file").touch()
            hidden = tmp_path / ".out.partial"
            assert stat.S_IMODE(hidden.stat().st_mode) == 0o700
        with whole_file(tmp_path / "file") as partial:
            partial.touch()
            assert stat.S_IMODE(partial.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path):
    def write() -> None:
        with whole_file(tmp_path / "out") as partial:
            partial.write_text("new")
            (tmp_path / "out").write_text("mine")

    with pytest.raises(MedQDMError, match="must not exist yet"):
        write()
    assert (tmp_path / "out").read_text() == "mine"


def test_an_interruption_between_two_renames_brings_the_old_folder_back(tmp_path, monkeypatch):
    """Where names cannot be exchanged in one step."""
    monkeypatch.setattr(whole, "exchange", lambda _one, _other: False)
    out, replace = tmp_path / "out", Path.replace
    fill(out, "old")

    def stop(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return replace(self, target)

    def write() -> None:
        with whole_folder(out, overwrite=True) as partial:
            (partial / "new").touch()

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]


RACER = """if True:
    import json, sys, time
    from pathlib import Path
    from medqdm.errors import MedQDMError
    from medqdm.io.whole import whole_file
    out, found = Path(sys.argv[1]), {"written": 0, "busy": 0}
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            with whole_file(out, overwrite=True) as partial:
                partial.write_text(sys.argv[2])
                assert [p.name for p in partial.parent.iterdir()] >= ["medqdm.lock"]
                assert partial.read_text() == sys.argv[2]
            found["written"] += 1
        except MedQDMError as error:
            assert "one run at a time" in str(error), error
            found["busy"] += 1
    print(json.dumps(found))
    """


def test_runs_that_begin_and_end_together_do_not_meet(tmp_path):
    command = [sys.executable, "-c", RACER, tmp_path / "out"]
    runs = [
        subprocess.Popen([*command, str(k)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for k in range(3)
    ]
    for run in runs:
        out, err = run.communicate(timeout=60)
        assert run.returncode == 0, err.decode()
        assert json.loads(out)["written"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
