"""What programs print, in files that do not grow for ever."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

KEPT_BYTES = 8_000_000  # of each file; with the one put aside a log takes twice that at most


@contextlib.contextmanager
def rotating(path: Path, kept_bytes: int = KEPT_BYTES) -> Iterator[int]:
    """A descriptor for a program's output inside the block; what is written to it is appended to the file.

    A full file becomes <name>.1, in the place of an older one, at the end of a line. If the disk is full, what the program says is
    dropped, and the program goes on.

    Args:
        path: the file; made if it does not exist, and its folder with it.
        kept_bytes: after how many bytes it is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    source, target = os.pipe()
    thread = threading.Thread(target=_copy, args=(source, path, kept_bytes), name=f"fedmap-{path.name}", daemon=True)
    thread.start()
    try:
        yield target
    finally:
        os.close(target)
        thread.join(timeout=5.0)  # longer only if something that the program has started still holds the other end


def _copy(source: int, path: Path, kept_bytes: int) -> None:
    with open(source, "rb", buffering=0) as pipe:
        while data := pipe.read(1 << 16):
            with contextlib.suppress(OSError):
                _append(path, data, kept_bytes)


def _append(path: Path, data: bytes, kept_bytes: int) -> None:
    size = path.stat().st_size if path.exists() else 0
    if size + len(data) > kept_bytes and size:
        cut = data.find(b"\n") + 1  # the line that the full file ends with
        if cut or size > 2 * kept_bytes:
            _write(path, data[:cut])
            os.replace(path, path.with_name(f"{path.name}.1"))
            data = data[cut:]
    _write(path, data)


def _write(path: Path, data: bytes) -> None:
    if data:
        with path.open("ab") as file:
            file.write(data)
