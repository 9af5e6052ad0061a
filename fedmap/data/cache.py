"""Arrays on disk, computed once: decoded images, token ids, features of frozen towers.

A key names one immutable folder of `.npy` files, so whoever chooses the key decides what "stale" means: put the content and every
setting that shapes the arrays into it (`content_key`). A folder appears under its key by one rename after its files are on disk,
hence a reader never sees half of it, and of several writers one wins and the others use what it wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmap.errors import DataError

if sys.platform != "win32":  # there, two writers do the same work, and the first to finish wins
    import fcntl

log = logging.getLogger("fedmap.data")

Arrays = dict[str, npt.NDArray[Any]]
ArraySpec = tuple[tuple[int, ...], npt.DTypeLike]

_HEADER = "header.json"
_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,180}")
_RECENT_SECONDS = 3600.0
_LEFT_SECONDS = 24 * 3600.0
_EDGE = 1 << 16  # bytes at either end of a file that its checksum covers: reading all of 4 GB at each start would cost what the cache saves


def content_key(*parts: Any) -> str:
    """A name of 32 hex digits for content and settings, e.g. `content_key(split.fingerprint, {"max_length": 128})`.

    Args:
        parts: bytes, arrays (dtype, shape and values count) or anything that JSON can write; dictionaries count in any order.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            kind, body = f"array {part.dtype.str} {part.shape}", np.ascontiguousarray(part).tobytes()
        elif isinstance(part, bytes):
            kind, body = "bytes", part
        else:
            kind, body = "json", json.dumps(part, sort_keys=True).encode()
        digest.update(f"{kind} {len(body)}\n".encode())
        digest.update(body)
    return digest.hexdigest()[:32]


def cached_arrays(cache_dir: Path, key: str, build: Callable[[], Mapping[str, npt.NDArray[Any]]]) -> Arrays:
    """The arrays under the key, read-only and memory-mapped; `build` is called if they are missing or damaged.

    Args:
        cache_dir: folder of the cache; made if need be.
        key: letters, digits, "." "_" "-"; begin it with what the arrays are, e.g. "tokens-<content_key>".
        build: computes the arrays, by name. For more than memory holds, see `streamed_arrays`.

    Raises:
        DataError: the cache folder cannot be written, or the disk is full.
    """

    def write(folder: Path) -> None:
        for name, array in build().items():
            _check_name("array", name)
            with _explained(cache_dir):
                np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)

    return _load_or_write(Path(cache_dir), key, write)


def streamed_arrays(cache_dir: Path, key: str, arrays: Mapping[str, ArraySpec], fill: Callable[[Arrays], None]) -> Arrays:
    """Like `cached_arrays`, for arrays larger than memory: `fill` writes into zeroed memory-mapped arrays.

    Args:
        arrays: (shape, dtype) by name.
        fill: gets the writable arrays by name; whatever it raises leaves nothing behind in the cache.
    """

    def write(folder: Path) -> None:
        with _explained(cache_dir):
            writable = {name: _create(folder, name, shape, np.dtype(dtype)) for name, (shape, dtype) in arrays.items()}
        fill(writable)
        for array in writable.values():
            if isinstance(array, np.memmap):
                array.flush()

    return _load_or_write(Path(cache_dir), key, write)


def prune_cache(cache_dir: Path, most_bytes: float) -> list[str]:
    """Remove what has not been used for longest until the rest fits, and what killed writers have left.

    Whoever has arrays open keeps them: their place on the disk is free when they are closed. What was used in the last
    hour stays, even if it is too much: a run that is under way would only compute it again.

    Args:
        cache_dir: folder of the cache; it need not exist.
        most_bytes: for all arrays together.

    Returns:
        The keys of what was removed, the oldest first.
    """
    now = time.time()
    entries: list[tuple[float, int, str]] = []
    for path in sorted(cache_dir.iterdir()) if cache_dir.is_dir() else []:
        with contextlib.suppress(OSError):  # another process has removed it
            if path.name.startswith("."):
                if path.name.endswith(".tmp") and now - path.stat().st_mtime > _LEFT_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            elif (header := path / _HEADER).exists():
                entries.append((header.stat().st_mtime, sum(file.stat().st_size for file in path.iterdir()), path.name))
    total = sum(size for _, size, _ in entries)
    removed = []
    for used, size, key in sorted(entries):
        if total <= most_bytes or now - used < _RECENT_SECONDS:
            break
        gone = cache_dir / f".{key}.{uuid.uuid4().hex}.tmp"
        with contextlib.suppress(OSError, DataError), _lock(cache_dir, key):
            (cache_dir / key).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            removed.append(key)
            total -= size
    return removed


def _create(folder: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    _check_name("array", name)
    path = folder / f"{name}.npy"
    if 0 in shape:  # an empty mapping is not allowed
        np.save(path, np.zeros(shape, dtype))
        return np.zeros(shape, dtype)
    mapped: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # a full disk is an OSError here; met inside the mapping it would kill the process
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    return mapped


def _load_or_write(cache_dir: Path, key: str, write: Callable[[Path], None]) -> Arrays:
    _check_name("key", key)
    folder = cache_dir / key
    found = _load(folder)
    if found is not None:
        return found
    with _explained(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
    with _lock(cache_dir, key):
        found = _load(folder)  # another process may have written it while this one waited
        return found if found is not None else _publish(cache_dir, key, write)


def _publish(cache_dir: Path, key: str, write: Callable[[Path], None]) -> Arrays:
    folder, temporary = cache_dir / key, cache_dir / f".{key}.{uuid.uuid4().hex}.tmp"
    try:
        with _explained(cache_dir):
            temporary.mkdir()
        write(temporary)
        with _explained(cache_dir):
            _write_header(temporary)
            if folder.exists() and _load(folder) is None:
                log.warning("the cached arrays in %s are damaged or of another version; they are computed again", folder)
                damaged = cache_dir / f".{key}.{uuid.uuid4().hex}.tmp"
                with contextlib.suppress(FileNotFoundError):  # another writer was faster
                    folder.rename(damaged)
                shutil.rmtree(damaged, ignore_errors=True)
            try:
                temporary.rename(folder)
            except OSError:  # refused where another writer's folder stands: it holds the same arrays
                if not folder.is_dir():
                    raise
            _sync(cache_dir)
            written = _load(folder)
            if written is None:
                raise OSError(f"{folder} does not hold what was just written there")
            return written
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_header(folder: Path) -> None:
    """Bring every file to the disk, then describe them all; the header is what makes the folder valid."""
    arrays = {}
    for path in sorted(folder.glob("*.npy")):
        _sync(path)
        array = _open(path)
        arrays[path.stem] = {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "bytes": path.stat().st_size,
            "edges": _edges(path),
        }
    with open(folder / _HEADER, "w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT, "arrays": arrays}, file)
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def _load(folder: Path) -> Arrays | None:
    """The arrays of a folder, or None if it is missing, damaged or of another format."""
    try:
        header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
        if header["format"] != _FORMAT:
            return None
        arrays: Arrays = {}
        for name, expected in header["arrays"].items():
            path = folder / f"{name}.npy"
            if path.stat().st_size != expected["bytes"] or _edges(path) != expected["edges"]:
                return None
            array = _open(path)
            if array.dtype.str != expected["dtype"] or list(array.shape) != expected["shape"]:
                return None
            arrays[name] = array
        with contextlib.suppress(OSError):  # a cache that may only be read is not pruned either
            os.utime(folder / _HEADER)
        return arrays
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _open(path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:  # an array without elements cannot be mapped
        array = np.load(path, allow_pickle=False)
    array.flags.writeable = False
    return array


def _edges(path: Path) -> int:
    """CRC-32 of the first and the last bytes of a file."""
    with open(path, "rb") as file:
        checksum = zlib.crc32(file.read(_EDGE))
        file.seek(max(path.stat().st_size - _EDGE, 0))
        return zlib.crc32(file.read(_EDGE), checksum)


def _sync(path: Path) -> None:
    """Have the operating system write a file, or a folder's list of names, to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock(cache_dir: Path, key: str) -> Iterator[None]:
    """Let one writer of a key work at a time, so that the others find its result instead of computing it again."""
    if sys.platform == "win32":
        yield
        return
    with contextlib.ExitStack() as stack:
        with _explained(cache_dir):
            file = stack.enter_context(open(cache_dir / f".{key}.lock", "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        for left_behind in cache_dir.glob(f".{key}.*.tmp"):  # of a writer that was killed: a living one would hold the lock
            shutil.rmtree(left_behind, ignore_errors=True)
        yield


@contextlib.contextmanager
def _explained(cache_dir: Path) -> Iterator[None]:
    """Turn a failure to write, not one of what is computed, into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the cache {cache_dir} cannot be written: {error}. Free space there, or name another folder with dataset.cache_dir"
        ) from error


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what} {name!r} is not a cache name: use letters, digits, '.', '_' and '-'")
