"""Baselines: other networks trained on the same data within the same time, to compare with."""

from studies.baselines.training import rival_task, train_rival
from studies.baselines.weights import open_any

__all__ = ["open_any", "rival_task", "train_rival"]
