"""The report of a run's folder: report.md and report.html with tables and plots, and the same on the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedmap.errors import DataError
from fedmap.files import write_text
from fedmap.history import FinalResults, RunHistory
from fedmap.outputs import read_history
from fedmap.report.card import write_cards
from fedmap.report.page import client_lines, write_page
from fedmap.report.plots import write_plots
from fedmap.report.tables import Table, client_table, comparison_table, label_table, print_tables, rounds_table, summary_table


def write_report(folder: Path) -> Path:
    """Write report.md, report.html, plots/ and the models' cards into a run's folder from what it holds, and return report.md."""
    write_cards(folder)
    history = read_history(folder)
    plots = write_plots(history, folder / "plots")
    parts = ["# Run report", _status(history)]
    parts += [f"![{plot.stem}](plots/{plot.name})" for plot in plots]
    for table in (summary_table(history), label_table(history), client_table(history), rounds_table(history)):
        if table.rows:
            parts += [f"## {table.title}", table.markdown()]
    notes = [f"- round {record.round_index}: {note}" for record in history.rounds for note in record.notes]
    lost = [f"- {line}" for line in client_lines(history)]
    if notes or lost:
        parts += ["## Notes", "\n".join([*notes, *lost])]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    write_page(folder, plots=plots)
    return folder / "report.md"


def print_report(folder: Path) -> None:
    """Print a run's tables and the paths of what it left."""
    history = read_history(folder)
    tables = [summary_table(history), label_table(history), client_table(history)]
    print_tables([table for table in tables if table.rows])
    if history.status != "finished":
        print(_status(history))
    for name, path in (
        ("model", folder / "best"),
        ("plots", folder / "plots"),
        ("report", folder / "report.html"),
        ("results", folder / "results.json"),
    ):
        if path.exists():
            print(f"{name + ':':9}{shown(path)}")


def print_comparison(results: Sequence[tuple[str, FinalResults]], title: str = "Comparison on the test split") -> Table:
    """Print several runs or baselines beside one another, and return the table."""
    table = comparison_table(dict(results), title)
    print_tables([table])
    return table


def compare_folders(folders: Sequence[Path]) -> None:
    """Print the final results of several runs' folders beside one another.

    Raises:
        DataError: a folder holds no run, or a run that has not finished.
    """
    results = []
    for folder in folders:
        final = read_history(folder).final
        if final is None:
            raise DataError(f"{folder}: this run has not finished, so it has no final results to compare")
        results.append((shown(folder), final))
    print_comparison(results)


def shown(path: Path) -> str:
    """A path as short as a reader can use it: relative where it lies below the working folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _status(history: RunHistory) -> str:
    if history.status == "finished":
        return f"The run finished after {len([r for r in history.rounds if r.round_index])} rounds."
    if history.status == "failed":
        return f"The run failed after {len([r for r in history.rounds if r.round_index])} rounds: {history.reason}"
    return f"The run has not ended properly; it has {len([r for r in history.rounds if r.round_index])} rounds so far."
