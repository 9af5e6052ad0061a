"""Messages between processes of one machine: what is large travels as it lies in memory, without a pickled copy."""

from __future__ import annotations

import io
import pickle
import struct
from multiprocessing.connection import Connection
from typing import Any

from fedmap.npy import Later

_LARGE = 1 << 16  # bytes
_COUNT = struct.Struct("<I")


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.parts: list[bytes | Later] = []

    def persistent_id(self, thing: Any) -> int | None:
        """The place among the parts of a large bytes object; None has it pickled."""
        if type(thing) not in (bytes, Later) or len(thing) < _LARGE:
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


def send(pipe: Connection, thing: object, *, small: bool = False) -> None:
    """Send anything that can be pickled; `receive` is the other end. What is `small` is pickled as it is, four times as fast."""
    if small:
        pipe.send_bytes(_COUNT.pack(0) + pickle.dumps(thing, pickle.HIGHEST_PROTOCOL))
        return
    file = io.BytesIO()
    file.write(bytes(_COUNT.size))
    pickler = _Pickler(file)
    pickler.dump(thing)
    file.seek(0)
    file.write(_COUNT.pack(len(pickler.parts)))
    pipe.send_bytes(file.getbuffer())
    for part in pickler.parts:
        pipe.send_bytes(bytes(part))


def receive(pipe: Connection) -> Any:
    """What `send` sent, from a process that is trusted as this one is.

    Raises:
        EOFError: the other end was closed.
    """
    file = io.BytesIO(pipe.recv_bytes())
    (count,) = _COUNT.unpack(file.read(_COUNT.size))
    if not count:
        return pickle.load(file)
    return _Unpickler(file, [pipe.recv_bytes() for _ in range(count)]).load()
