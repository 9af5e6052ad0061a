"""Small files written whole or not at all, and JSON that every parser reads."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import functools
import io
import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from fedmap.errors import DataError, StorageError

T = TypeVar("T")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file in one step: a reader, or a run that is killed meanwhile, finds the old content or the new one.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the old file is as it was.
    """
    extend(path, 0, content)


def extend(path: Path, kept: int, addition: bytes) -> None:
    """Replace the file, in one step, by its first bytes and more. Nothing but the addition passes through Python's memory.

    Args:
        path: the file.
        kept: how many of its bytes stay; 0 writes it anew.
        addition: what follows them.

    Raises:
        StorageError: the disk is full, the folder cannot be written, or somebody else has shortened the file; it is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                if kept:
                    _copy_start(path, file, kept)
                file.write(addition)
            temporary.chmod(0o644)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unwritable(path, error) from error


def _copy_start(path: Path, file: BinaryIO, size: int) -> None:
    with path.open("rb") as source:
        while size:
            if not (block := source.read(min(size, 1 << 20))):
                raise StorageError(f"{path}: another program has shortened it; leave the files of a run alone while it runs")
            file.write(block)
            size -= len(block)


def unwritable(path: Path, error: Exception) -> StorageError:
    """The sentence for a file that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return StorageError(f"{path}: cannot be written ({reason}); free space or choose another folder")


@contextlib.contextmanager
def locked(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Inside the block this process alone holds the lock file, whose folder nobody else may then write. It is released however the
    process ends.

    Args:
        path: the lock file; made if it does not exist, and left there.
        seconds: how long to wait for another process to let go.

    Raises:
        StorageError: another process holds it, or it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        end = time.monotonic() + seconds
        while not _taken(handle):
            if time.monotonic() >= end:
                owner = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
                raise StorageError(f"{path.parent} is in use by {owner}; wait until it has ended, or choose another folder")
            time.sleep(0.05)
        with contextlib.suppress(OSError):  # who holds it is a courtesy, for which a full disk need not have room
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a process of this machine is inside `locked` with this file."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _taken(handle)
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as strict, indented JSON; see `plain` for what is converted."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows by column name; a missing value, None and a number that is not finite are an empty field."""
    write_text(path, csv_text([dict(zip(columns, columns, strict=True)), *rows], columns))


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows alone, as `write_csv` writes them."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writerows({key: value if type(value) in _AS_THEY_ARE else plain(value) for key, value in row.items()} for row in rows)
    return buffer.getvalue()


_AS_THEY_ARE = frozenset({NoneType, str, bool, int})  # the usual kinds first: a round of many clients has many numbers


@functools.cache
def _field_names(kind: Any) -> tuple[str, ...] | None:
    """Of a dataclass that is no sequence."""
    return None if not is_dataclass(kind) or issubclass(cast(type, kind), Sequence) else tuple(field.name for field in fields(kind))


def plain(value: Any) -> Any:
    """A value as JSON knows it: dataclasses and mappings become objects with string keys, tuples, sets and arrays become
    lists, NumPy numbers become Python's, and a number that is not finite becomes null.
    """
    kind: Any = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is dict:
        return {str(key): item if type(item) in _AS_THEY_ARE else plain(item) for key, item in value.items()}
    if (names := _field_names(kind)) is not None:
        found = value.__dict__
        return {name: found[name] if type(found[name]) in _AS_THEY_ARE else plain(found[name]) for name in names}
    if isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value, key=str)]
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def typed(kind: type[T], value: Any, where: str = "") -> T:
    """The inverse of `plain`: an instance of a dataclass from what JSON holds, by the dataclass's annotations.

    Raises:
        DataError: a key is missing or unknown, or a value has another type; the place is named.
    """
    made: T = _typed(kind, value, where or kind.__name__)
    return made


_hints = functools.cache(get_type_hints)  # annotations are texts, which would be compiled for every record anew


def _typed(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        return _typed(next(a for a in arguments if a is not NoneType), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {arguments[0](key): _typed(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        hints = _hints(kind)
        unknown = [key for key in value if key not in hints]
        if unknown:
            raise DataError(f"{where}: unknown keys {unknown[:3]}, expected some of {', '.join(hints)}")
        try:
            return kind(**{key: _typed(hints[key], item, f"{where}.{key}") for key, item in value.items()})
        except TypeError as error:
            raise DataError(f"{where}: {error}") from error
    if kind is float and value is None:
        return float("nan")  # what `plain` wrote as null
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise DataError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r:.80}")
