"""What a client answers when it cannot do what it was asked, and what it leaves in its file of events."""

import json
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, MessageType, RecordDict

from fedmap.errors import UpdateError
from fedmap.flower import client_app, session
from fedmap.flower.local_grid import LocalGrid
from fedmap.flower.wire import RunInfo, raise_problem, run_to_content


def ask(monkeypatch: pytest.MonkeyPatch, error: Exception, events: Path) -> Message:
    def work(*_: object) -> None:
        raise error

    monkeypatch.setattr(session, "session_of", lambda context: (None, 3))
    LocalGrid({}, 0)  # names the run and the node that Flower's messages ask for
    message = Message(run_to_content(RunInfo("run", 1, 2)), 7, MessageType.TRAIN, ttl=60)
    message.metadata.__dict__["_message_id"] = "m"
    return client_app._answer(message, Context(1, 7, {"events": str(events)}, RecordDict(), {}), work)


def starved() -> Exception:
    try:
        torch.empty(10**17)
    except RuntimeError as error:
        return error
    raise AssertionError("this machine has 400 petabytes")


@pytest.mark.parametrize("make", [starved, MemoryError, lambda: RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")])
def test_too_little_memory_is_said_as_such_and_memory_is_given_back(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session._SESSIONS["some"] = object()  # type: ignore[assignment]
    answer = ask(monkeypatch, make(), tmp_path / "events")
    with pytest.raises(UpdateError, match="out of memory while it answered the server's train message.*set a smaller batch_size"):
        raise_problem(answer.content)
    assert session._SESSIONS == {}
    event = json.loads((tmp_path / "events").read_text())
    assert (event["event"], event["kind"], event["asked"]) == ("problem", "ClientMemoryError", "train")


def test_another_error_keeps_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_SESSIONS", {"some": object()})
    answer = ask(monkeypatch, ValueError("shapes differ"), tmp_path / "events")
    with pytest.raises(UpdateError, match="ValueError"):
        raise_problem(answer.content)
    assert "some" in session._SESSIONS


def test_a_full_disk_stops_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ask(monkeypatch, ValueError("shapes differ"), Path("/dev/full"))
    assert "problem" in answer.content
