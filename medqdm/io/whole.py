"""Whole: an output appears complete under its name, or not at all.

It is filled in a hidden folder beside its place (``.NAME.partial``), which one process at a time
may hold. A run that was killed leaves that folder behind; the next run for the same place continues
there or clears it away.
"""

import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medqdm.errors import MedQDMError

_LOCK_SECONDS = 1.0  # what a run that ends just now may need to let go
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


@contextmanager
def whole_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A hidden sibling to write to, renamed to ``path`` when the block ends well.

    Args:
        path: the file to appear; missing parent folders are made.
        overwrite: whether an existing file may be replaced.

    Raises:
        MedQDMError: the file exists and may not be replaced, or the disk does not take it.
    """
    if path.is_dir():
        raise MedQDMError(f"{path}: the output must be a file, got a folder; add a file name")
    if path.exists() and not overwrite:
        raise MedQDMError(
            f"{path}: the output must not exist yet, got a file; "
            "choose another name or add --overwrite"
        )
    path = path.resolve()
    with _hidden_sibling(path) as hidden, told_by_the_disk(path):
        _clear(hidden)
        partial = hidden / path.name
        yield partial
        _sync(partial)
        partial.replace(path)


@contextmanager
def whole_folder(
    path: Path, *, overwrite: bool = False, marker: str | None = None
) -> Iterator[Path]:
    """A hidden sibling folder to fill, renamed to ``path`` when the block ends well.

    Args:
        path: the folder to appear; missing parent folders are made.
        overwrite: whether a folder with files in it may be replaced (whole, and only at the end).
        marker: see ``check_folder``.

    Raises:
        MedQDMError: something is there that may not be replaced, or the disk does not take it.
    """
    with resumable_folder(path, overwrite=overwrite, marker=marker) as unfinished:
        yield unfinished.folder


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a name that no other run may hold at the same time.

    Args:
        path: a file or folder that need not be there; missing parent folders are made.

    Raises:
        MedQDMError: another run holds it, or its folder cannot be written.
    """
    with _hidden_sibling(path.resolve()):
        yield


class Unfinished:
    """A folder on its way, and a journal of the parts that are in it for good.

    Args:
        hidden: the hidden folder that holds it.
        identity: what the content depends on; another one's parts are of no use.
        facts: what has to be the same for all parts though it is not part of the identity, such as
            the time; those of the run that began count.
        resume: whether to go on with what an earlier run left there.

    Attributes:
        folder: what will appear.
        parts: files that are needed until then only.
        facts: as above.
        notes: what ``add`` was told of the parts that are there, in order.
    """

    def __init__(
        self, hidden: Path, *, identity: str, facts: Mapping[str, Any], resume: bool
    ) -> None:
        self.folder, self.parts = hidden / "new", hidden / "parts"
        self.facts: dict[str, Any] = dict(facts)
        self.notes: list[dict[str, Any]] = []
        self._journal = hidden / "journal.jsonl"
        kept = self._read(identity) if resume else []
        if not kept:
            _clear(hidden)
        self.folder.mkdir(exist_ok=True)
        self.parts.mkdir(exist_ok=True)
        self._begin(kept or [{"identity": identity, "facts": self.facts}])

    def add(self, note: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Record that a part is complete.

        Args:
            note: what is to be known about it, for JSON.
            files: the files of the part, in ``folder`` or ``parts``.
        """
        for file in files:
            _sync(file)
        self._append({"note": dict(note), "files": self._digests(files)})
        self.notes.append(dict(note))

    def _digests(self, files: Sequence[Path]) -> dict[str, str]:
        hidden = self._journal.parent
        return {file.relative_to(hidden).as_posix(): _digest(file) for file in files}

    def _read(self, identity: str) -> list[dict[str, Any]]:
        """The lines of an earlier run, up to the first part that is not whole."""
        try:
            text = self._journal.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return []
        kept: list[dict[str, Any]] = []
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # cut short by a kill
                break
            if kept and not self._is_whole(entry):
                break
            kept.append(entry)
        if not kept or kept[0].get("identity") != identity:
            return []
        self.facts = dict(kept[0]["facts"])
        self.notes = [entry["note"] for entry in kept[1:]]
        return kept

    def _is_whole(self, entry: Mapping[str, Any]) -> bool:
        hidden = self._journal.parent
        files = {hidden / name: digest for name, digest in entry["files"].items()}
        return all(file.is_file() and _digest(file) == digest for file, digest in files.items())

    def _begin(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Start from these entries: whatever else lies there is gone."""
        hidden = self._journal.parent
        known = {hidden / name for entry in entries[1:] for name in entry["files"]}
        for file in (*self.folder.iterdir(), *self.parts.iterdir()):
            if file not in known:
                _remove(file)
        draft = self._journal.with_suffix(".draft")
        draft.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")
        _sync(draft)
        draft.replace(self._journal)

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def resumable_folder(
    path: Path,
    *,
    identity: str = "",
    facts: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    marker: str | None = None,
) -> Iterator[Unfinished]:
    """A folder to fill part by part, which appears when the block ends well.

    Args:
        path: the folder to appear; missing parent folders are made.
        identity: see ``Unfinished``.
        facts: see ``Unfinished``.
        resume: go on where an earlier run with the same identity stopped; and if this one does not
            end well, keep what it made for the next.
        overwrite: whether a folder with files in it may be replaced (whole, and only at the end).
        marker: see ``check_folder``.

    Raises:
        MedQDMError: something is there that may not be replaced, another run is at it, or the disk
            does not take it.
    """
    check_folder(path, overwrite=overwrite, marker=marker)
    path = path.resolve()  # beside what a link points to; "." has no name
    if path.is_mount():
        raise MedQDMError(
            f"{path}: the output must be a folder that can be renamed, got the top of a mounted "
            f"disk; give a folder in it, such as {path / 'enhanced'}"
        )
    with _hidden_sibling(path, keep=resume) as hidden, told_by_the_disk(path, kept=resume):
        _put_back(hidden / "old", path)
        unfinished = Unfinished(hidden, identity=identity, facts=facts or {}, resume=resume)
        yield unfinished
        for file in unfinished.folder.rglob("*"):
            _sync(file)
        check_folder(path, overwrite=overwrite, marker=marker)  # somebody may have been there
        _publish(unfinished.folder, path, aside=hidden / "old")
        _clear(hidden)


def check_folder(path: Path, *, overwrite: bool, marker: str | None = None) -> None:
    """Refuse an output folder that is in use, before any work is done.

    Args:
        path: the folder to appear.
        overwrite: whether a folder with files in it may be replaced.
        marker: a file that our own outputs hold; a folder without it is never replaced, so that a
            slip of the hand cannot cost a folder of somebody's files.

    Raises:
        MedQDMError: something is there that may not be replaced.
    """
    if path.exists() and not path.is_dir():
        raise MedQDMError(f"{path}: the output must be a folder, got a file; choose another name")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise MedQDMError(
            f"{path}: the output folder must be empty, got files in it; "
            "choose another one or add --overwrite"
        )
    if path.is_dir() and any(path.iterdir()) and marker and not (path / marker).is_file():
        raise MedQDMError(
            f"{path}: only an earlier output (with {marker}) may be replaced, got other files; "
            "choose another folder"
        )


def check_room(path: Path, num_bytes: int, *, instead: str = "") -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        path: the output to be; its nearest existing parent tells the disk.
        num_bytes: that will be written, at least.
        instead: what else may help, for the message.

    Raises:
        MedQDMError: less is free.
    """
    place = next((p for p in (path, *path.absolute().parents) if p.exists()), Path.cwd())
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise MedQDMError(
            f"{path}: the disk must have {num_bytes / 1e9:.1f} GB free, got {free / 1e9:.1f} GB; "
            f"free some space or choose another place{instead}"
        )


@contextmanager
def told_by_the_disk(path: Path, *, kept: bool = False) -> Iterator[None]:
    """Turn what the system says about writing into one line.

    Args:
        path: the output.
        kept: whether what is done stays for ``--resume``.

    Raises:
        MedQDMError: the disk is full, the folder read-only, or the device fails.
    """
    try:
        yield
    except OSError as error:
        number = _number(error)
        if number not in _OF_THE_DISK:
            raise
        then = "what is done is kept: put it right and run again with --resume" if kept else (
            "nothing was written; free some space or choose another place")  # fmt: skip
        raise MedQDMError(
            f"{path}: the output must fit on a disk that can be written, "
            f"got '{os.strerror(number)}'; {then}"
        ) from None


def _number(error: BaseException | None) -> int:
    """The system's number of an error, which pydicom wraps into one without; 0 if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        error = error.__cause__
    return 0


_OF_THE_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM,
    errno.EXDEV, errno.EBUSY, errno.ENAMETOOLONG, errno.ESTALE,
}  # fmt: skip


@contextmanager
def _hidden_sibling(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """The hidden folder beside ``path``, on the same disk, held by this process alone.

    It is gone afterwards, unless the block fails and ``keep`` is set.
    """
    missing = [p for p in path.parents if not p.exists()]
    hidden = path.parent / f".{path.name}.partial"
    lock = FileLock(hidden / "lock", timeout=_LOCK_SECONDS)
    try:
        hidden.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise MedQDMError(
            f"{path}: one run at a time may write an output, got another one at work there; "
            "wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise MedQDMError(
            f"{path}: the output's folder must be writable, got '{error.strerror}'; "
            "choose another place"
        ) from None
    done = False
    try:
        yield hidden
        done = True
    finally:
        if done or not keep:
            _clear(hidden)
            _leave(hidden)
        lock.release()
        if done or not keep:
            _leave(hidden)  # where a file that is open cannot go
            with suppress(OSError):  # parents that now hold the output stay
                for parent in missing:
                    parent.rmdir()


def _clear(hidden: Path) -> None:
    for file in hidden.iterdir() if hidden.is_dir() else ():
        if file.name != "lock":
            _remove(file)


def _leave(hidden: Path) -> None:
    """Remove the lock and the folder, if nobody else has put anything there."""
    with suppress(OSError):
        if sorted(p.name for p in hidden.iterdir()) in ([], ["lock"]):
            (hidden / "lock").unlink(missing_ok=True)
            hidden.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _put_back(old: Path, path: Path) -> None:
    """What a run put aside when it was killed between two renames."""
    if old.is_dir() and not path.exists():
        old.replace(path)


def _publish(new: Path, path: Path, *, aside: Path) -> None:
    """Give the new folder its name; at any moment the old or the new one has it."""
    if not path.exists() or not any(path.iterdir()):
        new.replace(path)
    elif not exchange(new, path):
        path.replace(aside)
        try:
            new.replace(path)
        except OSError:
            aside.replace(path)
            raise
    _sync(path.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two files or folders in one step, where the system can; else do nothing.

    Args:
        one: exists.
        other: exists, on the same disk.

    Returns:
        Whether they were swapped.
    """
    rename = _renameat2()
    if rename is None:
        return False
    return bool(
        rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
    )


def _renameat2() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "renameat2", None)
    if function is not None:
        function.argtypes = (
            ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
        )  # fmt: skip
    return function


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        digest = sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; not all systems can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
