"""From a run's folder to tables, plots and report.md; `python -m fedmap.report FOLDER [FOLDER ...]` does it again or compares."""

from fedmap.report.folder import print_comparison, print_report, write_report

__all__ = ["print_comparison", "print_report", "write_report"]
