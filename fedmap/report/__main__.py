"""`python -m fedmap.report FOLDER [FOLDER ...]`: write and print one run's report, or compare several runs."""

import argparse
import sys
from pathlib import Path

from fedmap.errors import FederationError
from fedmap.report.folder import compare_folders, print_report, write_report


def main() -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fedmap.report", description="A run's report, or a comparison of several.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="e.g. outputs/<date>/<time>")
    folders = parser.parse_args().folders
    try:
        if len(folders) == 1:
            write_report(folders[0])
            print_report(folders[0])
        else:
            compare_folders(folders)
    except FederationError as error:
        print(f"fedmap.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
