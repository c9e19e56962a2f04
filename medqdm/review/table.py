"""Table: a CSV file that grows by whole lines, whoever else writes to it."""

import csv
import errno
import io
import os
from collections.abc import Sequence
from pathlib import Path

from medqdm.cells import as_given, as_text
from medqdm.errors import MedQDMError


def append_row(path: Path, columns: Sequence[str], cells: Sequence[object]) -> None:
    """Append a line, whole or not at all, and wait until it is on the disk.

    A new file gets a header first. Several may share the file: a line goes out in one append, so
    that theirs do not mix.

    Args:
        path: the file; its folder is made.
        columns: its header.
        cells: one a column; line breaks must not be in them.

    Raises:
        MedQDMError: the file is there and holds something else, or the disk does not take it.
    """
    line = _csv_line(cells)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
            line = _csv_line(columns) + line
        except FileExistsError:
            if not read_rows(path, columns)[1]:
                line = "\n" + line  # an editor took the last line break away
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            _append(descriptor, line.encode(errors="replace"))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MedQDMError(
            f"{path.name}: must be a file on a disk that can be written, got "
            f"'{error.strerror}'; free some space or check the folder, then save again"
        ) from None


def _append(descriptor: int, line: bytes) -> None:
    before = os.fstat(descriptor).st_size
    if os.write(descriptor, line) < len(line):  # half a line is worse than none
        os.ftruncate(descriptor, before)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)


def read_rows(path: Path, columns: Sequence[str]) -> tuple[list[list[str]], bool]:
    """The rows below the header, and whether the last one ends in a line break.

    Args:
        path: the file.
        columns: that its header must name.

    Raises:
        MedQDMError: no such file, or another header.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MedQDMError(
            f"{path}: must be a CSV file of ratings, got {type(error).__name__} on reading it; "
            "check the path"
        ) from None
    rows = [[as_given(cell) for cell in row] for row in csv.reader(text.splitlines()) if row]
    if not rows or rows[0] != list(columns):
        raise MedQDMError(
            f"{path}: must be a CSV file of ratings with the columns {', '.join(columns)}, got "
            "another file; choose another path"
        )
    return rows[1:], text.endswith("\n")


def mend(path: Path, columns: Sequence[str]) -> None:
    """Cut a last line off that a power cut left unfinished.

    Args:
        path: the file; nothing is done where there is none.
        columns: of a whole line.
    """
    if not path.exists():
        return
    content = path.read_bytes()
    whole, break_, last = content.rpartition(b"\n")
    if not last:
        return
    cells = next(csv.reader([last.decode(errors="replace")]))
    if len(cells) >= len(columns):
        return
    if not whole:  # not even the header
        path.unlink()
        return
    with path.open("rb+") as file:
        file.truncate(len(whole) + len(break_))
        os.fsync(file.fileno())


def _csv_line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([as_text(cell) for cell in cells])
    return text.getvalue()
