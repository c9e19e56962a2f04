"""Window: the Hounsfield range that the networks see as [-1, 1]."""

from dataclasses import dataclass
from typing import Any, TypeVar, cast

from medqdm.errors import MedQDMError

Array = TypeVar("Array", bound=Any)  # numpy array or torch tensor: both have clip, +, -, *, /


@dataclass(frozen=True)
class Window:
    """A Hounsfield window.

    Args:
        center_hu: middle of the window, in HU.
        width_hu: whole width of the window, in HU, above 0.

    >>> import numpy as np
    >>> window = Window(center_hu=0, width_hu=2000)
    >>> float(window.normalize(np.float32(500)))
    0.5
    >>> window.low_hu, window.high_hu
    (-1000.0, 1000.0)
    """

    center_hu: float
    width_hu: float

    def __post_init__(self) -> None:
        if not self.width_hu > 0:
            raise MedQDMError(
                f"window: width_hu must be above 0, got {self.width_hu}; give the whole width in HU"
            )

    @property
    def low_hu(self) -> float:
        """Lower edge in HU, seen as -1."""
        return self.center_hu - self.width_hu / 2

    @property
    def high_hu(self) -> float:
        """Upper edge in HU, seen as 1."""
        return self.center_hu + self.width_hu / 2

    @property
    def hu_per_unit(self) -> float:
        """HU in one unit of [-1, 1] data: half of the width."""
        return self.width_hu / 2

    def clip(self, hu: Array) -> Array:
        """HU clipped to the window."""
        return cast("Array", hu.clip(self.low_hu, self.high_hu))

    def normalize(self, hu: Array) -> Array:
        """HU to [-1, 1], clipped."""
        return cast("Array", (self.clip(hu) - self.center_hu) / self.hu_per_unit)

    def denormalize(self, value: Array) -> Array:
        """[-1, 1] to HU (values outside are not clipped)."""
        return cast("Array", value * self.hu_per_unit + self.center_hu)
