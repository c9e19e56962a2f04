"""Analysis: a study unblinded: preference, scores, agreement and time, with honest intervals."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medqdm.errors import MedQDMError
from medqdm.review.rating import SCORES
from studies.reader_study.answers import SIDES, Answer, read_answers
from studies.reader_study.files import RATINGS_FILE, Key, read_key, read_study
from studies.reader_study.statistics import (
    Interval,
    clustered_share,
    holm,
    kappas,
    means_of_patients,
    ordinal_alpha,
    over_patients,
    same_answers,
    signed_rank,
    weighted_kappa,
    wilson,
)

Pair = tuple[str, str]
PAIRS: tuple[Pair, ...] = (
    ("enhanced", "bicubic"), ("reference", "enhanced"), ("reference", "bicubic"),
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One answer, unblinded.

    Args:
        reader: name of the reader.
        case: name of the case.
        patient: number of the patient.
        pair: the two arms, in the order of ``PAIRS``.
        preference: 1 for the first arm, -1 for the second, 0 for none.
        scores: by arm and score, 1 to 5.
        seconds: that it took.
        chose_left: whether the left image was preferred; None without a preference.
        is_repeat: whether the reader had seen this pair before.
        comment: what the reader wrote.
    """

    reader: str
    case: str
    patient: int
    pair: Pair
    preference: int
    scores: dict[str, dict[str, int]]
    seconds: float
    chose_left: bool | None
    is_repeat: bool
    comment: str

    def difference(self, score: str) -> int:
        """A score of the first arm minus that of the second."""
        first, second = self.pair
        return self.scores[first][score] - self.scores[second][score]


@dataclass(frozen=True)
class Preference:
    """How often one arm was preferred to another, repeats left out.

    Args:
        pair: the arms.
        reader: name, or ``all``.
        wins: readings that preferred the first arm.
        ties: without a preference.
        losses: that preferred the second.
        share: of wins among wins and losses; None without any.
        if_independent: its 95 % interval by Wilson, as if all readings were independent.
        over_patients: its 95 % interval with patients as what is independent, see
            ``clustered_share``; None with fewer than 2.
        bootstrap: the same by drawing patients; None with fewer than 5, or where all readings agree
            and there is nothing to draw.
    """

    pair: Pair
    reader: str
    wins: int
    ties: int
    losses: int
    share: float | None
    if_independent: Interval | None
    over_patients: Interval | None
    bootstrap: Interval | None


@dataclass(frozen=True)
class ScoreDifference:
    """How two arms differ in a score, repeats left out.

    Args:
        pair: the arms.
        score: its name.
        first: mean score of the first arm.
        second: mean score of the second.
        difference: mean of first minus second.
        over_patients: its 95 % interval by a bootstrap over patients; None with fewer than 5.
        num_patients: how many there are.
        p_patients: Wilcoxon's signed rank on one mean difference per patient, Holm-corrected over
            the scores of the pair.
        p_readings: the same on all readings as if they were independent: too small where a patient
            gives several cases or is read by several readers. Not corrected.
    """

    pair: Pair
    score: str
    first: float
    second: float
    difference: float
    over_patients: Interval | None
    num_patients: int
    p_patients: float
    p_readings: float


@dataclass(frozen=True)
class Agreement:
    """How far readers agree, repeats left out.

    Args:
        item: ``preference`` (of pairs) or a score (of images in pairs).
        units: rated by two readers or more.
        same: how often two readers gave the same answer, chance included.
        alpha: Krippendorff's, for ordered categories, of all readers.
        over_patients: its 95 % interval by a bootstrap over patients; None with fewer than 5.
        kappas: Cohen's with linear weights, of every two readers.
    """

    item: str
    units: int
    same: float | None
    alpha: float | None
    over_patients: Interval | None
    kappas: dict[Pair, float | None]


@dataclass(frozen=True)
class Consistency:
    """One reader: agreement with themselves on repeats, sides, and time.

    Args:
        reader: name.
        done: pairs answered, repeats among them.
        planned: pairs in all.
        repeats: pairs answered twice.
        same: of these, with the same preference both times.
        kappa: of the preferences, linear weights.
        score_kappa: of all scores together, linear weights.
        left: share of the preferred images that lay left; far from one half is suspicious.
        seconds: lower quartile, median and upper quartile of the time of a pair.
    """

    reader: str
    done: int
    planned: int
    repeats: int
    same: int
    kappa: float | None
    score_kappa: float | None
    left: float | None
    seconds: tuple[float, float, float]


@dataclass(frozen=True)
class Results:
    """What came out of a study.

    Args:
        study: its name.
        seed: its seed.
        readings: all answers, unblinded, in the order they were saved.
        preferences: of all readers, then of each.
        scores: differences of scores.
        agreements: between readers; empty with one.
        readers: one by one.
    """

    study: str
    seed: int
    readings: tuple[Reading, ...]
    preferences: tuple[Preference, ...]
    scores: tuple[ScoreDifference, ...]
    agreements: tuple[Agreement, ...]
    readers: tuple[Consistency, ...]


def analyse_study(folder: str | Path) -> Results:
    """Unblind a study and sum it up; it need not be finished.

    Repeated pairs count once, as they were read first; the second reading serves the agreement of a
    reader with themselves alone.

    Args:
        folder: of the study, with ``key.json`` in it.

    Raises:
        MedQDMError: no study, no key, no answers, or answers of another study.
    """
    folder = Path(folder)
    study, key = read_study(folder), read_key(folder)
    answers = read_answers(folder / RATINGS_FILE)
    if not answers:
        raise MedQDMError(f"{folder}: a study must have answers, got none; let readers read first")
    readings = _unblind(answers, key)
    first = [reading for reading in readings if not reading.is_repeat]
    names = [reader.name for reader in study.readers]
    planned = {reader.name: len(reader.trials) for reader in study.readers}
    return Results(
        study=study.study,
        seed=study.seed,
        readings=tuple(readings),
        preferences=_preferences(first, names),
        scores=_scores(first),
        agreements=_agreements(first) if len(names) > 1 else (),
        readers=tuple(
            _consistency(name, planned[name], [r for r in readings if r.reader == name])
            for name in names
            if any(r.reader == name for r in readings)
        ),
    )


def _unblind(answers: Sequence[Answer], key: Key) -> list[Reading]:
    seen: set[tuple[str, str, Pair]] = set()
    readings = []
    for line, answer in enumerate(answers, start=2):
        shown = (answer.image_a, answer.image_b)
        if answer.study != key.study or any(
            image not in key.images or key.images[image].case != answer.case for image in shown
        ):
            raise MedQDMError(
                f"{RATINGS_FILE}: line {line} must be of study {key.study}, got images that its "
                "key does not know; put the study's own file there"
            )
        arms = {side: key.images[image].arm for side, image in zip(SIDES, shown, strict=True)}
        pair = next(pair for pair in PAIRS if set(pair) == set(arms.values()))
        chosen = arms.get(answer.preference)
        told = (answer.reader, answer.case, pair)
        readings.append(
            Reading(
                reader=answer.reader,
                case=answer.case,
                patient=key.cases[answer.case].patient,
                pair=pair,
                preference=0 if chosen is None else 1 if chosen == pair[0] else -1,
                scores={
                    arm: {name: answer.score(name, side) for name in SCORES}
                    for side, arm in arms.items()
                },
                seconds=answer.seconds,
                chose_left=None if chosen is None else answer.preference == "a",
                is_repeat=told in seen,
                comment=answer.comment,
            )
        )
        seen.add(told)
    return readings


def _preferences(readings: Sequence[Reading], readers: Sequence[str]) -> tuple[Preference, ...]:
    found = []
    for pair in PAIRS:
        for reader in ("all", *(readers if len(readers) > 1 else ())):
            own = [r for r in readings if r.pair == pair and reader in ("all", r.reader)]
            if own:
                found.append(_preference(pair, reader, own))
    return tuple(found)


def _preference(pair: Pair, reader: str, own: Sequence[Reading]) -> Preference:
    values = np.array([r.preference for r in own])

    def share(index: Any = slice(None)) -> float | None:
        decided = values[index][values[index] != 0]
        return float((decided > 0).mean()) if len(decided) else None

    wins, losses = int((values > 0).sum()), int((values < 0).sum())
    patients = [r.patient for r in own]
    decided = [r for r in own if r.preference]
    return Preference(
        pair=pair,
        reader=reader,
        wins=wins,
        ties=len(values) - wins - losses,
        losses=losses,
        share=share(),
        if_independent=wilson(wins, wins + losses),
        over_patients=clustered_share(
            [r.patient for r in decided], [r.preference > 0 for r in decided]
        ),
        bootstrap=over_patients(patients, share) if wins and losses else None,
    )


def _scores(readings: Sequence[Reading]) -> tuple[ScoreDifference, ...]:
    found: list[ScoreDifference] = []
    for pair in PAIRS:
        own = [r for r in readings if r.pair == pair]
        if not own:
            continue
        patients = [r.patient for r in own]
        differences = {s: np.array([r.difference(s) for r in own], dtype=float) for s in SCORES}
        p_patients = holm([
            signed_rank(means_of_patients(patients, list(d))) for d in differences.values()
        ])  # fmt: skip
        for (score, values), p in zip(differences.items(), p_patients, strict=True):
            first, second = (float(np.mean([r.scores[arm][score] for r in own])) for arm in pair)
            found.append(
                ScoreDifference(
                    pair=pair,
                    score=score,
                    first=first,
                    second=second,
                    difference=float(values.mean()),
                    over_patients=over_patients(patients, _mean_of(values)),
                    num_patients=len(set(patients)),
                    p_patients=p,
                    p_readings=signed_rank(list(values)),
                )
            )
    return tuple(found)


def _mean_of(values: NDArray[np.float64]) -> Callable[[NDArray[np.intp]], float]:
    return lambda index: float(values[index].mean())


def _agreements(readings: Sequence[Reading]) -> tuple[Agreement, ...]:
    items: dict[str, dict[str, dict[Any, int]]] = {
        item: defaultdict(dict) for item in ("preference", *SCORES)
    }
    patient = {r.case: r.patient for r in readings}
    for r in readings:
        items["preference"][r.reader][r.case, r.pair] = r.preference
        for score in SCORES:
            for arm in r.pair:
                items[score][r.reader][r.case, r.pair, arm] = r.scores[arm][score]
    return tuple(_agreement(item, by_reader, patient) for item, by_reader in items.items())


def _agreement(
    item: str, by_reader: dict[str, dict[Any, int]], patient: dict[str, int]
) -> Agreement:
    rated: dict[Any, int] = defaultdict(int)
    for own in by_reader.values():
        for unit in own:
            rated[unit] += 1
    units = [unit for unit, count in rated.items() if count > 1]
    ratings = np.array(
        [[own.get(unit, np.nan) for unit in units] for own in by_reader.values()], dtype=float
    ).reshape(len(by_reader), len(units))
    return Agreement(
        item=item,
        units=len(units),
        same=same_answers(ratings),
        alpha=ordinal_alpha(ratings),
        over_patients=over_patients(
            [patient[unit[0]] for unit in units], lambda index: ordinal_alpha(ratings[:, index])
        ),
        kappas=kappas(by_reader),
    )


def _consistency(name: str, planned: int, own: Sequence[Reading]) -> Consistency:
    first = {(r.case, r.pair): r for r in own if not r.is_repeat}
    twice = [(first[r.case, r.pair], r) for r in own if r.is_repeat]
    scores = [
        (one.scores[arm][score], two.scores[arm][score])
        for one, two in twice
        for arm in one.pair
        for score in SCORES
    ]
    decided = [r.chose_left for r in own if r.chose_left is not None]
    low, middle, high = np.percentile([r.seconds for r in own], [25, 50, 75])
    return Consistency(
        reader=name,
        done=len(own),
        planned=planned,
        repeats=len(twice),
        same=sum(one.preference == two.preference for one, two in twice),
        kappa=weighted_kappa([a.preference for a, _ in twice], [b.preference for _, b in twice]),
        score_kappa=weighted_kappa([a for a, _ in scores], [b for _, b in scores]),
        left=float(np.mean(decided)) if decided else None,
        seconds=(float(low), float(middle), float(high)),
    )
