"""A folder of files as a ZIP archive that is made while it is sent, in constant memory."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

_CHUNK_BYTES = 1 << 20


class _Outlet(io.RawIOBase):
    """A file that can be written to, and hands out what was written."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        part = bytes(data)  # type: ignore[call-overload]
        self._parts.append(part)
        return len(part)

    def taken(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def zipped(files: Sequence[Path], folder: str) -> Iterator[bytes]:
    """The files, uncompressed (weights do not shrink), below one folder of the archive.

    All are opened before the first is read, so that a model that is replaced meanwhile arrives whole in its old form.
    """
    with contextlib.ExitStack() as stack:
        opened = [(path.name, stack.enter_context(path.open("rb"))) for path in files]
        outlet = _Outlet()
        with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as archive:
            for name, file in opened:
                with archive.open(zipfile.ZipInfo(f"{folder}/{name}", (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True) as entry:
                    while data := file.read(_CHUNK_BYTES):
                        entry.write(data)
                        yield outlet.taken()
        yield outlet.taken()


def quoted(name: str) -> str:
    """A file name for the header Content-Disposition."""
    return quote(name, safe="")
