"""The one error a user can put right, and where an error came from."""

import traceback


class MedQDMError(ValueError):
    """Something the user can put right: a path, a value, a file.

    The text has the form ``where: what must be X, got Y; what to do``. The command line prints
    it alone and exits with code 2; every other exception is a bug and shows its traceback.
    """


def trace(error: BaseException) -> str:
    """The tracebacks of an error and of its causes, for ``--debug``.

    Of other errors than ``MedQDMError`` only the type is given: their text may quote a header.

    Args:
        error: as it was caught.

    Returns:
        Lines, the first cause first.
    """
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        text = f": {cause}" if isinstance(cause, MedQDMError) else ""
        frames = "".join(traceback.format_tb(cause.__traceback__))
        parts.append(f"{frames}{type(cause).__name__}{text}")
        cause = cause.__cause__ or cause.__context__
    return "Traceback (most recent call last):\n" + "\nwhich led to:\n".join(reversed(parts))


def system_number(error: BaseException | None) -> int:
    """The system's number of an error, which pydicom wraps into one without; 0 if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        error = error.__cause__
    return 0
