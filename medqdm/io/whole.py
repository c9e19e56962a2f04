"""Whole: an output appears complete under its name, or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medqdm.errors import MedQDMError


@contextmanager
def whole_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A hidden sibling to write to, renamed to ``path`` when the block ends well.

    Args:
        path: the file to appear; missing parent folders are made.
        overwrite: whether an existing file may be replaced.

    Raises:
        MedQDMError: the file exists and may not be replaced.
    """
    if path.is_dir():
        raise MedQDMError(f"{path}: the output must be a file, got a folder; add a file name")
    if path.exists() and not overwrite:
        raise MedQDMError(
            f"{path}: the output must not exist yet, got a file; "
            "choose another name or add --overwrite"
        )
    with _temporary_folder(path) as folder:
        partial = folder / path.name
        yield partial
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
        MedQDMError: something is there that may not be replaced.
    """
    check_folder(path, overwrite=overwrite, marker=marker)
    with _temporary_folder(path) as folder:
        partial = folder / "new"
        partial.mkdir()
        yield partial
        old = folder / "old"
        if path.exists():
            path.replace(old)
        try:
            partial.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise


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


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path``, on the same disk, gone afterwards."""
    missing = [p for p in path.absolute().parents if not p.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise MedQDMError(
            f"{path}: the output's folder must be writable, got '{error.strerror}'; "
            "choose another place"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # parents that now hold the output stay
            for parent in missing:
                parent.rmdir()
