"""`python -m fedmap predict`."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from fedmap.errors import DataError
from fedmap.prediction.answer import Answer, answer
from fedmap.prediction.predictor import Predictor
from fedmap.prediction.runs import newest_run
from fedmap.prediction.table import describe_bad, predict_table, write_predictions
from fedmap.report.tables import Table, print_tables


def run(arguments: argparse.Namespace) -> int:
    """Predict one movie or a table; returns the exit status."""
    _check(arguments)
    folder = arguments.run or newest_run()
    predictor = Predictor.open(folder, arguments.model, arguments.client, arguments.device, arguments.data)
    print(f"{predictor.called}, {predictor.tuned}", file=sys.stderr)
    if arguments.table is not None:
        return _table(predictor, arguments)
    poster = None if arguments.poster is None else _content(arguments.poster)
    try:
        made = answer(predictor, arguments.text, poster, explained=arguments.explain)
    except DataError as error:
        raise DataError(f"{arguments.poster}: {error}" if poster is not None else str(error)) from error
    if arguments.json:
        print(json.dumps(made.document(), indent=1, ensure_ascii=False))
    else:
        _print(made)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    one = arguments.poster is not None or arguments.text is not None
    if arguments.table is not None and one:
        raise DataError("--table predicts many movies, --poster and --text one: give one or the other")
    if arguments.table is None and not one:
        raise DataError("there is nothing to predict from: give --poster, --text or both, or a --table")
    if arguments.data is not None and arguments.client is None:
        raise DataError("--data says where a client's own model lies; give --client, too")
    if arguments.table is not None and (arguments.explain or arguments.json):
        raise DataError("--explain and --json belong to one movie; a table goes to --out <file>.csv or <file>.json")
    if arguments.table is None and (arguments.posters or arguments.out or arguments.skip_bad):
        raise DataError("--posters, --out and --skip-bad belong to a --table")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _print(made: Answer) -> None:
    without = {"without poster": made.without_poster, "without plot": made.without_text}
    known = {name: prediction for name, prediction in without.items() if prediction is not None}

    def cells(row: dict[str, Any]) -> list[object]:
        i = made.prediction.label_names.index(row["label"])
        others = [float(prediction.scores[i]) for prediction in known.values()]
        return [row["label"], "yes" if row["decided"] else "", row["score"], row["threshold"], *others]

    columns = ["genre", "predicted", "score", "threshold", *known]
    print_tables([Table("Scores", columns, [cells(row) for row in made.prediction.rows()])])
    if made.explanation is not None:
        print_tables([table for table in _mattered(made) if table.rows])
    print(f"predicted: {', '.join(made.prediction.decided) or 'none'}")


def _mattered(made: Answer) -> list[Table]:
    assert made.explanation is not None
    shown = made.prediction.decided or (str(made.prediction.rows()[0]["label"]),)
    words, regions = [], []
    for label in shown:
        i = made.prediction.label_names.index(label)
        strongest = sorted(made.explanation.words, key=lambda part: -abs(part.effects[i]))[:6]
        words.append([label, ", ".join(f"{made.text[part.start : part.end]} {part.effects[i]:+.2f}" for part in strongest)])
        strongest = sorted(made.explanation.regions, key=lambda part: -abs(part.effects[i]))[:4]
        regions.append([label, ", ".join(f"row {part.start + 1} column {part.end + 1} {part.effects[i]:+.2f}" for part in strongest)])
    return [
        Table("Words that mattered (log-odds lost without them)", ["genre", "words"], words if made.explanation.words else []),
        Table("Regions of the poster, 6 by 6, that mattered", ["genre", "regions"], regions if made.explanation.regions else []),
    ]


def _table(predictor: Predictor, arguments: argparse.Namespace) -> int:
    if arguments.out is not None and arguments.out.suffix not in (".csv", ".json"):
        raise DataError(f"{arguments.out}: expected a name that ends in .csv or .json")
    made = predict_table(predictor, arguments.table, arguments.posters, skip_bad=arguments.skip_bad)
    if made.bad:
        print(f"left out, {describe_bad(made.bad)}", file=sys.stderr)
    if arguments.out is not None:
        write_predictions(made, arguments.out)
        print(f"{len(made.rows)} rows predicted: {arguments.out}")
    elif made.rows:
        records = made.records()
        writer = csv.DictWriter(sys.stdout, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    if made.counts is not None:
        scores = "  ".join(f"{name.replace('_f1', '')}-F1 {value:.4f}" for name, value in made.counts.scores().items())
        print(f"{scores}  ({made.counts.num_samples} rows)", file=sys.stdout if arguments.out is not None else sys.stderr)
    return 0
