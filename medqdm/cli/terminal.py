"""The terminal: results on standard output, messages on standard error."""

import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()
messages = Console(stderr=True)


def end_cleanly_on_sigterm() -> None:
    """Let SIGTERM unwind the stack as Ctrl+C does, so that half an output is cleared away."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def warn(text: str) -> None:
    """A warning."""
    messages.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """A line on what is done next, for whoever watches."""
    if messages.is_terminal and not console.quiet:
        messages.print(text, style="dim", highlight=False)


def progress(items: Iterable[Any], total: int, unit: str) -> Iterator[Any]:
    """The items, with a bar that grows as they come and is gone at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bar:
        yield from bar.track(items, total=total, description="")


def duration(seconds: float) -> str:
    """Seconds in words that are as exact as an estimate."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
