"""Statistics: shares, signed ranks, agreement, and intervals over patients."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
LEAST_PATIENTS = 5  # below, resampling sees too few different patients to be believed
RESAMPLES = 2000
_UPPER = (1 + CONFIDENCE) / 2
Interval = tuple[float, float]
Values = NDArray[np.float64]


def wilson(successes: int, trials: int) -> Interval | None:
    """The 95 % interval of a share by Wilson's score, as if trials were independent.

    Args:
        successes: at most ``trials``.
        trials: None is given if there are none.

    >>> low, high = wilson(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    if trials == 0:
        return None
    found = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def clustered_share(patients: Sequence[Any], successes: Sequence[bool]) -> Interval | None:
    """The 95 % interval of a share whose trials come several from each patient.

    Clopper and Pearson's interval for as many independent trials as would be worth the same, after
    Korn and Graubard (1998): their number follows from how far patients differ, and is cut for
    there being few patients. Where all trials agree, each patient counts for one.

    Args:
        patients: whose each trial is.
        successes: of each trial.

    Returns:
        None with fewer than two patients.
    """
    labels, won = np.asarray(patients), np.asarray(successes, dtype=float)
    own = np.unique(labels)
    if len(own) < 2:
        return None
    share, trials = float(won.mean()), len(won)
    beyond = np.array([(won[labels == patient] - share).sum() for patient in own])
    variance = len(own) / (len(own) - 1) * float((beyond**2).sum()) / trials**2
    if share in (0.0, 1.0):
        worth = float(len(own))
    else:
        cut = stats.t.ppf(_UPPER, trials - 1) / stats.t.ppf(_UPPER, len(own) - 1)
        alone = share * (1 - share) / (trials - 1)  # the variance of independent trials
        worth = min(trials, trials * alone / variance) if variance else trials
        worth *= float(cut) ** 2
    hits = share * worth
    low = 0.0 if hits == 0 else float(stats.beta.ppf(1 - _UPPER, hits, worth - hits + 1))
    high = 1.0 if hits == worth else float(stats.beta.ppf(_UPPER, hits + 1, worth - hits))
    return low, high


def signed_rank(differences: Sequence[float]) -> float:
    """The p-value of Wilcoxon's signed-rank test, two-sided; zeros are ranked (Pratt 1959).

    Args:
        differences: independent of each other, at least one.
    """
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests at once, after Holm 1979: the chance of any false alarm is kept.

    >>> [round(p, 4) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = highest
    return adjusted


def weighted_kappa(one: Sequence[int], other: Sequence[int]) -> float | None:
    """Cohen's kappa with linear weights (Cohen 1968): agreement of two beyond that of chance.

    Args:
        one: ordered categories as integers, equally far apart.
        other: the same things, by the other reader or at the other time.

    Returns:
        1 for full agreement, 0 for that of chance; None if both only ever gave one same category.
    """
    a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if len(a) == 0:
        return None
    expected = float(np.abs(a[:, None] - b[None]).mean())
    return None if expected == 0 else 1 - float(np.abs(a - b).mean()) / expected


def ordinal_alpha(ratings: Values) -> float | None:
    """Krippendorff's alpha for ordered categories: agreement of any number of readers.

    After Krippendorff, *Computing Krippendorff's Alpha-Reliability* (2011): one minus observed over
    expected disagreement, both from the matrix of coincidences.

    Args:
        ratings: ``(readers, units)``, NaN where a reader gave none.

    Returns:
        1 for full agreement, 0 for that of chance; None if fewer than two readers share a unit or
        all gave one same category.
    """
    categories = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[None] == categories[:, None, None]).sum(axis=1).astype(float)  # (c, units)
    given = counts.sum(axis=0)
    counts, given = counts[:, given > 1], given[given > 1]
    coincidences = (counts / (given - 1)) @ counts.T
    coincidences -= np.diag((counts / (given - 1)).sum(axis=1))
    totals = coincidences.sum(axis=1)
    between = np.cumsum(totals) - totals / 2  # up to the middle of each category
    distance = (between[:, None] - between[None]) ** 2
    expected = float((distance * np.outer(totals, totals)).sum())
    if expected == 0:
        return None
    return 1 - (totals.sum() - 1) * float((distance * coincidences).sum()) / expected


def over_patients(
    patients: Sequence[Any], statistic: Callable[[NDArray[np.intp]], float | None], *, seed: int = 0
) -> Interval | None:
    """The 95 % interval of a figure: patients are drawn again and again, with all that is theirs.

    Readings of one patient are not independent; patients are. Readers are taken as they are: the
    interval says nothing about others.

    Args:
        patients: whose each reading is.
        statistic: indices of readings (some several times) -> the figure; None counts for nothing.
        seed: of the draws.

    Returns:
        Percentiles; None with fewer than 5 patients.
    """
    labels = np.asarray(patients)
    own = [np.flatnonzero(labels == patient) for patient in np.unique(labels)]
    if len(own) < LEAST_PATIENTS:
        return None
    random = np.random.default_rng(seed)
    drawn = []
    for chosen in random.integers(len(own), size=(RESAMPLES, len(own))):
        value = statistic(np.concatenate([own[k] for k in chosen]))
        if value is not None:
            drawn.append(value)
    if not drawn:
        return None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)


def means_of_patients(patients: Sequence[Any], values: Sequence[float]) -> list[float]:
    """The mean of each patient's values, in the order of the patients."""
    labels, numbers = np.asarray(patients), np.asarray(values, dtype=float)
    return [float(numbers[labels == patient].mean()) for patient in np.unique(labels)]


def same_answers(ratings: Values) -> float | None:
    """How often two readers gave the same answer: the share of agreement, chance included.

    Args:
        ratings: ``(readers, units)``, NaN where a reader gave none.
    """
    pairs = [one == other for one, other in combinations(ratings, 2)]
    both = [~np.isnan(one) & ~np.isnan(other) for one, other in combinations(ratings, 2)]
    compared = int(np.sum(both))
    return float(np.sum(pairs)) / compared if compared else None


def kappas(by_reader: dict[str, dict[Any, int]]) -> dict[tuple[str, str], float | None]:
    """Weighted kappa of every two readers, on what both have rated."""
    found = {}
    for one, other in combinations(by_reader, 2):
        shared = [unit for unit in by_reader[one] if unit in by_reader[other]]
        found[one, other] = weighted_kappa(
            [by_reader[one][unit] for unit in shared], [by_reader[other][unit] for unit in shared]
        )
    return found
