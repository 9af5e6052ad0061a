"""`python -m fedmap report`."""

from __future__ import annotations

import argparse

from fedmap.report.folder import print_report, shown, write_report
from fedmap.report.page import write_page


def run(arguments: argparse.Namespace) -> int:
    """Write and print a run's report; returns the exit status."""
    write_report(arguments.run)
    print_report(arguments.run)
    if arguments.out is not None:
        print(f"page:    {shown(write_page(arguments.run, arguments.out))}")
    return 0
