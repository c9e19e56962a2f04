"""Low-contrast detectability: discs put into slices, and whether they come back."""

from studies.detectability.discs import Disc
from studies.detectability.lesions import Lesions, measure_lesions, open_cases
from studies.detectability.study import study_lesions

__all__ = [
    "Disc",
    "Lesions",
    "measure_lesions",
    "open_cases",
    "study_lesions",
]
