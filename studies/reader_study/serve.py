"""Serve: a study in the browser, a link for each reader; which arm is which stays in the key."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medqdm.errors import MedQDMError
from medqdm.picture import PRESETS
from medqdm.review.rating import SCORES
from medqdm.review.server import Answer as Page
from medqdm.review.server import LocalServer, as_json, packed, page_file
from medqdm.review.table import mend
from studies.reader_study.answers import COLUMNS, ITEMS, SIDES, Answer, read_answers, save_answer
from studies.reader_study.files import (
    IMAGES,
    RATINGS_FILE,
    Reader,
    Study,
    Trial,
    open_image,
    read_study,
)

NOTICE = "One or both images may be synthetic: research use, not for diagnosis"
MARK = "MAY BE SYNTHETIC"
_PAGE = {  # file to the package that has it; the review's own parts are used as they are
    **dict.fromkeys(("study.html", "study.css", "study.js"), "studies.reader_study"),
    **dict.fromkeys(("style.css", "panel.js", "paint.js", "loader.js"), "medqdm.review"),
}
_FROM_PAGE = ("preference", *ITEMS, "seconds", "window", "comment")


class StudyServer:
    """A study on the loopback interface: a link for each reader, good until the study is gone.

    In a notebook, the last line of a cell shows the first reader's page.

    Several readers may be at it at once; each goes on where the last saved answer is.

    Args:
        folder: the study. ``key.json`` is not opened and may lie elsewhere meanwhile.
        port: of the server; 0 takes a free one.

    Attributes:
        study: what is read.
        links: address by reader.

    Raises:
        MedQDMError: no study, another server is at it, its answers do not fit, or the port is in
            use.
    """

    def __init__(self, folder: str | Path, *, port: int = 0) -> None:
        folder = Path(folder)
        self.study = read_study(folder)
        self._lock = _alone(folder)
        try:
            path = folder / RATINGS_FILE
            mend(path, COLUMNS)
            done = _progress(self.study, read_answers(path))
            saving = threading.Lock()
            self._sites = {
                reader.token: _Reading(folder, self.study, reader, done[reader.name], saving)
                for reader in self.study.readers
            }
            self._server = LocalServer(self._sites, port=port)
        except BaseException:
            self._lock.release()
            raise
        self.links = {r.name: self._server.url(r.token) for r in self.study.readers}

    def progress(self) -> dict[str, tuple[int, int]]:
        """How many pairs each reader has answered, and of how many."""
        return {
            site.reader.name: (site.done, len(site.reader.trials)) for site in self._sites.values()
        }

    def wait(self) -> None:
        """Serve until the server is closed or the program is interrupted."""
        self._server.wait()

    def close(self) -> None:
        """Stop serving."""
        self._server.close()
        self._lock.release()

    def _repr_html_(self) -> str:
        return (
            f'<iframe src="{next(iter(self.links.values()))}" title="reader study" width="100%" '
            'height="860" style="border:0"></iframe>'
        )

    def __enter__(self) -> "StudyServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Reading:
    """What one reader is served."""

    def __init__(
        self, folder: Path, study: Study, reader: Reader, done: int, saving: threading.Lock
    ) -> None:
        self.reader, self.done = reader, done
        self._folder, self._study, self._saving = folder, study, saving

    def answer(self, path: str) -> Page:
        """The body and headers of a page, of ``state.json`` or of a slice."""
        name = path or "study.html"
        if name in _PAGE:
            return page_file(name, _PAGE[name])
        if path == "state.json":
            return as_json(self._state())
        match path.split("/"):
            case ["layer", side, number, index] if _is_small(number) and _is_small(index):
                return self._slice(side, int(number), int(index))
        raise MedQDMError(f"study: a page must be one of the study's, got {path!r}")

    def receive(self, path: str, body: bytes) -> Mapping[str, Any]:
        """Save the answer to the pair that is due."""
        if path != "rating":
            raise MedQDMError(f"study: what is sent must be a rating, got {path!r}")
        try:
            sent = json.loads(body)
            number, given = sent["trial"], {name: sent[name] for name in _FROM_PAGE}
        except (KeyError, TypeError, ValueError, RecursionError):
            raise MedQDMError("rating: must hold its fields, got something else") from None
        with self._saving:
            if number != self.done + 1 or self.done >= len(self.reader.trials):
                raise MedQDMError(
                    "rating: must be of the pair that is due, got another; it is saved already: "
                    "load the page again"
                )
            trial = self.reader.trials[self.done]
            answer = Answer(
                study=self._study.study,
                seed=self._study.seed,
                reader=self.reader.name,
                trial=number,
                case=trial.case,
                image_a=trial.a,
                image_b=trial.b,
                **given,
            )
            save_answer(self._folder / RATINGS_FILE, answer)
            self.done += 1
        return self._state()

    def _state(self) -> dict[str, Any]:
        """What the page shows next; nothing of it depends on which arm is where."""
        total, done = len(self.reader.trials), self.done
        state = {
            "reader": self.reader.name,
            "total": total,
            "trial": done + 1 if done < total else None,
            "notice": NOTICE,
            "mark": MARK,
            "scores": list(SCORES),
            "sides": list(SIDES),
        }
        if done >= total:
            return state
        case = self._study.cases[self.reader.trials[done].case]
        windows = {"wide": case.window_hu}
        windows |= {name: (w.center_hu, w.width_hu) for name, w in PRESETS.items()}
        height, width = (n * mm for n, mm in zip(case.size_px, case.pixel_mm, strict=True))
        return state | {
            "slices": case.num_slices,
            "size_mm": [height, width],
            "pixel_mm": list(case.pixel_mm),
            "letters": list(case.letters),
            "windows": {name: list(window) for name, window in windows.items()},
        }

    def _slice(self, side: str, number: int, index: int) -> Page:
        if side not in SIDES or not 1 <= number <= len(self.reader.trials):
            raise MedQDMError("study: a picture must be of a pair of this study, got another")
        trial = self.reader.trials[number - 1]
        case = self._study.cases[trial.case]
        if index >= case.num_slices:
            raise MedQDMError(f"study: slice index must be 0 to {case.num_slices - 1}, got {index}")
        return packed(open_image(self._folder, _image(trial, side), case)[index])


def _is_small(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 8


def _image(trial: Trial, side: str) -> str:
    return trial.a if side == "a" else trial.b


def _alone(folder: Path) -> FileLock:
    lock = FileLock(folder / IMAGES / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise MedQDMError(
            f"{folder}: one server at a time must run a study, got another one at work; use its "
            "links, or end it"
        ) from None
    except OSError as error:
        raise MedQDMError(
            f"{folder}: the study's folder must be writable, got '{error.strerror}'; "
            "check its permissions"
        ) from None
    return lock


def _progress(study: Study, answers: list[Answer]) -> dict[str, int]:
    """How many trials each reader has answered, in the order of the study.

    Raises:
        MedQDMError: an answer is not the next one of its reader.
    """
    trials = {reader.name: reader.trials for reader in study.readers}
    done = dict.fromkeys(trials, 0)
    for line, answer in enumerate(answers, start=2):
        due = trials.get(answer.reader, ())[done.get(answer.reader, 0) :][:1]
        shown = (answer.case, answer.image_a, answer.image_b)
        if answer.study != study.study or [(t.case, t.a, t.b) for t in due] != [shown]:
            raise MedQDMError(
                f"{RATINGS_FILE}: line {line} must answer the next pair of its reader in study "
                f"{study.study}, got another; put the study's own file there"
            )
        done[answer.reader] += 1
    return done
