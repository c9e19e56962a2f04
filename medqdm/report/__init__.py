"""Report: what an enhancement did, as one HTML page to read and to keep."""

from medqdm.report.page import ReportContent, chosen_slices, render_report
from medqdm.report.panels import SlicePair
from medqdm.report.tally import TALLY, tally_slice

__all__ = [
    "TALLY",
    "ReportContent",
    "SlicePair",
    "chosen_slices",
    "render_report",
    "tally_slice",
]
