"""Messages between processes of one machine: what is large travels as it lies in memory, without a pickled copy."""

from __future__ import annotations

import io
import pickle
from multiprocessing.connection import Connection
from typing import Any

_LARGE = 1 << 16  # bytes


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.parts: list[bytes] = []

    def persistent_id(self, thing: Any) -> int | None:
        """The place among the parts of a large bytes object; None has it pickled."""
        if type(thing) is not bytes or len(thing) < _LARGE:
            return None
        self.parts.append(thing)
        return len(self.parts) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, parts: list[bytes]) -> None:
        super().__init__(file)
        self.parts = parts

    def persistent_load(self, place: int) -> bytes:
        """The part at that place."""
        return self.parts[place]


def send(pipe: Connection, thing: object) -> None:
    """Send anything that can be pickled; `receive` is the other end."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(thing)
    pipe.send(len(pickler.parts))
    for part in pickler.parts:
        pipe.send_bytes(part)
    pipe.send_bytes(file.getbuffer())


def receive(pipe: Connection) -> Any:
    """What `send` sent, from a process that is trusted as this one is.

    Raises:
        EOFError: the other end was closed.
    """
    parts = [pipe.recv_bytes() for _ in range(pipe.recv())]
    return _Unpickler(io.BytesIO(pipe.recv_bytes()), parts).load()
