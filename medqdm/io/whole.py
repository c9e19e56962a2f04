"""Whole: an output appears complete under its name, or not at all.

It is filled in a hidden folder beside its place (``.NAME.partial``), which one process at a time
holds. A later run never builds on it: the folder is cleared by the run itself or, if that was
killed, by the next run for the same place.
"""

import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from medqdm.errors import MedQDMError, system_number

_LOCK = "medqdm.lock"  # in every hidden folder that medqdm made, and in no other
_LOCK_SECONDS = 1.0  # what a run that ends just now may need to let go
_TRIES = 5  # a run that ends just now may remove the folder that another is about to take
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
    _check_file(path, overwrite=overwrite)
    path = path.resolve()
    with _hidden_sibling(path) as hidden, told_by_the_disk(path):
        _clear(hidden)
        partial = hidden / path.name
        yield partial
        _sync(partial)
        _check_file(path, overwrite=overwrite)  # somebody may have been there
        partial.replace(path)


def _check_file(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise MedQDMError(f"{path}: the output must be a file, got a folder; add a file name")
    if path.exists() and not overwrite:
        raise MedQDMError(
            f"{path}: the output must not exist yet, got a file; "
            "choose another name or add --overwrite"
        )


@contextmanager
def whole_folder(
    path: Path, *, overwrite: bool = False, marker: str | None = None
) -> Iterator[Path]:
    """A hidden sibling folder to fill, renamed to ``path`` when the block ends well.

    What lies beside it, in its parent, is removed at the end: a place for temporary files.

    Args:
        path: the folder to appear; missing parent folders are made.
        overwrite: whether a folder with files in it may be replaced (whole, and only at the end).
        marker: see ``check_folder``.

    Raises:
        MedQDMError: something is there that may not be replaced, or the disk does not take it.
    """
    check_folder(path, overwrite=overwrite, marker=marker)
    path = path.resolve()  # beside what a link points to; "." has no name
    if path.is_mount():
        raise MedQDMError(
            f"{path}: the output must be a folder that can be renamed, got the top of a mounted "
            f"disk; give a folder in it, such as {path / 'enhanced'}"
        )
    with _hidden_sibling(path) as hidden, told_by_the_disk(path):
        new, old = hidden / "new", hidden / "old"
        _put_back(old, path)
        check_folder(path, overwrite=overwrite, marker=marker)
        _clear(hidden)
        new.mkdir()  # not with the mode of the hidden folder: this one is published
        try:
            yield new
            for file in new.rglob("*"):
                _sync(file)
            check_folder(path, overwrite=overwrite, marker=marker)  # somebody may have been there
            _publish(new, path, aside=old)
        finally:
            _put_back(old, path)


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
def told_by_the_disk(path: Path) -> Iterator[None]:
    """Turn what the system says about writing into one line.

    Args:
        path: the output.

    Raises:
        MedQDMError: the disk is full, the folder read-only, or the device fails.
    """
    try:
        yield
    except OSError as error:
        number = system_number(error)
        if number not in _OF_THE_DISK:
            raise
        raise MedQDMError(
            f"{path}: the output must fit on a disk that can be written, got "
            f"'{os.strerror(number)}'; nothing was written; free some space or choose another place"
        ) from None


_OF_THE_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM,
    errno.EXDEV, errno.EBUSY, errno.ENAMETOOLONG, errno.ESTALE,
}  # fmt: skip


@contextmanager
def _hidden_sibling(path: Path) -> Iterator[Path]:
    """The hidden folder beside ``path``, on the same disk, held by this process alone.

    It is gone afterwards. Another user cannot look into it.
    """
    missing = [p for p in path.parents if not p.exists()]
    hidden = path.parent / f".{path.name}.partial"
    try:
        lock = _take(hidden)
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
    try:
        yield hidden
    finally:
        _clear(hidden)
        _leave(hidden, lock)
        with suppress(OSError):  # parents that now hold the output stay
            for parent in missing:
                parent.rmdir()


def _take(hidden: Path) -> FileLock:
    """Make the hidden folder, or take over that of a run that was killed, and lock it."""
    lock = FileLock(hidden / _LOCK, timeout=_LOCK_SECONDS)
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            hidden.parent.mkdir(parents=True, exist_ok=True)
            try:
                hidden.mkdir(mode=0o700)
            except FileExistsError:
                _check_own(hidden)
                if not any(hidden.iterdir()):  # killed before it was locked
                    with suppress(OSError):
                        hidden.rmdir()
                    continue
            lock.acquire()
            return lock
    raise Timeout(lock.lock_file)


def _check_own(hidden: Path) -> None:
    """Refuse what medqdm did not make for this user: it would be cleared.

    Raises:
        MedQDMError: a file, a link, or a folder of another user or with other files.
    """
    what = _foreign(hidden)
    if what:
        raise MedQDMError(
            f"{hidden}: this name must be free, or a folder that medqdm left there, got {what}; "
            "move it away"
        )


def _foreign(hidden: Path) -> str:
    """What lies there instead of a folder of ours; links are not followed."""
    found = hidden.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "a link"
    if not stat.S_ISDIR(found.st_mode):
        return "a file"
    if not _is_own(found):
        return "a folder of another user"
    names = {file.name for file in hidden.iterdir()}
    mark = (hidden / _LOCK).lstat() if _LOCK in names else None
    is_marked = mark is not None and stat.S_ISREG(mark.st_mode) and _is_own(mark)
    return "" if is_marked or not names else "a folder with other files"


def _is_own(found: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def _clear(hidden: Path) -> None:
    for file in hidden.iterdir() if hidden.is_dir() else ():
        if file.name != _LOCK:
            _remove(file)


def _leave(hidden: Path, lock: FileLock) -> None:
    """Remove the folder and release it, if nobody else has put anything there."""
    with suppress(OSError):
        (hidden / _LOCK).unlink()
        hidden.rmdir()
    lock.release()
    with suppress(OSError):
        hidden.rmdir()  # a lock that was open may have been in the way


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _put_back(old: Path, path: Path) -> None:
    """The old output, if a run ended between the two renames of ``_publish``."""
    if old.is_dir() and not path.exists():
        old.replace(path)


def _publish(new: Path, path: Path, *, aside: Path) -> None:
    """Give the new folder its name; at any moment the old or the new one has it."""
    if not path.exists() or not any(path.iterdir()):
        new.replace(path)
    elif not exchange(new, path):
        path.replace(aside)
        new.replace(path)
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


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; not all systems can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
