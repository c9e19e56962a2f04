"""Cells: text in CSV files that no spreadsheet takes for a formula."""

_FORMULA = ("=", "+", "-", "@")


def as_text(cell: object) -> object:
    """A cell for a CSV file: with an apostrophe before what a spreadsheet would run.

    >>> as_text("=1+1"), as_text("ring"), as_text(-3)
    ("'=1+1", 'ring', -3)
    """
    is_formula = isinstance(cell, str) and cell.lstrip("'").startswith(_FORMULA)
    return f"'{cell}" if is_formula else cell


def as_given(cell: str) -> str:
    """What ``as_text`` was given.

    >>> as_given("'=1+1"), as_given("'quoted'")
    ('=1+1', "'quoted'")
    """
    is_text = cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA)
    return cell[1:] if is_text else cell
