"""Document: what was measured as JSON, as Markdown tables and as a figure, in a folder."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from medqdm import picture
from medqdm.evaluate.intervals import MIN_BOOTSTRAP, Interval
from medqdm.io.whole import whole_folder

# Okabe and Ito's palette, told apart by all eyes, and shapes beside it
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
UNITS_ARE_PATIENTS = (
    "Values are means over a patient's slices, then over patients, who are the independent "
    "units. In brackets: 95 % intervals over patients, by bootstrap (percentiles) with "
    f"{MIN_BOOTSTRAP} patients or more, by Student's t with fewer, wide if they are few; one "
    "patient alone has none."
)


def marker(name: str) -> str:
    """The file by which a folder of this kind is known, so that it may be replaced.

    Args:
        name: of the document.
    """
    return f"{name}.json"


def write_document(
    out: Path,
    name: str,
    *,
    data: Mapping[str, Any],
    text: str,
    figures: Mapping[str, Figure],
    overwrite: bool = False,
) -> None:
    """Write ``NAME.json``, ``NAME.md`` and figures into a folder, whole or not at all.

    Args:
        out: the folder to appear.
        name: of the document.
        data: everything, see ``plain_json``.
        text: Markdown.
        figures: file name to figure.
        overwrite: whether a folder with files in it may be replaced.

    Raises:
        MedQDMError: something is there that may not be replaced.
    """
    with whole_folder(out, overwrite=overwrite, marker=marker(name)) as folder:
        write_texts(folder, name, data=data, text=text)
        for file, figure in figures.items():
            picture.save(figure, folder / file)


def write_texts(folder: Path, name: str, *, data: Mapping[str, Any], text: str) -> None:
    """Write ``NAME.json`` and ``NAME.md`` into a folder that is there.

    Args:
        folder: where.
        name: of the document.
        data: everything, see ``plain_json``.
        text: Markdown.
    """
    plain = json.dumps(plain_json(data), indent=1, allow_nan=False)
    (folder / marker(name)).write_text(plain + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")


def plain_json(value: Any) -> Any:
    """Plain JSON values; infinities become strings, NaN null, intervals their fields."""
    if isinstance(value, Interval):
        return plain_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, its first column left-aligned, the others right-aligned."""
    ruler = ["---"] + ["---:"] * (len(head) - 1)
    return ["| " + " | ".join(map(cell, row)) + " |" for row in (head, ruler, *rows)]


def cell(value: Any) -> str:
    """A value in one line that no bar of it breaks."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def number(value: float | None, style: str) -> str:
    """A number, or a dash where there is none.

    >>> number(1.25, "+.1f"), number(None, ".2f")
    ('+1.2', '-')
    """
    return "-" if value is None else f"{value:{style}}"


def with_interval(found: Interval | None, style: str) -> str:
    """A mean and its interval in brackets.

    Args:
        found: None: a dash.
        style: format of the numbers.
    """
    if found is None:
        return "-"
    text = number(found.mean, style)
    if found.low is None or found.high is None:
        return text
    return f"{text} [{found.low:{style}}, {found.high:{style}}]"


def heading(settings: Mapping[str, Any], num_slices: int, num_patients: int) -> str:
    """One line on slices, weights, version and settings.

    Args:
        settings: see ``run.describe``.
        num_slices: that were measured.
        num_patients: whose they are.
    """
    task = settings["task"]
    return (
        f"{num_slices} slices of {num_patients} patients; weights sha256 "
        f"`{settings['weights_sha256'][:12]}`, medqdm {settings['medqdm']}, "
        f"seed {settings['seed']}, {settings['device']} {settings['precision']}, "
        f"s = {task['quadtree']['threshold']:g} ({settings['threshold_hu']:g} HU). "
        "Research use: not a medical device."
    )
