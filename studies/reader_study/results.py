"""Results: what came out of a study as tables, on the terminal, in a notebook and in files."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medqdm.io.whole import whole_file
from studies.reader_study.analysis import Pair, Results
from studies.reader_study.statistics import LEAST_PATIENTS, Interval

RESULTS_FILE = "results"
LEAST_FOR_RANKS = 8  # 4 * 2 / 2**8 < 0.05: four scores, two sides, all patients alike
NONE = "-"


@dataclass(frozen=True)
class ResultTable:
    """A table of text.

    Args:
        title: one line.
        columns: their names.
        rows: one text a column.
        notes: how to read it, one sentence each.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table in Markdown, its title as a heading."""
        lines = [f"### {self.title}", ""]
        for row in (self.columns, ("---",) * len(self.columns), *self.rows):
            lines.append(f"| {' | '.join(row)} |")
        lines += ["", *(f"*{note}*" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def tables_of(results: Results) -> list[ResultTable]:
    """All tables of a study's results."""
    found = [_preferences(results), _scores(results), _readers(results)]
    if results.agreements:
        found.insert(2, _agreements(results))
    return found


def write_results(results: Results, folder: str | Path) -> Path:
    """Write ``results.md`` and ``results.json``, in place of earlier ones.

    Args:
        results: what came out.
        folder: of the study.

    Returns:
        The Markdown file; the other has all figures.
    """
    path = Path(folder) / f"{RESULTS_FILE}.md"
    text = [
        f"# Reader study {results.study}",
        "",
        "Research use only. Seed "
        f"{results.seed}, {len(results.readings)} answers of {len(results.readers)} reader(s).",
        "",
        *(table.markdown() for table in tables_of(results)),
    ]
    with whole_file(path, overwrite=True) as draft:
        draft.write_text("\n".join(text), encoding="utf-8")
    with whole_file(path.with_suffix(".json"), overwrite=True) as draft:
        draft.write_text(json.dumps(_plain(asdict(results)), indent=1) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    """Pairs as keys become text, which is all that JSON knows."""
    if isinstance(value, dict):
        return {
            " | ".join(key) if isinstance(key, tuple) else key: _plain(item)
            for key, item in value.items()
        }
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _preferences(results: Results) -> ResultTable:
    rows = tuple(
        (
            _versus(found.pair), found.reader, str(found.wins), str(found.ties), str(found.losses),
            _percent(found.share), _percents(found.over_patients), _percents(found.bootstrap),
            _percents(found.if_independent),
        )
        for found in results.preferences
    )  # fmt: skip
    return ResultTable(
        "Preference",
        ("pair", "reader", "first", "none", "second", "share of first", "95 % over patients",
         "bootstrap", "if independent"),
        rows,
        (
            "Share of the first arm among readings with a preference; repeats are left out.",
            "95 % over patients: Korn and Graubard's interval, for as many readings as are worth "
            "independent ones; the one to report. Bootstrap: patients drawn with all that is "
            f"theirs; a dash with fewer than {LEAST_PATIENTS} or where all agree, too narrow with "
            "few. If independent: Wilson's, too narrow where a patient gives several readings. "
            "None speaks for other readers.",
        ),
    )  # fmt: skip


def _scores(results: Results) -> ResultTable:
    rows = tuple(
        (
            _versus(found.pair), found.score, f"{found.first:.2f}", f"{found.second:.2f}",
            f"{found.difference:+.2f}", _numbers(found.over_patients), str(found.num_patients),
            _p(found.p_patients), _p(found.p_readings),
        )
        for found in results.scores
    )  # fmt: skip
    notes = [
        "Means of scores from 1 to 5, 5 the best. p over patients: Wilcoxon's signed rank on one "
        "mean difference per patient, Holm-corrected over the scores of a pair. p if independent: "
        "the same on all readings, uncorrected; too small as a rule."
    ]
    if any(found.num_patients < LEAST_FOR_RANKS for found in results.scores):
        notes.append(
            f"With fewer than {LEAST_FOR_RANKS} patients, a signed rank of four scores cannot come "
            "below p = 0.05, whatever readers say."
        )
    return ResultTable(
        "Scores",
        ("pair", "score", "first", "second", "difference", "bootstrap over patients", "patients",
         "p over patients", "p if independent"),
        rows, tuple(notes),
    )  # fmt: skip


def _agreements(results: Results) -> ResultTable:
    rows = []
    for found in results.agreements:
        kappas = [f"{one}-{two} {_number(k)}" for (one, two), k in found.kappas.items()]
        rows.append((
            found.item, str(found.units), _percent(found.same), _number(found.alpha),
            _numbers(found.over_patients), ", ".join(kappas),
        ))  # fmt: skip
    return ResultTable(
        "Agreement between readers",
        (
            "item",
            "units",
            "same answer",
            "alpha",
            "bootstrap over patients",
            "kappa of two readers",
        ),
        tuple(rows),
        (
            "alpha: Krippendorff's for ordered categories; kappa: Cohen's with linear weights. 1 "
            "is full agreement, 0 that of chance. Units are pairs for the preference, images in "
            "pairs for the scores. Where nearly all answers are the same, alpha and kappa are low "
            "however often readers agree.",
        ),
    )


def _readers(results: Results) -> ResultTable:
    rows = tuple(
        (
            found.reader, f"{found.done} of {found.planned}", f"{found.same} of {found.repeats}",
            _number(found.kappa), _number(found.score_kappa), _percent(found.left),
            f"{found.seconds[1]:.0f} s ({found.seconds[0]:.0f} to {found.seconds[2]:.0f})",
        )
        for found in results.readers
    )  # fmt: skip
    return ResultTable(
        "Each reader",
        ("reader", "pairs", "same on repeats", "kappa", "kappa of scores",
         "left preferred", "time per pair"),
        rows,
        (
            "Same on repeats: pairs with the same preference both times, sides changed. "
            "Kappas (linear weights) compare both readings. Left preferred should be near "
            "one half. Time: median and quartiles.",
        ),
    )  # fmt: skip


def _versus(pair: Pair) -> str:
    return f"{pair[0]} / {pair[1]}"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f} %"


def _percents(interval: Interval | None) -> str:
    if interval is None:
        return NONE
    low, high = interval
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _numbers(interval: Interval | None) -> str:
    return NONE if interval is None else " to ".join(f"{end:+.2f}" for end in interval)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
