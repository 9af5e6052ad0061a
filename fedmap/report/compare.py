"""Several runs side by side: what they were, their final scores, each label, and their curves; as tables and as one HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fedmap.errors import DataError
from fedmap.files import write_text
from fedmap.history import FinalResults, RunHistory
from fedmap.outputs import read_history
from fedmap.progress import duration
from fedmap.report.page import configuration, html_table, page, target_name
from fedmap.report.tables import Table, comparison_table

MOST_CURVES = 8


@dataclass(frozen=True)
class ComparedRun:
    """A finished run.

    Attributes:
        name: short, and different for every run of a comparison.
        history: its results.
        tree: its resolved configuration; empty where it is not known.
    """

    name: str
    history: RunHistory
    tree: Mapping[str, Any]

    @property
    def final(self) -> FinalResults:
        """The scores of the chosen model."""
        assert self.history.final is not None
        return self.history.final


def read_runs(folders: Sequence[Path]) -> tuple[list[ComparedRun], list[str]]:
    """The finished runs of some folders, and a sentence about each of the others.

    Raises:
        DataError: none of them is finished.
    """
    runs: list[ComparedRun] = []
    left_out: list[str] = []
    for folder, name in zip(folders, _names(folders), strict=True):
        try:
            history = read_history(folder)
        except DataError as error:
            left_out.append(str(error))
            continue
        if history.final is None:
            left_out.append(f"{folder}: this run has not finished, so it has no final results to compare")
        else:
            runs.append(ComparedRun(name, history, configuration(folder)))
    if not runs:
        raise DataError("there is no finished run to compare:\n" + "\n".join(left_out))
    return runs, left_out


def _names(folders: Sequence[Path]) -> list[str]:
    """The paths without what they all begin with."""
    parts = [folder.resolve().parts for folder in folders]
    common = 0
    while len(set(parts)) > 1 and all(len(path) > common + 1 for path in parts) and len({path[common] for path in parts}) == 1:
        common += 1
    return ["/".join(path[common:] if len(set(parts)) > 1 else path[-2:]) for path in parts]


def tables_of(runs: Sequence[ComparedRun]) -> list[Table]:
    """What the runs were, their scores on the test split, and F1 of each label where they have the same labels."""
    tables = [_settings(runs), comparison_table({run.name: run.final for run in runs})]
    if len({run.history.label_names for run in runs}) == 1 and all(run.final.labels for run in runs):
        f1 = [{row.label: row.f1 for row in run.final.labels} for run in runs]
        support = {row.label: row.support for row in runs[0].final.labels}
        names = sorted(support, key=lambda label: (-support[label], label))
        rows = [(label, support[label], *(scores.get(label) for scores in f1)) for label in names]
        tables.append(Table("F1 of each label on the test split", ("label", "rows", *(run.name for run in runs)), rows))
    return tables


def _settings(runs: Sequence[ComparedRun]) -> Table:
    def row(run: ComparedRun) -> tuple[object, ...]:
        records = [record for record in run.history.rounds if record.round_index]
        clients = {client.client_id for record in records for client in record.clients}
        seconds = sum(sum(record.seconds.values()) for record in records)
        sent = sum((client.bytes_up or 0) + (client.bytes_down or 0) for record in records for client in record.clients)
        server = run.tree.get("server")
        strategy = server.get("strategy") if isinstance(server, Mapping) else None
        return (
            run.name,
            target_name(strategy) or None,
            target_name(run.tree.get("model")) or None,
            len(clients),
            f"{run.final.chosen_round} of {len(records)}",
            run.tree.get("random_seed"),
            duration(seconds) if seconds else None,
            f"{sent / 1e6:.1f} MB" if sent else None,
        )

    columns = ("run", "strategy", "model", "clients", "chosen round", "seed", "time", "sent and received")
    return Table("Runs", columns, [row(run) for run in runs])


def comparison_page(runs: Sequence[ComparedRun], left_out: Sequence[str] = ()) -> str:
    """The comparison as one HTML document that loads nothing."""
    parts = [
        '<header><h1>Comparison of runs</h1><p class="muted">Scores are of the server\'s test split, which chose nothing.</p></header>'
    ]
    parts += [f"<section><h2>{escape(table.title)}</h2>{html_table(table)}</section>" for table in tables_of(runs)]
    curves = _curves(runs[:MOST_CURVES])
    if curves:
        picture = base64.b64encode(curves).decode()
        parts.append(
            f'<section><h2>Validation by round</h2><figure><img src="data:image/png;base64,{picture}" '
            'alt="Macro-F1 and loss on the validation split by round, one line per run"></figure></section>'
        )
    if left_out:
        parts.append(f"<section><h2>Left out</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in left_out)}</ul></section>")
    return page("Comparison of runs", parts)


def write_comparison(runs: Sequence[ComparedRun], path: Path, left_out: Sequence[str] = ()) -> None:
    """Write `comparison_page` to a file."""
    write_text(path, comparison_page(runs, left_out))


def _curves(runs: Sequence[ComparedRun]) -> bytes | None:
    """A PNG of macro-F1 (at tuned thresholds where there are some) and loss on the validation split."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10.4, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")  # Okabe and Ito
    drawn = False
    for position, run in enumerate(runs):
        style: dict[str, Any] = {"color": colours[position], "linestyle": ("-", "--", ":", "-.")[position % 4], "linewidth": 1.7}
        records = [record for record in run.history.rounds if record.validation is not None]
        scores = [(r.round_index, (r.validation_tuned or r.validation).macro_f1) for r in records if r.validation is not None]
        losses = [(r.round_index, r.validation.loss) for r in records if r.validation is not None and r.validation.loss is not None]
        if scores:
            left.plot(*zip(*scores, strict=True), label=run.name, **style)
            drawn = True
        if losses:
            right.plot(*zip(*losses, strict=True), **style)
    if not drawn:
        return None
    for axes, name in ((left, "macro-F1 at tuned thresholds"), (right, "mean loss")):
        axes.set_xlabel("round")
        axes.set_ylabel(f"validation: {name}")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=min(len(runs), 4), frameon=False)
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png")
    return file.getvalue()
