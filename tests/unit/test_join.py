"""How a client is kept in a federation: what ends it, what makes it connect again, and when it gives up. The SuperNode is a small program."""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmap.backoff import pauses
from fedmap.config import compose_and_resolve, parse
from fedmap.errors import FederationError
from fedmap.flower import processes, supernode
from fedmap.participation import Participation
from fedmap.service.discovery import Fixed

PROGRAM = "import sys, time; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); time.sleep(float(sys.argv[3])); sys.exit(3)"


class Join:
    """A thread that is in `supernode.join`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.folder, self.said, self.events = folder, [], []
        self.log = folder / "addresses"
        self.server: Any = Fixed("127.0.0.1:1")
        self.participation = Participation()
        self.result: Any = None

        def program(member: supernode.Member, address: str, events: Path) -> list[str]:
            return [sys.executable, "-c", PROGRAM, str(self.log), address, str(seconds)]

        monkeypatch.setattr(supernode, "_supernode", program)
        monkeypatch.setattr(supernode, "pauses", lambda first, longest: pauses(0.01, 0.02))
        monkeypatch.setattr(supernode, "_drain", lambda process: None)

    def begin(self) -> threading.Thread:
        config = parse(compose_and_resolve("client", ["model=digits", "dataset=digits"]))
        member = supernode.Member(config, self.folder / "run.yaml", self.folder, self.said.append, self.events.append)

        def work() -> None:
            self.participation.begin()
            try:
                self.result = supernode.join(member, self.server, self.participation)
            except FederationError as error:
                self.result = error

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def emit(self, **event: Any) -> None:
        with (self.folder / "client_events.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def addresses(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []


def wait_until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made


def test_a_client_leaves_when_the_run_has_ended_and_old_events_are_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Join(folder, monkeypatch, 600)
    joined.emit(event="finished", macro_f1=0.1, micro_f1=0.1, num_test=1)
    thread = joined.begin()
    wait_until(joined.addresses)
    joined.emit(event="joined", run="r", num_rounds=2, num_train=7)
    joined.emit(event="trained", round=1, num_rounds=2, loss=None, f1=None, seconds=None)  # a hook keeps its signals to itself
    wait_until(lambda: joined.participation.standing.rounds_trained == 1)
    joined.emit(event="finished", macro_f1=0.25, micro_f1=0.5, num_test=9)
    thread.join(30)
    assert joined.result is True
    assert [event["event"] for event in joined.events] == ["joined", "trained", "finished"]
    assert "client 0: round 1/2, trained in unknown s, loss unknown" in joined.said
    assert joined.said[-1] == "client 0: test macro-F1 0.250, micro-F1 0.500 on 9 rows"


def test_a_client_leaves_when_it_is_asked_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Join(folder, monkeypatch, 600)
    thread = joined.begin()
    wait_until(joined.addresses)
    joined.participation.ask_to_stop()
    thread.join(30)
    assert joined.result is False


def test_a_client_that_does_not_know_its_server_can_be_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Join(folder, monkeypatch, 600)
    joined.server = Fixed("")
    joined.server.waiting_for = "the server manager"
    thread = joined.begin()
    wait_until(lambda: joined.said == ["client 0: waiting for the server manager"])
    assert joined.participation.standing.state == "looking for the server"
    joined.participation.ask_to_stop()
    thread.join(30)
    assert (joined.result, joined.addresses()) == (False, [])


def test_a_client_moves_with_its_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Join(folder, monkeypatch, 600)
    thread = joined.begin()
    wait_until(joined.addresses)
    joined.server.address = "127.0.0.1:2"
    wait_until(lambda: len(joined.addresses()) == 2)
    assert joined.addresses() == ["127.0.0.1:1", "127.0.0.1:2"]
    assert "client 0: the server has moved to 127.0.0.1:2" in joined.said
    joined.participation.ask_to_stop()
    thread.join(30)


def test_a_supernode_that_ends_without_a_server_is_started_again_and_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Join(folder, monkeypatch, 0)
    joined.server = Fixed(f"127.0.0.1:{processes.free_port()}")  # nobody is there
    thread = joined.begin()
    wait_until(lambda: len(joined.addresses()) >= 6)
    joined.participation.ask_to_stop()
    thread.join(30)
    assert joined.result is False
    assert joined.participation.standing.connections >= 6


def test_a_supernode_that_ends_beside_its_server_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Join(folder, monkeypatch, 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        joined.server = Fixed(f"127.0.0.1:{server.getsockname()[1]}")
        joined.begin().join(60)
    assert isinstance(joined.result, FederationError)
    assert f"ended 4 times in a row although {joined.server.address} answers, last with exit code 3" in str(joined.result)


def test_a_client_that_cannot_take_part_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Join(folder, monkeypatch, 600)
    thread = joined.begin()
    wait_until(joined.addresses)
    joined.emit(event="problem", kind="ConfigError", message="other labels")
    thread.join(30)
    assert str(joined.result) == "client 0 cannot take part: ConfigError: other labels"


def test_one_failed_round_is_said_and_three_in_a_row_are_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Join(folder, monkeypatch, 600)
    thread = joined.begin()
    wait_until(joined.addresses)
    failed = {"event": "problem", "kind": "ClientMemoryError", "message": "out of memory", "asked": "train"}
    joined.emit(**failed)
    joined.emit(**failed)
    joined.emit(event="trained", round=3, num_rounds=9, loss=None, f1=None, seconds=None)
    wait_until(lambda: joined.participation.standing.rounds_trained == 1)
    assert thread.is_alive()
    assert joined.said.count("client 0: left out of this round: ClientMemoryError: out of memory") == 2
    for _ in range(3):
        joined.emit(**failed)
    thread.join(30)
    assert str(joined.result) == "client 0 cannot take part: ClientMemoryError: out of memory"
