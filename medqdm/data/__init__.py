"""Data: from a folder of volumes to HR and LR slices, for training and for fixed test sets."""

from medqdm.data.module import SliceDataModule
from medqdm.data.prepared import (
    Manifest,
    Pair,
    is_prepared,
    iterate_pairs,
    load_prepared,
    prepare,
    read_manifest,
)
from medqdm.data.samples import evaluation_transforms, train_transforms
from medqdm.data.slices import Patient, find_patients, load_slices, split_patients

__all__ = [
    "Manifest",
    "Pair",
    "Patient",
    "SliceDataModule",
    "evaluation_transforms",
    "find_patients",
    "is_prepared",
    "iterate_pairs",
    "load_prepared",
    "load_slices",
    "prepare",
    "read_manifest",
    "split_patients",
    "train_transforms",
]
