"""`python -m fedmap compare`."""

from __future__ import annotations

import argparse
import sys

from fedmap.report.compare import read_runs, tables_of, write_comparison
from fedmap.report.folder import shown
from fedmap.report.tables import print_tables


def run(arguments: argparse.Namespace) -> int:
    """Compare runs; returns the exit status."""
    runs, left_out = read_runs(arguments.runs)
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    print_tables(tables_of(runs))
    if arguments.html is not None:
        write_comparison(runs, arguments.html, left_out)
        print(f"page: {shown(arguments.html)}")
    return 0
