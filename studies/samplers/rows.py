"""Rows: named sampler settings to compare, the ready-made ones and those that a user spells out."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medqdm.config import GroupsSection
from medqdm.errors import MedQDMError

DEFAULT = "default"
STUDENT_STEPS = (1, 2, 4)
_UNIFORM_STEPS = (8, 5, 4, 2, 1)
_TSS_STEPS = (8, 5)
_GAMMAS = (1, 0)
_WEIGHTS = "weights="
BICUBIC, REFERENCE = "bicubic", "reference"  # rows of every table, the second the truth itself


@dataclass(frozen=True)
class Row:
    """A named setting of the sampler: one row of the table.

    Args:
        name: its name, without commas and colons.
        family: rows of one family differ in steps alone; one colour in the plot.
        settings: ``key=value`` changes to the task that the weights carry.
        weights: other weights than the table's; None: the same.
    """

    name: str
    family: str
    settings: tuple[str, ...] = ()
    weights: Path | None = None


def reference_row(num_steps: int) -> Row:
    """Ancestral sampling with all steps: what the others are compared with."""
    return uniform_row(num_steps, 1, name=f"ancestral-{num_steps}")


def uniform_row(steps: int, gamma: float, *, name: str | None = None) -> Row:
    """All regions at each of some steps.

    Args:
        steps: how many.
        gamma: 1 ancestral ... 0 deterministic; one step alone has no use for it.
        name: instead of ``uniform-STEPS-gGAMMA``.
    """
    family = f"uniform g{gamma:g}"
    name = name or ("uniform-1" if steps == 1 else f"uniform-{steps}-g{gamma:g}")
    return Row(name, family, _sampler("uniform", steps, gamma))


def default_rows(num_steps: int, students: Sequence[Path] = ()) -> list[Row]:
    """The ready-made rows for a schedule.

    Args:
        num_steps: T.
        students: weights of other models, each to run at 1, 2 and 4 steps.
    """
    rows = [reference_row(num_steps), Row("enhance", "enhance")]  # the second as the weights carry
    for gamma in _GAMMAS:
        counts = [n for n in _UNIFORM_STEPS if n < num_steps and (n > 1 or gamma == 1)]
        rows += [uniform_row(n, gamma) for n in counts]
    for gamma in _GAMMAS:
        for n in _TSS_STEPS:
            if n < num_steps:
                settings = _sampler("tss", n, gamma)
                rows.append(Row(f"tss-{n}-g{gamma}", f"tss g{gamma}", settings))
    has_groups = GroupsSection().steps[0][0] < num_steps
    for name in ("gain", "groups") if has_groups else ("gain",):
        for gamma in _GAMMAS:
            row = f"{name}-g{gamma}"
            rows.append(Row(row, f"{name} g{gamma}", _sampler(name, num_steps, gamma)))
    for k, weights in enumerate(students, start=1):
        family = "student" if len(students) == 1 else f"student{k}"
        rows += [
            Row(f"{family}-{n}", family, (f"diffusion.sampling_steps={n}",), weights)
            for n in STUDENT_STEPS
        ]
    return rows


def _sampler(name: str, steps: int, gamma: float) -> tuple[str, ...]:
    return (
        f"diffusion.sampler.name={name}",
        f"diffusion.sampling_steps={steps}",
        f"diffusion.gamma={gamma:g}",
    )


def parse_rows(texts: Sequence[str], num_steps: int, students: Sequence[Path] = ()) -> list[Row]:
    """The rows that a user asks for, the reference first.

    Args:
        texts: each ``default``; or names of ready-made rows, families or kinds (``uniform``),
            separated by commas; or ``NAME: KEY=VALUE KEY=VALUE``, a row of its own, in which
            ``weights=FILE`` stands for other weights.
        num_steps: T.
        students: as for ``default_rows``.

    Raises:
        MedQDMError: no such row, a setting that is none, or two different rows of one name.

    >>> [row.name for row in parse_rows(["uniform-4-g0", "iscs: diffusion.gamma=1"], 15)]
    ['ancestral-15', 'uniform-4-g0', 'iscs']
    """
    ready = default_rows(num_steps, students)
    chosen: dict[str, Row] = {ready[0].name: ready[0]}
    for text in texts:
        rows = [_own_row(text)] if ":" in text else _pick(text, ready)
        for row in rows:
            if chosen.setdefault(row.name, row) != row:
                raise MedQDMError(
                    f"--samplers: names must differ, got '{row.name}' for two settings; rename one"
                )
    return list(chosen.values())


def _pick(text: str, ready: Sequence[Row]) -> list[Row]:
    found: list[Row] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        rows = [row for row in ready if name in _names(row)]
        if not rows:
            known = list(dict.fromkeys(n for row in ready for n in _names(row)))
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise MedQDMError(
                f"--samplers: must be {DEFAULT}, 'NAME: KEY=VALUE ...' or names of "
                f"{', '.join(row.name for row in ready)}, got '{name}'{hint}"
            )
        found += rows
    return found


def _names(row: Row) -> tuple[str, str, str, str]:
    """What picks a row: its name, its family with and without gamma, and ``default``."""
    return row.name, row.family, row.family.split()[0], DEFAULT


def _own_row(text: str) -> Row:
    name, _, rest = text.partition(":")
    name, words = name.strip(), rest.split()
    is_taken = name in {DEFAULT, BICUBIC, REFERENCE}
    if not name or is_taken or "," in name or not all("=" in word for word in words):
        raise MedQDMError(
            f"--samplers: must be 'NAME: KEY=VALUE KEY=VALUE ...' without blanks in a value, got "
            f"{text!r}; for example 'iscs: diffusion.gamma=1 diffusion.sampling_steps=4'"
        )
    weights = [Path(w.removeprefix(_WEIGHTS)) for w in words if w.startswith(_WEIGHTS)]
    settings = tuple(word for word in words if not word.startswith(_WEIGHTS))
    return Row(name, name, settings, weights[-1] if weights else None)
