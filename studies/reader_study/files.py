"""Files: a study folder. What is shown lies apart from what it is: ``study.json`` and ``key.json``.

``images/`` holds one array ``(slices, y, x)`` of 16-bit HU for each arm of each case, under names
that say nothing and all equally long; ``study.json`` says which two each reader sees when;
``key.json`` alone says which arm an image is. ``ratings.csv`` grows as readers save.
"""

from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from medqdm.errors import MedQDMError

STUDY_FILE, KEY_FILE, RATINGS_FILE, IMAGES = "study.json", "key.json", "ratings.csv", "images"

ImageName = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
ReaderName = Annotated[str, Field(pattern=r"^r[0-9]{1,4}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Case(_Record):
    """What a page needs to show a case; lengths in mm, the window in HU (centre, width)."""

    num_slices: PositiveInt
    size_px: tuple[PositiveInt, PositiveInt]
    pixel_mm: tuple[PositiveFloat, PositiveFloat]
    letters: tuple[str, str, str, str]
    window_hu: tuple[float, PositiveFloat]


class Trial(_Record):
    """Two images of a case, side by side."""

    case: str
    a: ImageName
    b: ImageName


class Reader(_Record):
    """A reader, the token of the reader's link, and what is read in which order."""

    name: ReaderName
    token: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{20,}$")]
    trials: tuple[Trial, ...]


class Study(_Record):
    """``study.json``: all that reading needs, and nothing that tells arms apart."""

    study: str
    medqdm: str
    seed: int
    cases: dict[str, Case]
    readers: tuple[Reader, ...]


class KeyImage(_Record):
    """Which arm of which case an image is."""

    case: str
    arm: str


class KeyCase(_Record):
    """Where a case came from.

    ``output`` counts the outputs as they were found, from 1; ``series`` is the hash that
    ``medqdm review`` calls it by; ``patient`` counts patients; ``slices`` are numbers from 1.
    """

    output: PositiveInt
    series: str
    patient: PositiveInt
    slices: tuple[PositiveInt, ...]


class Key(_Record):
    """``key.json``: what unblinds a study."""

    study: str
    seed: int
    images: dict[str, KeyImage]
    cases: dict[str, KeyCase]


Record = TypeVar("Record", bound=_Record)


def is_study(folder: Path) -> bool:
    """Whether a folder holds a study."""
    return (folder / STUDY_FILE).is_file()


def read_study(folder: Path) -> Study:
    """The study of a folder, without its key.

    Raises:
        MedQDMError: there is none, or it is damaged.
    """
    return _read(folder / STUDY_FILE, Study)


def read_key(folder: Path) -> Key:
    """The key of a study.

    Raises:
        MedQDMError: there is none, it is damaged, or it belongs to another study.
    """
    key = _read(folder / KEY_FILE, Key)
    study = read_study(folder)
    if key.study != study.study:
        raise MedQDMError(
            f"{KEY_FILE}: must be the key of study {study.study}, got that of {key.study}; "
            "put the right one there"
        )
    return key


def _read(path: Path, kind: type[Record]) -> Record:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise MedQDMError(
            f"{path}: must be a file that the study command wrote, got {type(error).__name__} on "
            "reading it; check the folder"
        ) from None


def write_record(path: Path, record: _Record) -> None:
    """Write one of the JSON files."""
    path.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def write_image(folder: Path, name: str, stack: NDArray[np.int16]) -> None:
    """Write the slices of an image ``(slices, y, x)``, in HU."""
    np.save(folder / IMAGES / f"{name}.npy", stack)


def open_image(folder: Path, name: str, case: Case) -> NDArray[np.int16]:
    """The slices of an image ``(slices, y, x)`` in HU; each is read when it is used.

    Raises:
        MedQDMError: the file is gone or not what it was.
    """
    try:
        stack: NDArray[np.int16] = np.load(
            folder / IMAGES / f"{name}.npy", mmap_mode="r", allow_pickle=False
        )
        if stack.shape != (case.num_slices, *case.size_px) or stack.dtype != np.int16:
            raise ValueError(stack.shape)
    except (OSError, ValueError, EOFError) as error:
        raise MedQDMError(
            f"study: images must be as the study command wrote them, got {type(error).__name__} on "
            "reading one; make the study again"
        ) from None
    return stack
