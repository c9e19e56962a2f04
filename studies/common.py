"""Common: the options that most studies have, and what they do with them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medqdm.config import Task
from medqdm.data import Pair
from medqdm.enhancer import Enhancer
from medqdm.evaluate.api import degraded_by
from medqdm.evaluate.document import marker
from medqdm.evaluate.run import describe_data, open_pairs
from medqdm.io.whole import check_folder
from medqdm.loading import ModelOptions, load_enhancer

TrackPairs = Callable[[Iterable[Pair], int], Iterable[Pair]]


class StudyOptions(ModelOptions, total=False):
    """What every study takes, beside the model.

    Args:
        degradation: name of a preset instead of the task's ``test_degradation``.
        limit: slices at the most, spread over the patients.
        overwrite: replace an output folder that has files in it.
    """

    degradation: str | None
    limit: int | None
    overwrite: bool


class Study:
    """What every study does with its options; refuses a folder that may not be replaced."""

    def __init__(self, data: str | Path, out: str | Path, name: str, options: StudyOptions) -> None:
        self.data, self.out = Path(data), Path(out)
        self.overwrite = options.get("overwrite", False)
        self.limit = options.get("limit")
        self.seed = options.get("seed", 0)
        check_folder(self.out, overwrite=self.overwrite, marker=marker(name))
        preset = degraded_by(options.get("degradation"), self.data)
        own = StudyOptions.__annotations__.keys() - ModelOptions.__annotations__.keys()
        self._model: dict[str, Any] = {k: v for k, v in options.items() if k not in own}
        self._settings = [*options.get("settings", ()), *preset]

    def open(self, *settings: str) -> Enhancer:
        """The model, with further settings."""
        return load_enhancer(**{**self._model, "settings": [*self._settings, *settings]})

    def at_thresholds(self, thresholds: Sequence[float]) -> dict[float, Enhancer]:
        """The model at each threshold, its own first."""
        own = self.open()
        found = {own.task.quadtree.threshold: own}
        for s in thresholds:
            if s not in found:
                found[s] = self.open(f"quadtree.threshold={s}")
        return found

    def pairs(self, task: Task) -> tuple[Iterator[Pair], int]:
        """Its pairs of slices, and their number."""
        return open_pairs(task, self.data, limit=self.limit, seed=self.seed)

    def writing(self, task: Task) -> dict[str, Any]:
        """How its report is written."""
        return {
            "about": describe_data(task, self.data, limit=self.limit, seed=self.seed),
            "overwrite": self.overwrite,
        }
