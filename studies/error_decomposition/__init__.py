"""Error decomposition: what each stage loses, with the reference in its place."""

from studies.error_decomposition.budget import measure_budget
from studies.error_decomposition.study import study_budget

__all__ = [
    "measure_budget",
    "study_budget",
]
