"""Intervals: a mean over patients and how sure it is; slices of one patient are not independent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
MIN_BOOTSTRAP = 20  # below, resampling's are too narrow (of 6 patients 88 % hold the mean)
RESAMPLES = 10_000
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """A mean over patients with its 95 % confidence interval.

    Args:
        mean: over the patients.
        low: lower end; None where there is no interval.
        high: upper end; None where there is no interval.
        kind: ``bootstrap`` (percentiles, 20 patients or more), ``t`` (Student, fewer) or ``none``
            (one patient, or an infinite value).
        num_patients: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    kind: Literal["bootstrap", "t", "none"]
    num_patients: int


def interval(values: Sequence[float]) -> Interval:
    """The mean of one value a patient, with its interval; the same at every call.

    Args:
        values: one a patient, at least one.

    >>> interval([1.0, 3.0]).kind, interval([2.0]).low
    ('t', None)
    """
    count = len(values)
    mean = sum(values) / count
    if count == 1 or not np.isfinite(values).all():
        return Interval(mean, None, None, "none", count)
    if count < MIN_BOOTSTRAP:
        error = float(np.std(values, ddof=1)) / count**0.5
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
        return Interval(mean, mean - half, mean + half, "t", count)
    drawn = np.random.default_rng(_SEED).choice(np.asarray(values), (RESAMPLES, count))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn.mean(axis=1), [tail, 100 - tail])
    return Interval(mean, float(low), float(high), "bootstrap", count)
