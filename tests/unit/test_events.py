"""Events: what one progress is told arrives at another through the file, whatever happens to the file."""

import json
import logging
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmap.flower.events import EventProgress, Tail, Told, show
from fedmap.history import ClientRecord, RoundRecord, Scores
from fedmap.progress import Progress
from fedmap.records import ClientSignals, ClientUpdate

RECORD = RoundRecord(
    1,
    {"train": 4.0},
    Scores(0.5, 0.25, 0.4, 0.4, 10, 0.75),
    clients=(ClientRecord(0, weight=1.0, num_examples=2), ClientRecord(3, "failed", "late")),
)
UPDATE = ClientUpdate(0, 1, {"w": np.ones(1)}, 2, 1, ClientSignals(train_loss=0.5, modality_shares={"text": 1.0}))


class Memory(Progress):
    """Remembers every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, num_rounds: int) -> None:
        self.calls.append(("start", num_rounds))

    def waiting(self, joined: Any, expected: int) -> None:
        self.calls.append(("waiting", tuple(joined), expected))

    def resumed(self, round_index: int) -> None:
        self.calls.append(("resumed", round_index))

    def clients(self, round_index: int, client_ids: Any) -> None:
        self.calls.append(("clients", round_index, tuple(client_ids)))

    def client_done(self, update: ClientUpdate) -> None:
        self.calls.append(("client", replace(update, weights={})))

    def client_lost(self, round_index: int, record: ClientRecord) -> None:
        self.calls.append(("lost", round_index, record))

    def round_done(self, record: RoundRecord) -> None:
        self.calls.append(("round", record))

    def note(self, text: str) -> None:
        self.calls.append(("note", text))

    def stop(self) -> None:
        self.calls.append(("stop",))


def play(progress: Progress) -> None:
    progress.waiting([], 2)
    progress.waiting([0, 3], 2)
    progress.note('a "sentence"\nof two lines, ü')
    progress.start(3)
    progress.resumed(0)
    progress.clients(1, range(2))
    progress.client_done(UPDATE)
    progress.client_lost(1, ClientRecord(3, "failed", "late"))
    progress.round_done(RECORD)


def test_what_is_told_arrives_in_order_and_whole(tmp_path: Path) -> None:
    direct, repeated = Memory(), Memory()
    play(Told(direct, EventProgress(tmp_path / "events.jsonl")))
    for event in Tail(tmp_path / "events.jsonl").new():
        show(event, repeated)
    assert repeated.calls == direct.calls
    assert len(direct.calls) == 9


def test_told_hands_on_every_method_of_progress() -> None:
    methods = {name for name in vars(Progress) if not name.startswith("_")}
    assert (
        methods == {name for name in vars(Told) if not name.startswith("_")} == {name for name in vars(Memory) if not name.startswith("_")}
    )


def test_every_event_has_its_kind_and_its_time(tmp_path: Path) -> None:
    events = EventProgress(tmp_path / "events.jsonl")
    events.opened(3, {"strategy": "fedavg"})
    play(events)
    events.failed(ValueError("why"), "where")
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert (lines[0]["pid"], lines[0]["host"], lines[0]["choices"]) == (os.getpid(), socket.gethostname(), {"strategy": "fedavg"})
    assert lines[-1] | {"time": 0} == {"event": "failed", "time": 0, "kind": "ValueError", "reason": "why\nwhere"}
    assert all(next(iter(line)) == "event" for line in lines)


def test_who_is_waited_for_is_said_once(tmp_path: Path) -> None:
    events = EventProgress(tmp_path / "events.jsonl")
    for joined in ([], [], [1], [1], [1, 2]):
        events.waiting(joined, 2)
    assert [event["joined"] for event in Tail(events.path).new()] == [[], [1], [1, 2]]


def test_a_tail_gives_each_whole_line_once_and_leaves_out_damaged_ones(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    tail = Tail(file)
    assert list(tail.new()) == []
    file.write_bytes(b'{"event": "note", "text": "a"}\nrubbish\n[1]\n{"event": 3}\n{"event": "note", "te')
    assert [event["text"] for event in tail.new()] == ["a"]
    with file.open("ab") as more:
        more.write(b'xt": "b"}\n')
    assert [event["text"] for event in tail.new()] == ["b"]
    assert list(tail.new()) == []


def test_what_an_earlier_process_wrote_is_left_out(tmp_path: Path) -> None:
    before = EventProgress(tmp_path / "events.jsonl")
    before.opened(3)
    before.failed(KeyboardInterrupt())
    skipping = Tail(before.path)
    skipping.skip()
    now = EventProgress(before.path)
    assert before.ended()
    assert not now.ended()
    now.opened(5)
    now.start(5)
    assert [event["event"] for event in Tail(before.path).new()] == ["start"]
    assert [event["event"] for event in skipping.new()] == ["start"]
    now.emit("finished")
    assert now.ended()


def test_a_line_that_was_not_whole_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"event": "note", "text": "whole"}\n{"event": "no')
    EventProgress(file).note("next")
    assert [event["text"] for event in Tail(file).new()] == ["whole", "next"]


def test_a_file_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    events = EventProgress(tmp_path / "missing" / "events.jsonl")
    with caplog.at_level(logging.WARNING, "fedmap.events"):
        play(events)
    assert len(caplog.records) == 1
    assert "events are missing" in caplog.text
    events.path.parent.mkdir()
    events.note("again")
    assert [event["text"] for event in Tail(events.path).new()] == ["again"]
