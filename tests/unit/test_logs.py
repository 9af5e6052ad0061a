"""Logs of programs: whole lines, two files at most."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmap.flower import events, logs, processes
from fedmap.flower.events import Tail, append

LINES = "import sys\nfor k in range(30000): print(f'line {k:06d}', flush=k % 7 == 0)"


def test_a_program_that_talks_for_ever_fills_two_files_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs.rotating.__wrapped__, "__defaults__", (4000,))  # type: ignore[attr-defined]
    log = tmp_path / "folder" / "program.log"
    with processes.running([sys.executable, "-c", LINES], log, tmp_path, dict(os.environ)) as process:
        process.wait(30)
    assert sorted(path.name for path in log.parent.iterdir()) == ["program.log", "program.log.1"]
    old, new = (log.with_name("program.log.1").read_text(), log.read_text())
    assert all(len(text) <= 140_000 for text in (old, new)), "a file may exceed its limit by what a pipe holds"
    lines = (old + new).splitlines()
    assert lines[-1] == "line 029999"
    assert lines == [f"line {k:06d}" for k in range(30000 - len(lines), 30000)], "nothing between is lost, and no line is torn"


def test_a_disk_that_is_full_stops_no_program(tmp_path: Path) -> None:
    with logs.rotating(Path("/dev/full")) as output:
        done = subprocess.run([sys.executable, "-c", LINES], stdout=output, check=False)
    assert done.returncode == 0


def test_a_file_of_events_that_is_full_is_put_aside_and_none_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_KEPT_BYTES", 200)
    path = tmp_path / "client_events.jsonl"
    tail, seen = Tail(path), []
    for k in range(100):
        append(path, f'{{"event": "step", "k": {k}}}\n')
        if k % 3 == 0:
            seen += [event["k"] for event in tail.new()]
    seen += [event["k"] for event in tail.new()]
    assert seen == list(range(100))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 600
