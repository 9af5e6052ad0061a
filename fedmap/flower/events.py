"""Progress across processes: the server app appends events to a file, and server_main.py shows them as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmap.files import plain, typed
from fedmap.history import RoundRecord
from fedmap.progress import Progress
from fedmap.records import ClientSignals, ClientUpdate


class EventProgress(Progress):
    """A `Progress` that writes each call as one line of JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def emit(self, event: str, **values: Any) -> None:
        """Append one event."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **plain(values)}) + "\n")

    def start(self, num_rounds: int) -> None:
        """See `Progress`."""
        self.emit("start", num_rounds=num_rounds)

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

    def round_done(self, record: RoundRecord) -> None:
        """See `Progress`."""
        self.emit("round", record=record)

    def note(self, text: str) -> None:
        """See `Progress`."""
        self.emit("note", text=text)

    def stop(self) -> None:
        """See `Progress`."""


def show(event: dict[str, Any], progress: Progress) -> None:
    """Repeat one event of the file on another progress."""
    kind = event.pop("event")
    if kind == "start":
        progress.start(event["num_rounds"])
    elif kind == "clients":
        progress.clients(event["round_index"], event["client_ids"])
    elif kind == "client":
        signals = typed(ClientSignals, event.pop("signals"), "signals")
        progress.client_done(ClientUpdate(weights={}, signals=signals, **event))
    elif kind == "round":
        progress.round_done(typed(RoundRecord, event["record"], "record"))
    elif kind == "note":
        progress.note(event["text"])


@dataclass
class Tail:
    """Reads the events that have been appended to a file since the last look.

    Attributes:
        path: the file; it need not exist yet.
    """

    path: Path
    _position: int = field(default=0, init=False)

    def new(self) -> Iterator[dict[str, Any]]:
        """The whole lines that are new, in order."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._position += whole
        for line in data[:whole].splitlines():
            yield json.loads(line)
