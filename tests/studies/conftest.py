"""What the tests of the studies share."""

from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from medqdm.errors import MedQDMError
from tests.evaluate.conftest import _one_thread, data, model  # noqa: F401  (fixtures)
from tests.review.conftest import browser, exams  # noqa: F401  (fixtures)


@pytest.fixture
def refused() -> Callable[..., bool]:
    """A check that a study refuses an option's value, the last argument, and names the option."""

    def check(app: typer.Typer, *arguments: object) -> bool:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        option = str(arguments[-1]).partition("=")[0].removeprefix("--")
        if isinstance(result.exception, MedQDMError):
            return option in str(result.exception)
        return result.exit_code == 2 and option in result.output

    return check
