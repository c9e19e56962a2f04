"""Words: stored values of a CT slice in the bits that BitsStored names, or in more than these."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medqdm.io.padding import CODE_HU

_OVERLAYS = range(0x6000, 0x6020, 2)
_BIT_POSITION, _OVERLAY_DATA = 0x0102, 0x3000
_NEAR = 1 / 16  # of what BitsStored can hold: neighbours in a slice differ by less on average
_NEAR_AT_MOST = 256
_FEW = 1 / 10  # of a slice; metal and teeth are less
_LARGEST_VALUE = 1 << 15  # of unsigned words; no CT value is as large


class Words(NamedTuple):
    """Stored values of a slice.

    Args:
        values: ``(y, x)`` int32.
        high_bits: what the bits above BitsStored hold: ``values`` (then ``values`` has them),
            ``other`` (left out: an undeclared overlay or junk), or empty: nothing.
    """

    values: NDArray[np.int32]
    high_bits: str


def mask(words: NDArray[np.int32], dataset: Dataset) -> NDArray[np.int32]:
    """Words without the bits above BitsStored, signed where the header says so.

    HighBit is ignored, as pydicom, SimpleITK and dcm2niix do.
    """
    bits = int(dataset.BitsStored)
    stored = words & ((1 << bits) - 1)
    if dataset.PixelRepresentation:
        sign = 1 << (bits - 1)
        stored = (stored ^ sign) - sign
    return stored


def read_words(words: NDArray[np.int32], dataset: Dataset, is_code: NDArray[np.bool_]) -> Words:
    """Decide by the pixels whether the bits above BitsStored belong to the values.

    Overlays and junk leave the values below them alike their neighbours'. Values that need more
    bits are not like them without these bits.

    Args:
        words: ``(y, x)`` as they lie in the file, with sign where the header says so.
        dataset: with BitsStored, PixelRepresentation, RescaleSlope and RescaleIntercept.
        is_code: ``(y, x)``, where padding is written, which may be beyond BitsStored.
    """
    masked = mask(words, dataset)
    is_wide = (masked != words) & ~is_code
    if not is_wide.any() or _has_embedded_overlay(dataset):
        return Words(masked, "")
    kept, whole = _steps(masked, is_wide, is_code), _steps(words, is_wide, is_code)
    is_more: bool = whole < kept
    if dataset.PixelRepresentation:
        is_negative = (masked < 0) & ~is_code
        num_extended = np.count_nonzero(is_negative & ~is_wide)
        is_extended = bool(num_extended > np.count_nonzero(is_negative) / 2)
        if not is_extended and not (words[is_wide] >> int(dataset.BitsStored)).any():
            # negative values whose sign stops at BitsStored, or positive ones that need that bit
            slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
            hu = float(np.median(masked[is_wide])) * slope + intercept
            is_more = is_more or hu < CODE_HU
            return Words(words, "values") if is_more else Words(masked, "")
        is_more = is_more or is_extended
    elif np.median(words[is_wide]) >= _LARGEST_VALUE:
        is_more = False
    elif np.count_nonzero(is_wide) < is_wide.size * _FEW:
        near = min(_NEAR_AT_MOST, (1 << int(dataset.BitsStored)) * _NEAR)
        is_more = is_more or kept > near
    return Words(words, "values") if is_more else Words(masked, "other")


def _has_embedded_overlay(dataset: Dataset) -> bool:
    """Whether the header says that an overlay lies in unused bits of the words."""
    for group in _OVERLAYS:
        element = dataset.get((group, _BIT_POSITION))
        position = getattr(element, "value", 0)
        if isinstance(position, int) and position >= int(dataset.BitsStored):
            return (group, _OVERLAY_DATA) not in dataset
    return False


def _steps(
    values: NDArray[np.int32], is_wide: NDArray[np.bool_], is_code: NDArray[np.bool_]
) -> float:
    """Median difference of neighbours of which one is wide; 0 if there are none."""
    steps = []
    for turned in (False, True):
        v, w, c = (a.T if turned else a for a in (values, is_wide, is_code))
        at = (w[1:] != w[:-1]) & ~c[1:] & ~c[:-1]
        steps.append(np.abs(v[1:][at] - v[:-1][at]))
    every = np.concatenate(steps)
    return float(np.median(every)) if every.size else 0.0
