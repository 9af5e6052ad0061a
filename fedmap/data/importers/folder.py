"""Source `csv`: a table img_name,text,labels and a folder of posters."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from fedmap.data.genres import split_labels
from fedmap.data.importers.base import BadRows, Movie
from fedmap.errors import DataError

COLUMNS = ("img_name", "text", "labels")
POSTER_FOLDERS = ("posters", "mmimdb_posters", "img", "images")


def find_table(path: Path) -> Path | None:
    """The CSV file meant by `path`: itself, movies.csv in it, or the only CSV file in it; None if there is none."""
    if path.is_file():
        return path if path.suffix.lower() == ".csv" else None
    if (path / "movies.csv").is_file():
        return path / "movies.csv"
    tables = sorted(path.glob("*.csv"))
    return tables[0] if len(tables) == 1 else None


def read(path: Path, bad: BadRows) -> Iterator[Movie]:
    """The movies of a CSV file with its posters in posters/, mmimdb_posters/, img/ or images/ beside it, or directly beside it.

    An optional column `split` (train, dev or test) is kept. An empty `text` or `img_name` says that the movie has no plot or
    no poster.

    Raises:
        DataError: no table, a missing column, or a malformed row and `bad` does not skip.
    """
    table = find_table(path)
    if table is None:
        raise DataError(f"{path}: expected a CSV file, or a folder with movies.csv and posters/")
    posters = next((table.parent / name for name in POSTER_FOLDERS if (table.parent / name).is_dir()), table.parent)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with table.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            header = reader.fieldnames or []
            missing = [column for column in COLUMNS if column not in header]
            if missing:
                raise DataError(f"{table}: column {missing[0]!r} is missing; the header is {header}, expected {','.join(COLUMNS)}")
            for row, fields in enumerate(reader, start=1):
                movie = _movie(fields, f"{table}, row {row}", posters, bad)
                if movie is not None:
                    yield movie
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{table}, near line {reader.line_num}: not a valid UTF-8 CSV file ({error})") from error


def _movie(fields: dict[str | None, str | None], where: str, posters: Path, bad: BadRows) -> Movie | None:
    if None in fields or None in fields.values():
        bad.report(f"{where}: has {'more' if None in fields else 'fewer'} fields than the header; quote texts that contain commas")
        return None
    name, text, labels = ((fields[column] or "").strip() for column in COLUMNS)
    if name and Path(name).name != name:
        bad.report(f"{where}: img_name {name!r} must be a plain file name inside {posters}")
        return None
    if name and not os.path.isfile(posters / name):  # no error where a name is too long
        bad.report(f"{where}: poster {posters / name} does not exist")
        return None
    split = (fields.get("split") or "").strip()
    return Movie(name, where, text, split_labels(labels), posters / name if name else None, split)
