"""The command line: ``medqdm enhance``, ``train``, ``evaluate`` and their companions."""

import logging
import sys
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer
from rich.logging import RichHandler
from rich.markup import escape

from medqdm.cli import enhance, evaluate, look, train
from medqdm.cli.terminal import console, messages
from medqdm.errors import MedQDMError, trace
from medqdm.version import __version__

app = typer.Typer(
    help="CT super-resolution with quadtree diffusion models. Research use only: "
    "not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    enhance.enhance,
    train.train,
    train.train_gain,
    train.train_spread,
    train.prepare,
    evaluate.evaluate,
    look.info,
    look.review,
    look.tasks,
    train.import_weights,
):
    app.command(command.__name__.replace("_", "-"))(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"medqdm {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def setup(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where faults came from, with their tracebacks.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", hidden=True)] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show warnings only.")] = False,
    version: Annotated[  # noqa: ARG001  (its callback prints it)
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Set up logging for all commands."""
    level = logging.DEBUG if debug or verbose else logging.WARNING if quiet else logging.INFO
    handler = RichHandler(console=messages, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s")
    logging.getLogger("medqdm").setLevel(level)
    console.quiet = quiet


def main(app: typer.Typer = app) -> None:
    """Run a command line; a user's mistake ends in one line and exit code 2.

    With ``--debug`` its traceback comes before the line.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # names of files may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except MedQDMError as error:
        _end(error, str(error))
    except PermissionError as error:
        text = f"{error.filename}: must be accessible, got '{error.strerror}'; check permissions"
        _end(error, text)


def _end(error: Exception, text: str) -> NoReturn:
    logging.getLogger(__name__).debug("%s", trace(error))
    messages.print(f"[red]medqdm:[/] {escape(text)}", soft_wrap=True, highlight=False)
    raise SystemExit(2) from None
