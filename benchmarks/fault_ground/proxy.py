"""A bad network between SuperNodes and a SuperLink: a TCP proxy on loopback that is slow, cuts, swallows and forgets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

_CHUNK = 1 << 14
T = TypeVar("T")


class Proxy:
    """Passes bytes between whoever connects and one server, from a thread of its own; to be used in a with statement.

    Attributes:
        latency: seconds that each piece waits on its way, in either direction.
        bandwidth: bytes per second of each connection and direction; 0 is unlimited.
        connections: how many were accepted.
    """

    def __init__(self, port: int) -> None:
        self.latency, self.bandwidth, self.connections = 0.0, 0.0, 0
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._flowing: asyncio.Event
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()  # a client's half whose other half is gone
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.port = self._do(self._listen())

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(30)

    def reset(self) -> int:
        """Cut every connection with a TCP reset, as a rebooted router does. Returns how many there were."""
        return self._do(self._reset())

    def swallow(self, on: bool) -> None:
        """From now on nothing arrives, and nobody is told (True); or everything flows again, with what was held back (False)."""
        self._loop.call_soon_threadsafe(self._flowing.clear if on else self._flowing.set)

    def forget(self) -> int:
        """Close the server's half of every connection and leave the client's open and silent. Returns how many there were."""
        return self._do(self._forget())

    async def _listen(self) -> int:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # there is no server now: nobody listens for the client either
            writer.close()
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)
        up, down = (asyncio.create_task(self._pass(*way)) for way in ((reader, far_writer), (far_reader, writer)))
        self._tasks |= {up, down}
        await asyncio.wait({up, down})
        self._tasks -= {up, down}
        self._pairs.discard(pair)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(_CHUNK):
                if self.latency:
                    await asyncio.sleep(self.latency)
                if self.bandwidth:
                    await asyncio.sleep(len(data) / self.bandwidth)
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        if writer not in self._forgotten:
            with contextlib.suppress(OSError, RuntimeError):
                writer.close()

    async def _reset(self) -> int:
        pairs = list(self._pairs)
        for pair in pairs:
            for writer in pair:
                with contextlib.suppress(OSError):
                    raw = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close means reset
                writer.transport.abort()
        return len(pairs)

    async def _forget(self) -> int:
        pairs = list(self._pairs)
        for near, far in pairs:
            self._forgotten.add(near)
            far.transport.abort()
        return len(pairs)

    async def _end(self) -> None:
        self._server.close()
        await self._reset()
        for writer in self._forgotten:
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
