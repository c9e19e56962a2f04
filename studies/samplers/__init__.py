"""Samplers: settings of the sampler side by side, their cost and their controls."""

from studies.samplers.blocks import Block, open_blocks
from studies.samplers.rows import Row, default_rows, parse_rows
from studies.samplers.samplers import Comparison, Measured, Trial, compare
from studies.samplers.samplers_report import write_samplers
from studies.samplers.study import compare_samplers

__all__ = [
    "Block",
    "Comparison",
    "Measured",
    "Row",
    "Trial",
    "compare",
    "compare_samplers",
    "default_rows",
    "open_blocks",
    "parse_rows",
    "write_samplers",
]
