"""A run's results as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmap.history import FinalResults, RoundRecord, RunHistory, Scores
from fedmap.progress import duration

MISSING = "-"


@dataclass(frozen=True)
class Table:
    """Rows with one cell per column; floats are shown with three decimals, None as a dash."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [[_cell(value) for value in row] for row in self.rows]

    def markdown(self) -> str:
        """The table in GitHub's Markdown, without its title."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

        rule = "|" + "|".join([" --- "] + [" ---: "] * (len(self.columns) - 1)) + "|"
        return "\n".join([line(self.columns), rule, *(line(row) for row in self.cells())])


def print_tables(tables: Sequence[Table]) -> None:
    """Print tables to standard output; where it is no terminal they may be as wide as they need."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for table in tables:
        drawn = RichTable(title=Text(table.title), title_justify="left")
        for index, column in enumerate(table.columns):
            drawn.add_column(Text(column), justify="left" if index == 0 else "right")
        for row in table.cells():
            drawn.add_row(*map(Text, row))
        console.print(drawn)


def _cell(value: object) -> str:
    if value is None:
        return MISSING
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _scores(scores: Scores | None) -> list[object]:
    if scores is None:
        return [None] * 6
    return [scores.macro_f1, scores.micro_f1, scores.weighted_f1, scores.samples_f1, scores.loss, scores.num_samples]


def summary_table(history: RunHistory) -> Table:
    """The chosen model on the server's splits."""
    columns = ("split", "macro-F1", "micro-F1", "weighted F1", "samples F1", "loss", "rows")
    final = history.final
    if final is None:
        best = history.best
        validation, test, chosen = (best.validation, best.test, best.round_index) if best else (None, None, 0)
        rows = [("validation", *_scores(validation)), ("test", *_scores(test))]
        return Table(f"Global model of round {chosen} (the run has not finished)", columns, rows)
    rows = [("validation", *_scores(final.validation)), ("test", *_scores(final.test))]
    if final.test_tuned is not None:
        rows.append(("test, thresholds tuned on validation", *_scores(final.test_tuned)))
    return Table(f"Global model of round {final.chosen_round}, chosen on the validation split", columns, rows)


def label_table(history: RunHistory) -> Table:
    """Per label on the test split, the most frequent first."""
    labels = history.final.labels if history.final else ()
    ordered = sorted(labels, key=lambda row: (-row.support, row.label))
    rows = [(row.label, row.support, row.precision, row.recall, row.f1, row.threshold) for row in ordered]
    return Table("Per label on the test split", ("label", "rows", "precision", "recall", "F1", "threshold"), rows)


def client_table(history: RunHistory) -> Table:
    """Per client: rounds taken part in, mean weight, local validation before and after training, and its own test rows."""
    final = history.final.clients if history.final else {}
    numbers = sorted({client.client_id for record in history.rounds for client in record.clients} | set(final))
    rows: list[tuple[object, ...]] = []
    for number in numbers:
        seen = [client for record in history.rounds for client in record.clients if client.client_id == number]
        used = [client for client in seen if client.status == "ok"]
        last = used[-1] if used else None
        weights = [client.weight for client in used if client.weight is not None]
        rows.append(
            (
                f"client {number}",
                f"{len(used)} of {len(seen)}",
                last.num_examples if last else None,
                sum(weights) / len(weights) if weights else None,
                last.signals.f1_before if last else None,
                last.signals.f1_after if last else None,
                final[number].macro_f1 if number in final else None,
                final[number].micro_f1 if number in final else None,
            )
        )
    columns = ("client", "rounds", "rows", "mean weight", "val before", "val after", "test macro-F1", "test micro-F1")
    return Table("Clients: validation macro-F1 before and after their last training; test of the model they use", columns, rows)


def rounds_table(history: RunHistory) -> Table:
    """One line per round."""
    best = history.best

    def row(record: RoundRecord) -> tuple[object, ...]:
        val, test = record.validation, record.test
        return (
            f"{record.round_index}{' *' if record is best else ''}",
            f"{record.num_ok} of {len(record.clients)}" if record.clients else None,
            record.train_loss,
            val.loss if val else None,
            val.macro_f1 if val else None,
            val.micro_f1 if val else None,
            test.macro_f1 if test else None,
            test.micro_f1 if test else None,
            duration(sum(record.seconds.values())) if record.seconds else None,
        )

    columns = ("round", "clients", "training loss", "val loss", "val macro-F1", "val micro-F1", "test macro-F1", "test micro-F1", "time")
    return Table("Rounds (* chosen on validation)", columns, [row(record) for record in history.rounds])


def comparison_table(results: Mapping[str, FinalResults], title: str = "Comparison on the test split") -> Table:
    """Several runs or baselines beside one another.

    Args:
        results: by the name to show.
        title: of the table.
    """
    rows = []
    for name, final in results.items():
        worst = final.worst_client
        rows.append(
            (
                name,
                final.test.macro_f1 if final.test else None,
                final.test.micro_f1 if final.test else None,
                final.test_tuned.macro_f1 if final.test_tuned else None,
                final.test_tuned.micro_f1 if final.test_tuned else None,
                final.mean_client_macro_f1,
                None if worst is None else final.clients[worst].macro_f1,
            )
        )
    columns = (
        "model",
        "macro-F1 at 0.5",
        "micro-F1 at 0.5",
        "macro-F1 tuned",
        "micro-F1 tuned",
        "mean client macro-F1",
        "worst client macro-F1",
    )
    return Table(title, columns, rows)
