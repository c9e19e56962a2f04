"""Benchmark: where the time goes on this machine, and what each part of the engine saves."""

from medqdm.benchmark.measure import Line, fit_line, multiply_adds
from medqdm.benchmark.report import summary, tables, write_json, write_report
from medqdm.benchmark.run import Benchmark, Measured, run_benchmark
from medqdm.benchmark.subject import Subject, open_subject, phantom

__all__ = [
    "Benchmark",
    "Line",
    "Measured",
    "Subject",
    "fit_line",
    "multiply_adds",
    "open_subject",
    "phantom",
    "run_benchmark",
    "summary",
    "tables",
    "write_json",
    "write_report",
]
