"""The benchmark of what watching costs: its load asks and watches what it says, and rounds are attributed as it says."""

import asyncio
import json
import os
import threading
from pathlib import Path

import pytest

from benchmarks.front_load import load
from benchmarks.fronts import _result, rounds_within
from fedmap.flower.events import EventProgress
from fedmap.service import background
from fedmap.service.server_front import create_server_app


def test_the_load_watches_and_asks_at_its_rate(tmp_path: Path) -> None:
    current = tmp_path / "run"
    current.mkdir()
    events = EventProgress(current / "events.jsonl")
    events.note("before")
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.1):
            events.note("now")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with background.serving(create_server_app(tmp_path, current)) as served:
            seen = asyncio.run(load(served.url, "run", watchers=10, per_second=30, seconds=2))
    finally:
        stop.set()
        writer.join()
    statuses = {status: count for status, count in seen.statuses.items() if count}
    assert statuses == {"200": 60}
    assert len(seen.delays) == 60
    assert len(seen.events) == 10
    assert min(seen.events) >= 1


def test_a_refusal_is_counted(tmp_path: Path) -> None:
    with background.serving(create_server_app(tmp_path, tmp_path)) as served:
        seen = asyncio.run(load(served.url, "none", watchers=1, per_second=20, seconds=1))
    assert seen.statuses["404"] == 2, "of the run that there is not"
    assert seen.statuses["200"] == 18
    assert seen.events == [0]


def test_only_rounds_that_lie_within_a_window_count() -> None:
    events = []
    for index, (begin, end) in enumerate([(0.0, 2.0), (2.5, 4.0), (4.5, 7.0), (8.0, 9.0)], start=1):
        events.append({"event": "clients", "time": begin, "round_index": index})
        events.append({"event": "round", "time": end, "record": {"round_index": index}})
    events.append({"event": "clients", "time": 9.5, "round_index": 5})
    assert rounds_within(events, 2.0, 8.0) == [1.5, 2.5]
    assert rounds_within(events, 0.0, 100.0) == [2.0, 1.5, 2.5, 1.0]


def test_the_slowdown_is_the_median_over_pairs_and_every_wrong_answer_counts() -> None:
    def window(name: str, seconds: float, statuses: dict[str, int] | None = None) -> dict[str, object]:
        seen = {"statuses": statuses or {"200": 5}, "delays": [0.01, 0.02], "events": [4, 3], "cpu": 1.0}
        return {"name": name, "rounds": [seconds, seconds], "front_cpu": 0.1, "load": seen if name == "loaded" else {}}

    measured = [window("quiet", 1.0), window("loaded", 1.1), window("loaded", 2.04, {"200": 4, "503": 2}), window("quiet", 2.0)]
    settings = {"watchers": 2, "requests_per_second": 3.0, "seconds": 2.0}
    result = _result(settings, measured, os.getloadavg()[0])
    assert result.figures["slowdown_percent"] == pytest.approx([10.0, 2.0])
    assert result.targets[0].value == pytest.approx(6.0)
    assert [target.met for target in result.targets] == [False, False, True]
    assert json.loads(json.dumps(result.details))["statuses"] == {"200": 9, "503": 2}
