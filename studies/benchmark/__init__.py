"""Benchmark: where the time goes on this machine, and what each part of the engine saves."""

from studies.benchmark.measure import multiply_adds
from studies.benchmark.report import summary, tables, write_json, write_report
from studies.benchmark.run import Benchmark, Measured, run_benchmark
from studies.benchmark.subject import Subject, open_subject, phantom

__all__ = [
    "Benchmark",
    "Measured",
    "Subject",
    "multiply_adds",
    "open_subject",
    "phantom",
    "run_benchmark",
    "summary",
    "tables",
    "write_json",
    "write_report",
]
