"""A run's events.jsonl for many watchers: each line is read and prepared once, however many watch."""

from __future__ import annotations

import asyncio
import json
import re
from array import array
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Lock
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT

from fedmap.service.run_state import RunState

_POLL_SECONDS = 0.2
_HEARTBEAT_SECONDS = 15.0
_RECENT_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 18
_KIND = re.compile(rb'\{"event": "([a-z_]{1,32})"')


class Feed:
    """The lines of one file that only grows.

    Attributes:
        path: the file; it need not exist yet.
        state: what the events so far add up to.
        watchers: how many streams are open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watchers = 0
        self._lock = Lock()
        self._changed = asyncio.Event()
        self._closed = False
        self._follower: asyncio.Task[None] | None = None
        self._forget()

    def _forget(self) -> None:
        self.state = RunState()
        self._starts = array("Q", [0])  # of each whole line, and where the next one will begin
        self._recent: deque[bytes] = deque()  # the newest messages, ready to be sent; none while nobody watches
        self._recent_bytes = 0
        self._identity = 0

    @property
    def count(self) -> int:
        """How many whole lines have been read."""
        return len(self._starts) - 1

    def refresh(self) -> None:
        """Read what is new. May be called from any thread."""
        with self._lock:
            try:
                found = self.path.stat()
                if found.st_ino != self._identity or found.st_size < self._starts[-1]:  # another file, e.g. a folder used again
                    self._forget()
                    self._identity = found.st_ino
                if found.st_size > self._starts[-1]:
                    with self.path.open("rb") as file:
                        file.seek(self._starts[-1])
                        for line in file:
                            if not line.endswith(b"\n"):
                                break  # is still being written
                            self._take(line)
            except OSError:  # it is not there yet, or has been taken away
                return

    def _take(self, line: bytes) -> None:
        self._starts.append(self._starts[-1] + len(line))
        self.state.take(line)
        if self.watchers:
            message = _message(self.count, line)
            self._recent.append(message)
            self._recent_bytes += len(message)
            while self._recent_bytes > _RECENT_BYTES and len(self._recent) > 1:
                self._recent_bytes -= len(self._recent.popleft())

    def read(self, after: int) -> tuple[bytes, int]:
        """Messages of the lines after line `after`, and the number of the last of them; a bounded number at once."""
        with self._lock:
            first = self.count - len(self._recent)  # the line before the oldest one in memory
            if after >= self.count:
                return b"", after
            if after >= first:
                return b"".join(list(self._recent)[after - first :]), self.count
            last = after + 1
            while last < first and self._starts[last] - self._starts[after] < _CHUNK_BYTES:
                last += 1
            begin, size = self._starts[after], self._starts[last] - self._starts[after]
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                lines = file.read(size).split(b"\n")[: last - after]
        except OSError:  # the folder has been taken away
            return b"", after
        return b"".join(_message(after + 1 + i, line) for i, line in enumerate(lines)), last

    async def stream(self, after: int) -> AsyncIterator[bytes]:
        """Server-sent events after line `after`, with a comment every 15 s, until the front closes."""
        self.watchers += 1
        try:
            if self._follower is None:
                await asyncio.to_thread(self.refresh)
                if self._follower is None:
                    self._follower = asyncio.create_task(self._follow())
            yield b": watching\n\n"
            while True:
                changed = self._changed
                in_memory = after >= self.count - len(self._recent)
                data, after = self.read(after) if in_memory else await asyncio.to_thread(self.read, after)
                if data:
                    yield data
                elif after > self.count:
                    after = 0  # the file was begun anew
                elif self._closed:
                    return
                else:
                    try:
                        await asyncio.wait_for(changed.wait(), _HEARTBEAT_SECONDS)
                    except TimeoutError:
                        yield KEEPALIVE_COMMENT
        finally:
            self.watchers -= 1
            if self.watchers == 0 and self._follower is not None:
                self._follower.cancel()
                self._follower = None
                with self._lock:
                    self._recent.clear()
                    self._recent_bytes = 0

    async def _follow(self) -> None:
        seen = self._sign()
        while not self._closed:
            self.refresh()
            if (now := self._sign()) != seen:  # whoever has read the new lines: an answer to somebody else does so, too
                seen = now
                self._wake()
            await asyncio.sleep(_POLL_SECONDS)

    def _sign(self) -> tuple[int, int]:
        return self._identity, self.count

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Send what is there and end all streams. Called on the front's event loop."""
        self.refresh()
        self._closed = True
        self._wake()


def _message(number: int, line: bytes) -> bytes:
    """A line of the file as a server-sent event; a damaged line is a comment."""
    data = line.strip()
    match = _KIND.match(data)
    kind = match[1] if match else _slowly(data)
    if not kind:
        return f": line {number} cannot be read\n\n".encode()
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, kind, data)


def _slowly(data: bytes) -> bytes:
    try:
        value: Any = json.loads(data)["event"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return b""
    return value.encode() if isinstance(value, str) and value.isidentifier() else b""
