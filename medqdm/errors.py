"""The one error a user can put right."""


class MedQDMError(ValueError):
    """Something the user can put right: a path, a value, a file.

    The text has the form ``where: what must be X, got Y; what to do``. The command line prints
    it alone and exits with code 2; every other exception is a bug and shows its traceback.
    """
