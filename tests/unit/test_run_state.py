"""What the events of a run add up to."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmap.service.run_state import RunState


def state(*events: dict[str, Any]) -> RunState:
    made = RunState()
    for event in events:
        made.take(json.dumps(event).encode())
    return made


def opened(time: float = 0.0, **values: Any) -> dict[str, Any]:
    me = {"host": socket.gethostname(), "pid": os.getpid(), "process_started": psutil.Process().create_time()}
    return {"event": "opened", "time": time, "num_rounds": 3, "choices": {"strategy": "fedavg"}} | me | values


def ended_round(index: int, time: float) -> dict[str, Any]:
    return {"event": "round", "time": time, "record": {"round_index": index}}


JOINED = [opened(1), {"event": "waiting", "joined": [0], "expected": 2}, {"event": "start", "time": 2, "num_rounds": 3}, ended_round(0, 3)]
ASKED = {"event": "clients", "time": 10, "round_index": 1, "client_ids": [0, 1, 2]}
ANSWERED = {"event": "client", "time": 12, "round_index": 1, "client_id": 1}
LOST = {"event": "lost", "time": 13, "round_index": 1, "client_id": 0, "status": "failed", "reason": "late"}


def test_a_run_from_first_to_last() -> None:
    assert (state().phase, state().ended, state().started) == ("waiting", "", None)
    waiting = state(*JOINED[:2])
    assert (waiting.phase, waiting.joined, waiting.expected, waiting.num_rounds) == ("waiting", [0], 2, 3)
    assert waiting.choices == {"strategy": "fedavg"}
    assert state(*JOINED).phase == "evaluating"
    training = state(*JOINED, ASKED, ANSWERED, LOST)
    assert (training.phase, training.round_index, training.waiting_for, training.started) == ("training", 1, [2], 1)
    assert state(*JOINED, ASKED, ANSWERED, LOST, ANSWERED | {"client_id": 2}).phase == "evaluating"
    done = [*JOINED, ASKED, ANSWERED, ended_round(1, 20)]
    assert (state(*done).phase, state(*done).waiting_for) == ("evaluating", [])
    assert state(*done, ended_round(3, 40)).phase == "finishing"
    over = state(*done, {"event": "finished", "time": 50})
    assert (over.phase, over.ended, over.seen) == ("ended", "finished", 50)


@pytest.mark.parametrize(("kind", "ended"), [("QuorumError", "failed"), ("KeyboardInterrupt", "interrupted")])
def test_how_a_run_fails(kind: str, ended: str) -> None:
    over = state(*JOINED, ASKED, {"event": "failed", "kind": kind, "reason": "why"})
    assert (over.ended, over.phase, over.reason, over.waiting_for) == (ended, "ended", "why", [])


def test_the_time_left_follows_from_the_rounds_of_this_start() -> None:
    assert state(*JOINED, ASKED).seconds_left(15) is None
    done = [*JOINED, ASKED, ended_round(1, 20)]
    assert state(*done).seconds_left(20) == pytest.approx(20)
    assert state(*done).seconds_left(26) == pytest.approx(14)
    assert state(*done).seconds_left(99) == 0
    assert state(*done, ASKED | {"round_index": 2, "time": 21}).seconds_left(26) == pytest.approx(14)
    assert state(*done, {"event": "finished"}).seconds_left(26) is None
    again = [*done, opened(100), {"event": "start", "num_rounds": 5}, {"event": "resumed", "round_index": 1}]
    assert state(*again).seconds_left(101) is None
    assert state(*again).round_index == 1
    resumed = [*again, ASKED | {"round_index": 2, "time": 110}, ended_round(2, 114)]
    assert state(*resumed).seconds_left(114) == pytest.approx(12)


def test_a_run_is_alive_as_long_as_its_process() -> None:
    assert state(opened()).alive(1e12)
    assert not state(opened(process_started=1.0)).alive(0), "another process has its number now"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(child.pid).create_time()
    theirs = state(opened(pid=child.pid, process_started=started))
    assert theirs.alive(0)
    child.kill()
    child.wait()
    assert not theirs.alive(0)
    child.stdin.close()  # type: ignore[union-attr]
    elsewhere = state(opened(1000.0, host="another"))
    assert elsewhere.alive(1010)
    assert not elsewhere.alive(1000 + 7200)


kinds = st.sampled_from(["opened", "waiting", "start", "resumed", "clients", "client", "lost", "round", "note", "finished", "failed", "x"])
keys = st.sampled_from(
    [
        "time",
        "record",
        "round_index",
        "client_ids",
        "client_id",
        "num_rounds",
        "joined",
        "expected",
        "choices",
        "pid",
        "host",
        "process_started",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
events = st.builds(lambda kind, rest: {**rest, "event": kind}, kinds, st.dictionaries(keys, values, max_size=5))


@given(st.lists(values | events, max_size=6))
def test_rubbish_changes_nothing_that_can_break(found: list[Any]) -> None:
    made = state(*JOINED)
    for event in found:
        made.take(json.dumps(event).encode())
    made.take(b"\xff{")
    left = made.seconds_left(20)
    assert left is None or left >= 0
    made.alive(20)
    assert isinstance(made.phase, str)
    assert all(isinstance(k, int) for k in made.waiting_for)
