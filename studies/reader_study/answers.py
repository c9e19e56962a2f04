"""Answers: what a reader said of a pair of images, one line of a CSV file each."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medqdm.errors import MedQDMError
from medqdm.review.rating import SCORES
from medqdm.review.table import append_row, read_rows

SIDES = ("a", "b")
PREFERENCES = ("a", "none", "b")
ITEMS = tuple(f"{score}_{side}" for score in SCORES for side in SIDES)
_LONGEST_TEXT = 4000
_LONGEST_SECONDS = 86_400


@dataclass(frozen=True)
class Answer:
    """One reader's opinion of one pair; in every score 5 is the best.

    It names images, not arms: ``key.json`` tells which they are, and so does the seed to who has
    the same outputs.

    Args:
        study: name of the study.
        seed: of the study.
        reader: name of the reader.
        trial: its place in the reader's order, from 1.
        case: name of the case.
        image_a: name of the image on the left.
        image_b: name of the image on the right.
        preference: a, b or none.
        sharpness_a: 1 blurred to 5 sharp; ``sharpness_b`` of the other image.
        sharpness_b: see above.
        noise_a: 1 drowns the anatomy to 5 does not disturb.
        noise_b: see above.
        artefacts_a: 1 misleading structures to 5 none seen.
        artefacts_b: see above.
        confidence_a: diagnostic confidence, 1 none to 5 full.
        confidence_b: see above.
        seconds: that the pair was on the screen; pauses and hidden pages do not count.
        window: name of the window at the end, and its centre and width in HU.
        comment: free text; line breaks become spaces.
        saved_at: when, UTC in ISO 8601; now unless given.

    Raises:
        MedQDMError: a preference, score or time is none.
    """

    study: str
    seed: int
    reader: str
    trial: int
    case: str
    image_a: str
    image_b: str
    preference: str
    sharpness_a: int
    sharpness_b: int
    noise_a: int
    noise_b: int
    artefacts_a: int
    artefacts_b: int
    confidence_a: int
    confidence_b: int
    seconds: float
    window: str = ""
    comment: str = ""
    saved_at: str = ""

    def __post_init__(self) -> None:
        if self.preference not in PREFERENCES:
            raise MedQDMError("rating: the preference must be A, B or none; choose one")
        for item in ITEMS:
            value = getattr(self, item)
            if isinstance(value, bool) or value not in range(1, 6):
                name, _, side = item.partition("_")
                raise MedQDMError(
                    f"rating: {name} of {side.upper()} must be 1 to 5; choose a number"
                )
        seconds = self.seconds
        if not isinstance(seconds, int | float) or not 0 <= seconds <= _LONGEST_SECONDS:
            raise MedQDMError("rating: the time must be a number of seconds; load the page again")
        object.__setattr__(self, "seconds", math.floor(seconds * 10) / 10)
        for name in ("window", "comment"):
            text = " ".join(str(getattr(self, name)).split())[:_LONGEST_TEXT]
            object.__setattr__(self, name, text.encode("utf-8", "replace").decode())
        if not self.saved_at:
            object.__setattr__(self, "saved_at", datetime.now(UTC).isoformat(timespec="seconds"))

    def score(self, name: str, side: str) -> int:
        """A score of one side."""
        value: int = getattr(self, f"{name}_{side}")
        return value


COLUMNS = tuple(field.name for field in fields(Answer))
_NUMBERS = {"seed": int, "trial": int, "seconds": float, **dict.fromkeys(ITEMS, int)}


def save_answer(path: Path, answer: Answer) -> None:
    """Append an answer, whole or not at all, and wait until it is on the disk.

    Raises:
        MedQDMError: the file holds something else, or the disk does not take it.
    """
    append_row(path, COLUMNS, list(asdict(answer).values()))


def read_answers(path: Path) -> list[Answer]:
    """The answers of a file in the order they were saved; none where there is no file.

    Raises:
        MedQDMError: it holds something else.
    """
    if not path.exists():
        return []
    rows, _ = read_rows(path, COLUMNS)
    return [_parsed(path, number, row) for number, row in enumerate(rows, start=2)]


def _parsed(path: Path, number: int, row: list[str]) -> Answer:
    try:
        cells: Mapping[str, Any] = dict(zip(COLUMNS, row, strict=True))
        return Answer(**{name: _NUMBERS.get(name, str)(cell) for name, cell in cells.items()})
    except ValueError:
        raise MedQDMError(
            f"{path}: line {number} must be an answer as the study saved it, got {len(row)} "
            "cells that do not fit; repair or delete the line"
        ) from None
