"""Rating: what a reader thinks of a slice, one line of a CSV file each."""

from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medqdm.errors import MedQDMError
from medqdm.review.table import append_row, read_rows

SCORES = ("sharpness", "noise", "artefacts", "confidence")


@dataclass(frozen=True)
class Rating:
    """One reader's opinion of one slice; in every score 5 is the best.

    Args:
        series: label of the series (``Review.label``), nothing of the patient.
        slice_number: as shown, from 1.
        sharpness: 1 blurred to 5 sharp.
        noise: 1 drowns the anatomy to 5 does not disturb.
        artefacts: 1 misleading structures to 5 none seen.
        confidence: diagnostic confidence, 1 none to 5 full.
        comment: free text; line breaks become spaces.
        reader: label of the reader.
        window: name of the window it was read in.
        saved_at: when, UTC in ISO 8601; now unless given.

    Raises:
        MedQDMError: a score is not 1 to 5.
    """

    series: str
    slice_number: int
    sharpness: int
    noise: int
    artefacts: int
    confidence: int
    comment: str = ""
    reader: str = ""
    window: str = ""
    saved_at: str = ""

    def __post_init__(self) -> None:
        for name in SCORES:
            value = getattr(self, name)
            if value not in range(1, 6):
                got = "none" if value is None else repr(value)
                raise MedQDMError(f"rating: {name} must be 1 to 5, got {got}; choose a number")
        for name in ("series", "comment", "reader", "window"):
            object.__setattr__(self, name, " ".join(str(getattr(self, name)).split()))
        if not self.saved_at:
            object.__setattr__(self, "saved_at", datetime.now(UTC).isoformat(timespec="seconds"))


COLUMNS = tuple(field.name for field in fields(Rating))


def save_rating(path: str | Path, rating: Rating) -> None:
    """Append a rating to a CSV file, whole or not at all; a new file gets a header first.

    Several readers may share the file: a line goes out in one append, so that theirs do not mix.

    Args:
        path: the file; its folder is made.
        rating: what to append.

    Raises:
        MedQDMError: the file is there and holds something else.
    """
    append_row(Path(path), COLUMNS, list(asdict(rating).values()))


def read_ratings(path: str | Path) -> list[Rating]:
    """The ratings of a CSV file, in the order they were saved.

    Raises:
        MedQDMError: no such file, or one that ``save_rating`` did not write.
    """
    rows, _ = read_rows(Path(path), COLUMNS)
    ratings = []
    for number, row in enumerate(rows, start=2):
        try:
            cells: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
            cells |= {name: int(cells[name]) for name in ("slice_number", *SCORES)}
        except ValueError:
            raise MedQDMError(
                f"{path}: line {number} must hold {', '.join(COLUMNS)}, got {len(row)} cells that "
                "do not fit; repair or delete the line"
            ) from None
        ratings.append(Rating(**cells))
    return ratings
