"""Sources of movies by name, and how to tell which one a path holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fedmap.data.importers import archive, folder, parquet
from fedmap.data.importers.base import BadRows, Movie
from fedmap.errors import DataError

__all__ = ["IMPORTERS", "BadRows", "Movie", "detect"]

IMPORTERS: dict[str, Callable[[Path, BadRows], Iterator[Movie]]] = {
    "csv": folder.read,
    "mmimdb_archive": archive.read,
    "mmimdb_parquet": parquet.read,
}


def detect(path: Path) -> str:
    """The name of the source that `path` holds.

    Raises:
        DataError: the path does not exist or holds none of the known layouts.
    """
    if not path.exists():
        raise DataError(f"path={path} does not exist")
    if path.name.endswith((".zip", ".tar", ".tgz", ".tar.gz")):
        raise DataError(f"path={path} is packed; unpack it and give the folder")
    if parquet.find_shards(path):
        return "mmimdb_parquet"
    if folder.find_table(path) is not None:
        return "csv"
    if path.is_dir() and archive.find_folder(path) is not None:
        return "mmimdb_archive"
    raise DataError(
        f"path={path} holds no known source; expected movies.csv with posters/, *.parquet shards, or an unpacked MM-IMDb archive "
        "(dataset/<id>.json, dataset/<id>.jpeg, split.json); or name it with source="
    )
