"""Source `mmimdb_archive`: the original MM-IMDb download, one JSON and one JPEG file for each movie and split.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmap.data.importers.base import BadRows, Movie
from fedmap.errors import DataError


def find_folder(path: Path) -> Path | None:
    """The folder that holds the movies' JSON files: `path`/dataset or `path` itself; None if neither does."""
    for folder in (path / "dataset", path):
        if folder.is_dir() and any(_movie_files(folder)):
            return folder
    return None


def _movie_files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.glob("*.json") if file.with_suffix(".jpeg").is_file() or file.stem.isdigit())


def read(path: Path, bad: BadRows) -> Iterator[Movie]:
    """The movies of an unpacked archive in the order of their ids.

    A movie's longest plot is used, as in the authors' code. The 27 raw genres are passed on; the label set reduces them.

    Raises:
        DataError: no archive here, a malformed split.json, or a malformed movie and `bad` does not skip.
    """
    folder = find_folder(path)
    if folder is None:
        raise DataError(f"{path}: expected an unpacked MM-IMDb archive: dataset/<id>.json, dataset/<id>.jpeg and split.json")
    splits = _splits(next((f for f in (path / "split.json", folder.parent / "split.json") if f.is_file()), None))
    files = {file.stem: file for file in _movie_files(folder)}
    for movie_id in sorted(splits.keys() - files.keys()):
        bad.report(f"{folder / movie_id}.json: named in split.json but does not exist")
    for movie_id, file in sorted(files.items()):
        movie = _movie(file, splits.get(movie_id, ""), bad)
        if movie is not None:
            yield movie


def _splits(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    content = _json(file)
    if not isinstance(content, dict) or not all(isinstance(ids, list) for ids in content.values()):
        raise DataError(f'{file}: expected {{"train": [ids], "dev": [ids], "test": [ids]}}')
    return {str(movie_id): str(split) for split, ids in content.items() for movie_id in ids}


def _movie(file: Path, split: str, bad: BadRows) -> Movie | None:
    try:
        content = _json(file)
    except DataError as error:
        bad.report(str(error))
        return None
    genres = content.get("genres") if isinstance(content, dict) else None
    plots = content.get("plot", "") if isinstance(content, dict) else ""
    plots = [plots] if isinstance(plots, str) else plots
    if not isinstance(genres, list) or not isinstance(plots, list) or not all(isinstance(v, str) for v in [*genres, *plots]):
        bad.report(f'{file}: expected "genres", a list of names, and "plot", a text or a list of texts')
        return None
    poster = file.with_suffix(".jpeg")
    if not poster.is_file():
        bad.report(f"{poster}: the movie's poster does not exist")
        return None
    return Movie(poster.name, str(file), max(plots, key=len, default="").strip(), tuple(genres), poster, split)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a JSON file ({error})") from error
