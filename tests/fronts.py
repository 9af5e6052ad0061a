"""Watching a front as a program would, for tests of what it serves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from fedmap.flower.events import EventProgress, Told
from fedmap.progress import Progress
from tests.federations import run_locally

TOKEN = "a-token-for-tests-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def make_run(folder: Path, *overrides: str) -> Path:
    """A small finished run, with the events that a run of `server_main.py` leaves."""
    folder.mkdir(parents=True)
    events = EventProgress(folder / "events.jsonl")
    events.opened(2, {"strategy": "fedavg", "model": "digits", "dataset": "digits"})
    run_locally(
        folder,
        "dataset.num_clients=3",
        "num_rounds=2",
        "strategy=fedavg",
        "hooks.after_round=null",
        *overrides,
        progress=Told(Progress(), events),
    )
    events.emit("finished")
    return folder


def messages(lines: Iterator[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Id, kind and content of server-sent events; comments are left out."""
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            found[name] = value
        elif found:
            yield int(found["id"]), found["event"], json.loads(found["data"])
            found = {}


def watch(url: str, until: int, seconds: float = 20, **headers: str) -> list[tuple[int, str, dict[str, Any]]]:
    """The server-sent events at an address, up to the one with the number `until`."""
    found = []
    with httpx.Client(timeout=seconds) as client, client.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for message in messages(response.iter_lines()):
            found.append(message)
            if message[0] >= until:
                break
    return found


class Watcher(threading.Thread):
    """Watches in the background until the stream ends; comes again, as a browser does, until it is told to stop."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.seen: list[tuple[int, str, dict[str, Any]]] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set():
            headers = {"Last-Event-ID": str(self.seen[-1][0])} if self.seen else {}
            try:
                with httpx.Client(timeout=60) as client, client.stream("GET", self.url, headers=headers) as response:
                    for message in messages(response.iter_lines()):
                        self.seen.append(message)
            except httpx.HTTPError:
                time.sleep(0.1)
