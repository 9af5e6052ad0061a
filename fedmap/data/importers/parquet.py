"""Source `mmimdb_parquet`: Parquet shards with the columns image, text and labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmap.data.genres import split_labels
from fedmap.data.importers.base import BadRows, Movie
from fedmap.errors import DataError

COLUMNS = ("image", "text", "labels")
ROWS_AT_ONCE = 64  # a few megabytes of posters


def find_shards(path: Path) -> list[Path]:
    """The shards meant by `path`: itself, or every *.parquet below it, sorted."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    return sorted(path.rglob("*.parquet"))


def read(path: Path, bad: BadRows) -> Iterator[Movie]:
    """The movies of all shards.

    The image is encoded bytes, or a record {"bytes", "path"} as data-set hubs write it; the labels are a list of names or one
    text separated by "|" or commas. A shard whose name begins with train, dev, val or test gives its rows that split.

    Raises:
        DataError: no shard, an unreadable one, a missing column, or a malformed row and `bad` does not skip.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = find_shards(path)
    if not shards:
        raise DataError(f"{path}: expected a .parquet file or a folder with .parquet files")
    for shard in shards:
        try:
            file = pq.ParquetFile(shard)
            missing = [column for column in COLUMNS if column not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{shard}: column {missing[0]!r} is missing; its columns are {file.schema_arrow.names}, expected {COLUMNS}")
            row = 0
            for table in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(COLUMNS)):
                for fields in table.to_pylist():
                    row += 1
                    movie = _movie(fields, f"{shard}, row {row}", _split_of(shard), bad)
                    if movie is not None:
                        yield movie
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{shard}: not a readable Parquet file ({error}); fetch this shard again") from error


def _split_of(shard: Path) -> str:
    prefixes = {"train": "train", "dev": "dev", "val": "dev", "test": "test"}
    return next((split for prefix, split in prefixes.items() if shard.name.lower().startswith(prefix)), "")


def _movie(fields: dict[str, Any], where: str, split: str, bad: BadRows) -> Movie | None:
    image, text, labels = (fields[column] for column in COLUMNS)
    name = ""
    if isinstance(image, dict):
        name = Path(str(image.get("path") or "")).name
        image = image.get("bytes")
    if image is not None and not isinstance(image, bytes):
        bad.report(f'{where}: image is {type(image).__name__}; expected encoded bytes or a record {{"bytes", "path"}}')
        return None
    if isinstance(labels, list) and all(isinstance(label, str) for label in labels):
        labels = tuple(dict.fromkeys(labels))
    elif isinstance(labels, str):
        labels = split_labels(labels)
    elif labels is not None:
        bad.report(f"{where}: labels must be a list of names or one text, not {labels!r}")
        return None
    if text is not None and not isinstance(text, str):
        bad.report(f"{where}: text is {type(text).__name__}; expected a text")
        return None
    return Movie(name, where, (text or "").strip(), labels or (), image or None, split)
