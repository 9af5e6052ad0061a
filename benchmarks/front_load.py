"""Load on a server's front: streams of events that stay open, and requests at a fixed rate. A process of its own, and a cheap one.

    python -m benchmarks.front_load URL RUN_ID WATCHERS PER_SECOND SECONDS

prints one JSON object when it ends. Requests go out at their time whether or not earlier ones have been answered, so that a slow
front is seen as a growing delay and not as a lower rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_CONNECTIONS = 16
_PATIENCE = 10.0  # seconds for the last answers
_NICENESS = 10  # what asks is not what is measured


@dataclass
class Seen:
    """What the load saw: answers by status, their delays in seconds, and events by watcher."""

    statuses: Counter[str] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)
    events: list[int] = field(default_factory=list)


async def _watch(host: str, port: int, path: str, seen: Seen, index: int) -> None:
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 24)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: text/event-stream\r\n\r\n".encode())
        while data := await reader.read(1 << 16):
            seen.events[index] += data.count(b"\nid: ")
    finally:
        writer.close()


async def _ask(host: str, port: int, paths: asyncio.Queue[tuple[float, str]], seen: Seen) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while True:
            due, path = await paths.get()
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            (length,) = (line.partition(":")[2] for line in head.split("\r\n") if line.lower().startswith("content-length:"))
            await reader.readexactly(int(length))
            seen.statuses[head[9:12]] += 1
            seen.delays.append(time.perf_counter() - due)
            paths.task_done()
    finally:
        writer.close()


async def load(url: str, run_id: str, watchers: int, per_second: float, seconds: float) -> Seen:
    """Watch and ask for a while."""
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 0
    seen = Seen(events=[0] * watchers)
    paths: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
    with urllib.request.urlopen(f"{url}/status", timeout=30) as answer:
        lines = json.load(answer)["lines"]  # as the dashboard: the run as it is, and then what comes
    watched = f"/api/runs/{run_id}/events?after={lines}"
    tasks = [asyncio.create_task(_watch(host, port, watched, seen, index)) for index in range(watchers)]
    tasks += [asyncio.create_task(_ask(host, port, paths, seen)) for _ in range(_CONNECTIONS)]
    turn = (
        "/status",
        f"/api/runs/{run_id}",
        "/status",
        "/clients",
        "/status",
        "/rounds",
        "/status",
        "/metrics",
        "/health/live",
        "/api/runs",
    )
    begin = time.perf_counter()
    for index in range(int(per_second * seconds)):
        due = begin + index / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        paths.put_nowait((due, turn[index % len(turn)]))
    await asyncio.sleep(max(0.0, begin + seconds - time.perf_counter()))
    asked = int(per_second * seconds)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(paths.join(), _PATIENCE)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    seen.statuses["broken"] = sum(isinstance(end, Exception) and not isinstance(end, asyncio.CancelledError) for end in ended)
    seen.statuses["unanswered"] = asked - len(seen.delays)
    return seen


def main() -> None:
    """The command."""
    os.nice(_NICENESS)
    url, run_id, watchers, per_second, seconds = sys.argv[1:]
    seen = asyncio.run(load(url, run_id, int(watchers), float(per_second), float(seconds)))
    print(json.dumps({"statuses": seen.statuses, "delays": seen.delays, "events": seen.events, "cpu": time.process_time()}))


if __name__ == "__main__":
    main()
