"""Plausibility: whether values are Hounsfield units, by where their histogram has its peaks.

Air lies near -1000 HU and soft tissue near 0, whatever else is in the image. Where the air is as it
should be, or no other tissue can be made out (a crop of bone), nothing is said.
"""

import numpy as np
from numpy.typing import NDArray

from medqdm.errors import MedQDMError

OVERRIDE = "--any-values"  # the option that lifts the refusal
_BIN = 10  # HU
_LOW, _HIGH = -5000, 70_000  # HU
_LARGEST_LABEL, _MOST_LABELS = 255, 128
_ENOUGH = 3000  # voxels
_CONSTANT = 0.6  # of the neighbours within labels are alike

_LOWEST, _HIGHEST = -1150, 2000  # HU; hardly anything lies beyond but noise and metal
_AIR = (-1100, -900)  # HU
_FAT = -50  # HU; without anything below, there is neither air nor fat
_NONE, _FEW, _SOME, _MOST = 0.001, 0.03, 0.1, 0.8  # shares of all values
_SOFT_WIDTH, _AIR_WIDTH = 150, 100  # HU on each side of a peak
_FLANK = 3  # times as wide; what lies there beside the peak is compared with it
_SOFT_STEEP, _AIR_STEEP = 1.5, 4  # times as much in a peak as in its flanks
_SIGNED_WIDTH = {16: 1200, 12: 500}  # words of so many bits may lie so far below air
_SHIFTED = range(900, 1201)  # HU; soft tissue without an intercept of -1000 or -1024
_RAISED_TISSUE = range(450, _HIGHEST, 30)  # HU; above contrast medium
_SHRUNK_AIR = range(-620, -250, 20)  # HU; air at half the slope or so, where no tissue has a peak


class Tally:
    """Measured values of a volume, counted slice after slice.

    Args:
        enough: so many voxels are needed for a verdict.
    """

    def __init__(self, enough: int = _ENOUGH) -> None:
        self._enough = enough
        self._counts = np.zeros((_HIGH - _LOW) // _BIN, dtype=np.int64)
        self._labels = np.zeros(_LARGEST_LABEL + 1, dtype=np.int64)
        self._lowest, self._highest = np.inf, -np.inf
        self._alike = self._pairs = 0
        self._may_be_labels = True

    def add(self, hu: NDArray[np.float32], padding: NDArray[np.bool_] | None = None) -> None:
        """Count a slice.

        Args:
            hu: ``(y, x)``, finite.
            padding: ``(y, x)``, what was not measured and is left out; None: nothing.
        """
        measured = hu.ravel() if padding is None or not padding.any() else hu[~padding]
        if not measured.size:
            return
        low, high = float(measured.min()), float(measured.max())
        self._lowest, self._highest = min(self._lowest, low), max(self._highest, high)
        bins = ((measured - _LOW) / _BIN).clip(0, len(self._counts) - 1).astype(np.int32)
        self._counts += np.bincount(bins, minlength=len(self._counts))
        if self._may_be_labels and low >= 0 and high <= _LARGEST_LABEL:
            self._add_labels(hu, measured)
        else:
            self._may_be_labels = False

    def _add_labels(self, hu: NDArray[np.float32], measured: NDArray[np.float32]) -> None:
        whole = measured.astype(np.uint8)
        self._may_be_labels = bool((whole == measured).all())
        self._labels += np.bincount(whole, minlength=len(self._labels))
        left, right = hu[:, :-1], hu[:, 1:]
        inside = (left > 0) | (right > 0)
        self._pairs += int(np.count_nonzero(inside))
        self._alike += int(np.count_nonzero((left == right) & inside))

    def check(self, *, where: str, any_values: bool = False) -> None:
        """Refuse what cannot be CT: normalised values and labels.

        Args:
            where: what the message calls the volume.
            any_values: refuse nothing.

        Raises:
            MedQDMError: the values cannot be Hounsfield units.
        """
        found = self._find_other_data()
        if found and not any_values:
            raise MedQDMError(
                f"{where}: values must be Hounsfield units, got {found}; give the CT itself "
                f"({OVERRIDE} takes it as it is)"
            )

    def warnings(self) -> tuple[str, ...]:
        """One sentence with the likely cause, if the values do not look like HU; or nothing."""
        found = self._find_other_data() or self._find_fault()
        return (f"values are probably not HU: {found}",) if found else ()

    def _tells(self) -> bool:
        return self._lowest < self._highest and bool(self._counts.sum() >= self._enough)

    def _find_other_data(self) -> str:
        if not self._tells():
            return ""
        num_labels = int(np.count_nonzero(self._labels))
        is_flat = self._alike >= _CONSTANT * self._pairs
        if self._may_be_labels and self._lowest == 0 and num_labels <= _MOST_LABELS and is_flat:
            return f"a label map of {num_labels} values"
        if self._lowest >= -1 and self._highest <= 1:
            return f"normalised values of {self._lowest:g} to {self._highest:g}"
        return ""

    def _find_fault(self) -> str:
        if not self._tells():
            return ""
        far = self._find_far_values()
        if far or self._share(*_AIR) > _FEW:
            return far
        if self._share(_LOW, _FAT) < _NONE:
            return self._find_raised_tissue()
        place = self._find_peak(_SHRUNK_AIR, _AIR_WIDTH, _AIR_STEEP)
        if place is not None:
            return f"air seems to be near {place} instead of -1000; their slope is another one"
        return ""

    def _find_far_values(self) -> str:
        for bits in (16, 12):
            air = 2**bits - 1000
            if self._share(air - _SIGNED_WIDTH[bits], 2**bits) > _SOME:
                return (
                    f"many lie near {air}, like signed words that were read as unsigned ones "
                    "(PixelRepresentation)"
                )
        if self._share(_LOW, _LOWEST) > _SOME:
            return f"many lie below {_LOWEST}, air is near -1000; they are shifted or uncalibrated"
        if self._share(_HIGHEST, _HIGH) > _SOME:
            return f"many lie above {_HIGHEST}; they are shifted or uncalibrated"
        return ""

    def _find_raised_tissue(self) -> str:
        """Soft tissue far above 0 with air below it, or values that end at their lowest."""
        place = self._find_peak(_RAISED_TISSUE, _SOFT_WIDTH, _SOFT_STEEP)
        if place is not None and self._share(_LOW, place - _FLANK * _SOFT_WIDTH) < _SOME:
            place = None  # nothing that could be air
        if place in _SHIFTED or self._share(_SHIFTED.start, _SHIFTED.stop) > _MOST:
            return (
                "soft tissue seems to be near 1000 instead of 0; they are shifted by 1000 or 1024 "
                "(RescaleIntercept)"
            )
        if place is not None:
            return f"soft tissue seems to be near {place} instead of 0; they are not calibrated"
        is_cut = self._share(self._lowest, self._lowest + _BIN) > 2 * _SOME
        if 0 <= self._lowest < _SOFT_WIDTH and is_cut:
            return f"they end at {self._lowest:g}, air is near -1000; they are shifted or cut off"
        return ""

    def _find_peak(self, places: range, width: int, steep: float) -> int | None:
        """Centre in HU of the largest peak; None if there is none."""
        found = []
        for centre in places:
            peak = self._share(centre - width, centre + width)
            core = self._share(centre - width // 2, centre + width // 2)
            flanks = self._share(centre - _FLANK * width, centre + _FLANK * width) - peak
            if peak > _SOME and peak > steep * flanks and core > peak / 2:
                found.append((peak, centre))
        return max(found)[1] if found else None

    def _share(self, low: float, high: float) -> float:
        """Share of the values from ``low`` to ``high``."""
        a, b = (int((np.clip(v, _LOW, _HIGH) - _LOW) // _BIN) for v in (low, high))
        return float(self._counts[a:b].sum() / self._counts.sum())
