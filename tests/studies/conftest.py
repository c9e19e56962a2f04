"""What the tests of the studies share."""

from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner


@pytest.fixture
def refused() -> Callable[..., bool]:
    """A check that a study's parser refuses an option's value and names the option."""

    def check(app: typer.Typer, *arguments: object) -> bool:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        option = str(arguments[-1]).partition("=")[0].removeprefix("--")
        return (
            result.exit_code == 2 and option in result.output and "Traceback" not in result.output
        )

    return check
