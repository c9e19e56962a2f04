"""Tally: the figures of a slice that a report adds up; no slice is read again for them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medqdm.metrics import TISSUES, lr_difference_hu

Image = NDArray[np.float32]

LOWEST_HU, BIN_HU, NUM_BINS = -1100, 10, 420  # what is beyond falls into the last bins
NUM_DEVIATIONS = 256  # bins of 1 HU; the last one holds what is beyond
_SMOOTH_PX = 3

TALLY = np.dtype([
    ("before", np.int64, (NUM_BINS,)),  # input pixels by HU
    ("after", np.int64, (NUM_BINS,)),  # output pixels by HU
    ("tissue", np.float64, (len(TISSUES), 3)),  # pixels, sum of shifts, sum of their squares in HU
    ("lr_square_sum", np.float64),  # of output minus input on the input's pixels, in HU^2
    ("lr_pixels", np.int64),
    ("share_refined", np.float64),
    ("deviation", np.int64, (2, NUM_DEVIATIONS)),  # output pixels: outside, inside refined cells
])  # fmt: skip


def tally_slice(
    lr_hu: Image,
    hr_hu: Image,
    refined: NDArray[np.bool_],
    deviation_hu: Image | None = None,
) -> NDArray[Any]:
    """The figures of a slice.

    A pixel's tissue is told by the median of 3 x 3 input pixels around it: among pixels picked by
    their own noisy value, whatever draws less noise would seem to shift them.

    Args:
        lr_hu: ``(y, x)`` input in HU.
        hr_hu: ``(y * s, x * s)`` output in HU.
        refined: ``(rows, columns)`` cells of 2 x 2 input pixels.
        deviation_hu: ``(y * s, x * s)`` standard deviation over draws in HU, if there is one.

    Returns:
        A single ``TALLY``, shape ``()``.
    """
    found = np.zeros((), dtype=TALLY)
    found["before"], found["after"] = _count(lr_hu), _count(hr_hu)
    shift = lr_difference_hu(hr_hu, lr_hu)
    found["lr_square_sum"], found["lr_pixels"] = (shift**2).sum(), shift.size
    smooth = ndimage.median_filter(lr_hu, _SMOOTH_PX, mode="nearest")
    for row, (low, high) in zip(found["tissue"], TISSUES.values(), strict=True):
        inside = shift[(smooth >= low) & (smooth < high)]
        row[:] = inside.size, inside.sum(), (inside**2).sum()
    found["share_refined"] = refined.mean()
    if deviation_hu is not None:
        cell = 2 * (hr_hu.shape[0] // lr_hu.shape[0])
        inside = refined.repeat(cell, axis=0).repeat(cell, axis=1)
        inside = inside[: hr_hu.shape[0], : hr_hu.shape[1]]
        for row, where in zip(found["deviation"], (~inside, inside), strict=True):
            bins = deviation_hu[where].astype(np.int64).clip(0, NUM_DEVIATIONS - 1)
            row[:] = np.bincount(bins, minlength=NUM_DEVIATIONS)
    return found


def bin_centres_hu() -> NDArray[np.float64]:
    """The HU in the middle of each bin of ``before`` and ``after``."""
    return LOWEST_HU + BIN_HU * (np.arange(NUM_BINS, dtype=np.float64) + 0.5)


def quantile_hu(counts: NDArray[np.int64], share: float) -> float:
    """The deviation in HU that a share of the pixels stays below, from bins of 1 HU; NaN of none.

    Args:
        counts: ``(NUM_DEVIATIONS,)`` pixels.
        share: 0 to 1.

    >>> counts = np.zeros(NUM_DEVIATIONS, np.int64)
    >>> counts[10] = 4
    >>> quantile_hu(counts, 0.5)
    10.5
    """
    total = counts.sum()
    if total == 0:
        return float("nan")
    below = np.concatenate([[0], np.cumsum(counts)]) / total
    place = int(np.searchsorted(below, share, side="left"))
    first = max(0, place - 1)
    step = below[first + 1] - below[first]
    return float(first + (share - below[first]) / step) if step else float(first)


def _count(hu: Image) -> NDArray[np.int64]:
    bins = np.floor((hu - LOWEST_HU) / BIN_HU).clip(0, NUM_BINS - 1).astype(np.int64)
    return np.bincount(bins.ravel(), minlength=NUM_BINS)
