"""A run's events: one JSON object per line of events.jsonl in the run's folder, for the pages, for watchers, and across processes.

Every event has its kind under "event" and the unix seconds under "time". A line is appended whole. The kinds:

    opened      a process begins to work on the run: host, pid, process_started (unix s), num_rounds, choices {group: option}.
                What a process that ended before wrote stands above it
    waiting     joined [client], expected: before the first round
    start       num_rounds: the clients are there
    resumed     round_index: the run goes on after this round
    clients     round_index, client_ids: who trains in this round
    client      client_id, round_index, num_examples, num_steps, signals: an update was accepted
    lost        round_index, client_id, status, code, reason: an answer did not come, or was not used; also after its "client"
    round       record: a round has ended, see `fedmap.history.RoundRecord`
    note        text: a sentence for people
    finished    all results are written
    failed      kind, reason
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedmap.files import plain, typed
from fedmap.history import ClientRecord, RoundRecord
from fedmap.progress import Progress
from fedmap.records import ClientSignals, ClientUpdate

EVENTS = "events.jsonl"
log = logging.getLogger("fedmap.events")


class EventProgress(Progress):
    """A `Progress` that writes each call as one line. A line that cannot be written costs a warning, never the run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin = _size(path)
        self._torn = _is_torn(path)
        self._waiting: tuple[tuple[int, ...], int] | None = None

    def emit(self, event: str, **values: Any) -> None:
        """Append one event."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **plain(values)}, allow_nan=False) + "\n"
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)  # a quarter of what `open` takes
            try:
                data = (b"\n" if self._torn else b"") + line.encode()
                self._torn = os.write(file, data) != len(data)
            finally:
                os.close(file)
        except OSError as error:
            if not self._torn:
                log.warning("events are missing in %s: %s", self.path, error)
            self._torn = True

    def opened(self, num_rounds: int, choices: Mapping[str, str] | None = None) -> None:
        """This process begins to work on the run, and no other one does; `choices` names the option of each group."""
        started, choices = psutil.Process().create_time(), choices or {}
        self.emit("opened", host=socket.gethostname(), pid=os.getpid(), process_started=started, num_rounds=num_rounds, choices=choices)

    def failed(self, error: BaseException, details: str = "") -> None:
        """The run has ended with an error."""
        self.emit("failed", kind=type(error).__name__, reason="\n".join(part for part in (str(error), details) if part))

    def ended(self) -> bool:
        """Whether a process has said since this object was made how the run has ended."""
        return any(event["event"] in ("finished", "failed") for event in _events(self.path, self._begin)[0])

    def waiting(self, joined: Sequence[int], expected: int) -> None:
        """See `Progress`; repeated only when it has changed."""
        if (now := (tuple(joined), expected)) != self._waiting:
            self._waiting = now
            self.emit("waiting", joined=list(joined), expected=expected)

    def start(self, num_rounds: int) -> None:
        """See `Progress`."""
        self.emit("start", num_rounds=num_rounds)

    def resumed(self, round_index: int) -> None:
        """See `Progress`."""
        self.emit("resumed", round_index=round_index)

    def clients(self, round_index: int, client_ids: Sequence[int]) -> None:
        """See `Progress`."""
        self.emit("clients", round_index=round_index, client_ids=list(client_ids))

    def client_done(self, update: ClientUpdate) -> None:
        """See `Progress`; the weights stay here."""
        self.emit(
            "client",
            client_id=update.client_id,
            round_index=update.round_index,
            num_examples=update.num_examples,
            num_steps=update.num_steps,
            signals=update.signals,
        )

    def client_lost(self, round_index: int, record: ClientRecord) -> None:
        """See `Progress`."""
        self.emit("lost", round_index=round_index, client_id=record.client_id, status=record.status, code=record.code, reason=record.reason)

    def round_done(self, record: RoundRecord) -> None:
        """See `Progress`."""
        self.emit("round", record=record)

    def note(self, text: str) -> None:
        """See `Progress`."""
        self.emit("note", text=text)


class Told(Progress):
    """A `Progress` that tells several others, in turn."""

    def __init__(self, *others: Progress) -> None:
        self.others = others

    def start(self, num_rounds: int) -> None:
        """See `Progress`."""
        for other in self.others:
            other.start(num_rounds)

    def waiting(self, joined: Sequence[int], expected: int) -> None:
        """See `Progress`."""
        for other in self.others:
            other.waiting(joined, expected)

    def resumed(self, round_index: int) -> None:
        """See `Progress`."""
        for other in self.others:
            other.resumed(round_index)

    def clients(self, round_index: int, client_ids: Sequence[int]) -> None:
        """See `Progress`."""
        for other in self.others:
            other.clients(round_index, client_ids)

    def client_done(self, update: ClientUpdate) -> None:
        """See `Progress`."""
        for other in self.others:
            other.client_done(update)

    def client_lost(self, round_index: int, record: ClientRecord) -> None:
        """See `Progress`."""
        for other in self.others:
            other.client_lost(round_index, record)

    def round_done(self, record: RoundRecord) -> None:
        """See `Progress`."""
        for other in self.others:
            other.round_done(record)

    def note(self, text: str) -> None:
        """See `Progress`."""
        for other in self.others:
            other.note(text)

    def stop(self) -> None:
        """See `Progress`."""
        for other in self.others:
            other.stop()


def show(event: Mapping[str, Any], progress: Progress) -> None:
    """Repeat one event of the file on another progress."""
    kind = event["event"]
    if kind == "start":
        progress.start(event["num_rounds"])
    elif kind == "waiting":
        progress.waiting(event["joined"], event["expected"])
    elif kind == "resumed":
        progress.resumed(event["round_index"])
    elif kind == "clients":
        progress.clients(event["round_index"], event["client_ids"])
    elif kind == "client":
        values = {key: value for key, value in event.items() if key not in ("event", "time", "signals")}
        progress.client_done(ClientUpdate(weights={}, signals=typed(ClientSignals, event["signals"], "signals"), **values))
    elif kind == "lost":
        record = ClientRecord(client_id=event["client_id"], status=event["status"], reason=event["reason"], code=event.get("code", ""))
        progress.client_lost(event["round_index"], record)
    elif kind == "round":
        progress.round_done(typed(RoundRecord, event["record"], "record"))
    elif kind == "note":
        progress.note(event["text"])


@dataclass
class Tail:
    """Reads the events that have been appended to a file since the last look.

    What stands above an "opened" is an earlier process's word on the run and is left out.

    Attributes:
        path: the file; it need not exist yet.
    """

    path: Path
    _position: int = field(default=0, init=False)
    _inode: int | None = field(default=None, init=False)

    def skip(self) -> None:
        """Leave out everything that is there by now."""
        self._position = _size(self.path)
        self._inode = _inode(self.path)

    def new(self) -> Iterator[dict[str, Any]]:
        """The whole lines that are new, in order; a damaged line is left out."""
        events: list[dict[str, Any]] = []
        now = _inode(self.path)
        if self._inode is not None and now != self._inode:  # a full file was put aside, see `append`
            if _inode(_before(self.path)) == self._inode:
                events, _ = _events(_before(self.path), self._position)
            self._position = 0
        self._inode = now
        more, self._position = _events(self.path, self._position)
        events += more
        kinds = [event["event"] for event in events]
        first = len(kinds) - kinds[::-1].index("opened") if "opened" in kinds else 0
        yield from events[first:]


_KEPT_BYTES = 4_000_000


def append(path: Path, line: str) -> None:
    """Append a line to a file that a `Tail` reads and nobody needs for long: a full one becomes <name>.1, in the place of an older one.

    Raises:
        OSError: it cannot be written.
    """
    if _size(path) >= _KEPT_BYTES:
        os.replace(path, _before(path))
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


def _before(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _is_torn(path: Path) -> bool:
    """Whether the last line is not whole: its writer was killed while it wrote."""
    if _size(path) == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _events(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """The events in the whole lines behind a position, without damaged ones, and the position behind them."""
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        data = file.read()
    whole = data.rfind(b"\n") + 1
    found = []
    for line in data[:whole].splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                found.append(event)
    return found, position + whole
