"""Predictions for a CSV table of movies: the columns img_name and text, and labels where they are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedmap.data.layout import find_poster
from fedmap.data.table import BadRow, Row, read_table
from fedmap.errors import DataError
from fedmap.files import write_csv, write_json
from fedmap.metrics import MultilabelCounts
from fedmap.prediction.predictor import Prediction, Predictor

POSTER_FOLDERS = ("posters", "mmimdb_posters", "img", ".")
_SHOWN, _AT_A_TIME = 10, 32


@dataclass
class TablePredictions:
    """What came of a table.

    Attributes:
        rows: the rows that were predicted, in the table's order.
        predictions: theirs.
        bad: the rows that could not be used, and why.
        counts: against the labels of the table; None where it has none.
    """

    rows: list[Row] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    counts: MultilabelCounts | None = None

    def records(self) -> list[dict[str, Any]]:
        """{line, img_name, decided, <label>: score, ...} of every row."""
        return [
            {
                "line": row.line,
                "img_name": row.img_name,
                "decided": "|".join(made.decided),
                **dict(zip(made.label_names, (round(float(score), 6) for score in made.scores), strict=True)),
            }
            for row, made in zip(self.rows, self.predictions, strict=True)
        ]


def predict_table(predictor: Predictor, path: Path, posters: Sequence[Path] = (), *, skip_bad: bool = False) -> TablePredictions:
    """Predict every row of a table.

    Args:
        predictor: with what.
        path: a CSV file with the columns img_name and text; with the column labels it is scored, too.
        posters: folders of posters; none: posters/, mmimdb_posters/ or img/ beside the table, or its own folder.
        skip_bad: leave bad rows out instead of raising.

    Raises:
        DataError: the table cannot be read, or has bad rows: each is named with its line.
    """
    folders = [Path(folder) for folder in posters] or [path.parent / name for name in POSTER_FOLDERS]
    missing = [folder for folder in posters if not Path(folder).is_dir()]
    if missing:
        raise DataError(f"{missing[0]} is no folder; expected the folder of posters that img_name names")
    rows, bad = read_table(path, predictor.label_names, labelled=False)
    if not rows and not bad:
        raise DataError(f"{path}: the file has a header and no rows")
    made = TablePredictions(bad=bad)
    for chunk in (rows[start : start + _AT_A_TIME] for start in range(0, len(rows), _AT_A_TIME)):
        for row, outcome in _predict_chunk(predictor, chunk, folders):
            if isinstance(outcome, BadRow):
                bad.append(outcome)
            else:
                made.rows.append(row)
                made.predictions.append(outcome)
    bad.sort(key=lambda row: row.line)
    if bad and not skip_bad:
        raise DataError(f"{describe_bad(bad)}\nMend the table, or leave such rows out with --skip-bad")
    if any(row.labels for row in made.rows):
        made.counts = _counts(predictor, made)
    return made


def describe_bad(bad: Sequence[BadRow]) -> str:
    """The bad rows, one a line, or the first of them and how many more there are."""
    listed = "\n".join(f"  {row}" for row in bad[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return f"{'1 bad row' if len(bad) == 1 else f'{len(bad)} bad rows'}:\n{listed}{more}"


def _predict_chunk(predictor: Predictor, rows: Sequence[Row], folders: Sequence[Path]) -> Iterator[tuple[Row, Prediction | BadRow]]:
    found = [find_poster(folders, row.img_name) if row.img_name else None for row in rows]
    usable = [i for i, row in enumerate(rows) if found[i] is not None or not row.img_name]
    scores: dict[int, Any] = {}
    try:
        together = predictor.probabilities([rows[i].text or None for i in usable], [found[i] for i in usable])
        scores = dict(zip(usable, together, strict=True))
    except DataError:  # one of the posters is bad: which one?
        for i in usable:
            try:
                scores[i] = predictor.probabilities([rows[i].text or None], [found[i]])[0]
            except DataError as error:
                scores[i] = BadRow(rows[i].file, rows[i].line, f"the poster {found[i]} is bad: {error}")
    for i, row in enumerate(rows):
        if i not in scores:
            looked = ", ".join(str(folder) for folder in folders if folder.is_dir())
            yield (
                row,
                BadRow(row.file, row.line, f"the poster {row.img_name!r} is missing; looked in {looked}; name its folder with --posters"),
            )
        else:
            yield row, scores[i] if isinstance(scores[i], BadRow) else predictor.prediction(scores[i])


def _counts(predictor: Predictor, made: TablePredictions) -> MultilabelCounts:
    truth = np.zeros((len(made.rows), len(predictor.label_names)), dtype=bool)
    for position, row in enumerate(made.rows):
        truth[position, list(row.labels)] = True
    return MultilabelCounts.of(np.stack([one.scores >= one.thresholds for one in made.predictions]), truth)


def write_predictions(made: TablePredictions, path: Path) -> None:
    """Write the predictions to a .json or .csv file.

    Raises:
        DataError: the file's name ends otherwise.
    """
    records = made.records()
    if path.suffix == ".json":
        write_json(path, records)
    elif path.suffix == ".csv":
        write_csv(path, list(records[0]) if records else ["line", "img_name", "decided"], records)
    else:
        raise DataError(f"{path}: expected a name that ends in .csv or .json")
