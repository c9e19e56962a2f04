"""Plan: which slices are read, in which order and on which side; all of it follows from a seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np

from medqdm.errors import MedQDMError

ARMS = ("bicubic", "enhanced", "reference")
_CASES, _IMAGES, _ORDER = range(3)  # what a stream of random numbers is for
_ORDERS_TRIED = 50


@dataclass(frozen=True)
class Pick:
    """A case: neighbouring slices of one output.

    Args:
        output: its place among the outputs, from 0.
        slices: indices from 0.
    """

    output: int
    slices: range


@dataclass(frozen=True)
class Showing:
    """Two arms of a case, side by side.

    Args:
        case: its name.
        a: arm on the left.
        b: arm on the right.
    """

    case: str
    a: str
    b: str

    def swapped(self) -> "Showing":
        """The same with the sides changed."""
        return replace(self, a=self.b, b=self.a)


def pick_cases(num_slices: Sequence[int], cases: int, stack: int, *, seed: int) -> list[Pick]:
    """Stacks of slices, spread over the outputs and, in each, over its length.

    An output's slices are cut into as many equal parts as it gives cases; one stack is drawn from
    each part, so that stacks never overlap. A stack that would not fit is shorter.

    Args:
        num_slices: of each output.
        cases: how many stacks, at least one of each output.
        stack: slices of a stack.
        seed: of the draw.

    Raises:
        MedQDMError: fewer cases than outputs, or more than slices.

    >>> [pick.slices for pick in pick_cases([12], 3, 2, seed=0)]
    [range(2, 4), range(5, 7), range(9, 11)]
    """
    if not len(num_slices) <= cases <= sum(num_slices):
        raise MedQDMError(
            f"--cases: must be {len(num_slices)} (one of each output) to {sum(num_slices)} (all "
            f"slices), got {cases}; choose a number in between"
        )
    random = np.random.default_rng([seed, _CASES])
    counts = [0] * len(num_slices)
    while sum(counts) < cases:
        room = [k for k, count in enumerate(counts) if count < num_slices[k]]
        for k in random.permutation(room)[: cases - sum(counts)]:
            counts[k] += 1
    picks = []
    for output, (length, count) in enumerate(zip(num_slices, counts, strict=True)):
        edges = np.linspace(0, length, count + 1).astype(int)
        for low, high in pairwise(edges.tolist()):
            size = min(stack, high - low)
            start = int(random.integers(low, high - size + 1))
            picks.append(Pick(output, range(start, start + size)))
    return picks


def name_images(count: int, *, seed: int) -> list[str]:
    """Names that say nothing, each of twelve hexadecimal digits, no two alike."""
    random = np.random.default_rng([seed, _IMAGES])
    names: dict[str, None] = {}
    while len(names) < count:
        names[random.bytes(6).hex()] = None
    return list(names)


def order_showings(
    arms: Mapping[str, Sequence[str]], *, reader: int, repeat: float, seed: int
) -> list[Showing]:
    """What one reader sees: every pair of arms of every case, and a share of them twice.

    The order is random, and different for each reader. Of each pair of arms, the one lies left as
    often as the other (to one, which falls to neighbouring readers in turn). Repeats come from the
    first half and are shown half a reading later, with the sides changed: who always takes the
    left one does not look consistent.

    Args:
        arms: of each case, at least two.
        reader: its place among the readers, from 0.
        repeat: share of showings that come twice, 0 to 0.5.
        seed: of the study.
    """
    random = np.random.default_rng([seed, _ORDER, reader])
    showings: list[Showing] = []
    for turn, (one, other) in enumerate(combinations(ARMS, 2)):
        cases = [case for case, has in arms.items() if one in has and other in has]
        is_left = (np.arange(len(cases)) + reader + turn) % 2 == 0
        for case, straight in zip(cases, random.permutation(is_left), strict=True):
            shown = Showing(case, one, other)
            showings.append(shown if straight else shown.swapped())
    orders = [random.permutation(len(showings)).tolist() for _ in range(_ORDERS_TRIED)]
    best = min(orders, key=lambda order: _num_alike([showings[k] for k in order]))
    return _with_repeats([showings[k] for k in best], repeat, random)


def _num_alike(showings: Sequence[Showing]) -> int:
    """How often a case follows itself, where a reader would remember it."""
    return sum(one.case == other.case for one, other in pairwise(showings))


def _with_repeats(
    showings: list[Showing], share: float, random: np.random.Generator
) -> list[Showing]:
    half = len(showings) // 2
    count = min(round(share * len(showings)), half)
    chosen = set(random.choice(half, count, replace=False).tolist()) if count else set()
    told = []
    for place, showing in enumerate(showings):
        told.append(showing)
        if place - half in chosen:
            told.append(showings[place - half].swapped())
    return told
