"""From a run's folder to tables, plots, report.md and report.html; `python -m fedmap report` does it again, `compare` compares runs."""

from fedmap.report.folder import print_comparison, print_report, write_report

__all__ = ["print_comparison", "print_report", "write_report"]
