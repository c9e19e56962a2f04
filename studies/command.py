"""Command lines of the studies: ``python -m studies.NAME``."""

from collections.abc import Callable
from typing import Any

import typer

from medqdm import cli


def app_of(*commands: Callable[..., Any]) -> typer.Typer:
    """Make a typer application.

    Args:
        commands: functions with typer's annotations; several become subcommands.
    """
    app = typer.Typer(
        no_args_is_help=len(commands) > 1, pretty_exceptions_enable=False, add_completion=False
    )
    for command in commands:
        app.command(command.__name__.replace("_", "-"))(command)
    return app


def run(app: typer.Typer) -> None:
    """Run a study's command line; a user's mistake ends in one line and exit code 2."""
    cli.setup()
    cli.main(app)
