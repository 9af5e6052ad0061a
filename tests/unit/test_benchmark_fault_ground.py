"""The bad network is as bad as it says, and a trial can fail."""

import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.fault_ground.proxy import Proxy
from benchmarks.fault_ground.trial import Check, Trial
from benchmarks.soak import size_of, slope
from fedmap.history import FAILED, ClientRecord, RoundRecord
from fedmap.outputs import RunFolder


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(4096):
            self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Proxy(server.server_address[1]) as made:
            yield made
        server.shutdown()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=1.0)


def said_back(line: socket.socket, words: bytes) -> bytes:
    line.sendall(words)
    return line.recv(4096)


def test_bytes_pass_and_take_their_time(proxy: Proxy) -> None:
    with connect(proxy) as line:
        assert said_back(line, b"one") == b"one"
        proxy.latency = 0.1
        started = time.monotonic()
        assert said_back(line, b"two") == b"two"
        assert time.monotonic() - started >= 0.2
        proxy.latency, proxy.bandwidth = 0.0, 20.0
        started = time.monotonic()
        assert said_back(line, b"four") == b"four"
        assert time.monotonic() - started >= 0.4
    assert proxy.connections == 1


def test_a_reset_is_a_reset_and_a_new_connection_works(proxy: Proxy) -> None:
    with connect(proxy) as line:
        assert said_back(line, b"one") == b"one"
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            line.recv(1)
    with connect(proxy) as line:
        assert said_back(line, b"two") == b"two"


def test_what_is_swallowed_comes_later(proxy: Proxy) -> None:
    with connect(proxy) as line:
        assert said_back(line, b"one") == b"one"
        proxy.swallow(True)
        line.settimeout(0.3)
        with pytest.raises(TimeoutError):
            said_back(line, b"two")
        proxy.swallow(False)
        line.settimeout(5)
        assert line.recv(4096) == b"two"


def test_a_half_open_connection_stays_open_and_silent(proxy: Proxy) -> None:
    with connect(proxy) as line:
        assert said_back(line, b"one") == b"one"
        assert proxy.forget() == 1
        line.settimeout(0.3)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                said_back(line, b"two")


def a_run(folder: Path, lost: ClientRecord, finite: bool = True) -> None:
    run = RunFolder(folder)
    run.start({}, ("a",))
    run.add_round(RoundRecord(0))
    run.add_round(RoundRecord(1, clients=(ClientRecord(0), lost)))
    for name in ("last", "best"):
        (folder / name).mkdir()
        save_file({"w": np.array([1.0 if finite else np.nan], np.float32)}, folder / name / "model.safetensors")
    document = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**document, "status": "finished"}))


def test_a_trial_holds_what_came_against_what_should_come(tmp_path: Path) -> None:
    a_run(tmp_path / "good", ClientRecord(1, FAILED, "it was killed"))
    check = Check(tmp_path / "good")
    check.finished(1)
    check.lost(1, 1, "killed")
    check.all_ok(1, 0)
    assert check.problems == []
    assert Trial("x", "local", "now", tuple(check.problems)).survived
    check.finished(2)
    check.lost(1, 1, "asleep")
    check.lost(1, 0, "killed")
    check.all_ok(1, 0, 1)
    check.score(0.9)
    check.same_model("other bits")
    assert len(check.problems) == 6
    a_run(tmp_path / "broken", ClientRecord(1, FAILED, "it was killed"), finite=False)
    check = Check(tmp_path / "broken")
    check.finished(1)
    assert check.problems == ["last/model.safetensors is missing or not finite", "best/model.safetensors is missing or not finite"]
    assert len(Check(tmp_path / "none").problems) == 1


def test_growth_is_a_slope(tmp_path: Path) -> None:
    assert slope([1, 2, 3, 4], [5.0, 7.0, 9.0, 11.0]) == pytest.approx(2.0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"123")
    assert size_of(tmp_path) == 3
