"""Federations over real processes on loopback: the same result as in one process, and clear ends when something is missing."""

import json
import os
import re
import signal
import socket
from pathlib import Path

import httpx
import pytest

from fedmap.config import PROJECT
from fedmap.flower import processes
from fedmap.outputs import read_history
from tests.deployed import Place
from tests.federations import DIGITS, model_bytes, run_locally, wait_for
from tests.fronts import Watcher

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(600)]

HOOK = """
import os, time
from pathlib import Path

def stop_client_2(update):
    if update.client_id == 2:
        Path(os.environ["MARKER"]).touch()
        time.sleep(600)
    return update
"""


def test_a_server_and_two_clients_give_the_same_model_as_one_process(place: Place) -> None:
    federation = ["dataset.num_clients=2", "num_clients=2", "num_rounds=2", "num_epochs=2", "learning_rate=0.02"]
    packed = ("compression=topk", "compression.density=0.05", "compression.smallest=16")  # which the clients learn from the server
    place.server(*federation, *packed, "service.port=0")
    found = wait_for(lambda: re.search(r"the page of this run: (\S+)", place.said("server")), 60, place.everything_said)
    watcher = Watcher(f"{found[1]}/events")
    watcher.start()
    assert httpx.get(f"{found[1]}/FLSe/getPort/fedmap", timeout=60).json() == {"port": place.port}
    for client_id in (0, 1):
        place.client(client_id, *federation)
    assert [place.end(name, 240) for name in place.started] == [0, 0, 0], place.everything_said()
    watcher.stopped.set()
    watcher.join(20)
    lines = (place.folder / "run" / "events.jsonl").read_text().splitlines()
    assert [data for _, _, data in watcher.seen] == [json.loads(line) for line in lines]
    assert [kind for _, kind, _ in watcher.seen if kind in ("opened", "round", "finished")] == ["opened", *["round"] * 3, "finished"]
    assert place.left_behind() == []
    deployed = read_history(place.folder / "run")
    local = run_locally(place.folder / "local", *federation, *packed)
    assert deployed.status == local.status == "finished"
    assert deployed.final is not None
    assert deployed.final == local.final
    for which in ("last", "best"):
        assert model_bytes(place.folder / "run", which) == model_bytes(place.folder / "local", which)
    for there, here in zip(deployed.rounds, local.rounds, strict=True):
        assert [(c.bytes_up or 0) < (c.bytes_down or 0) / 3 for c in there.clients] == [True] * len(there.clients)
        assert (there.validation, there.test) == (here.validation, here.test)
        assert [(c.client_id, c.weight, c.signals) for c in there.clients] == [(c.client_id, c.weight, c.signals) for c in here.clients]
    for client_id in (0, 1):
        text = place.said(f"client_{client_id}")
        assert f"client {client_id}: round 2/2, trained" in text
        assert re.search(rf"client {client_id}: test macro-F1 0\.\d+", text)
    assert "client 1 has joined with" in place.said("server")


def test_a_server_alone_waits_and_ends_with_an_error_and_a_taken_port_is_named(place: Place) -> None:
    with socket.create_server(("127.0.0.1", place.port)):
        place.server("num_clients=2")
        assert place.end("server", 120) == 1
        assert f"error: {place.address} is already taken by another program; choose another runtime.address" in place.said("server")
    place.server("num_clients=2", "runtime.wait_seconds=3")
    assert place.end("server", 180) == 1
    text = place.said("server")
    assert "waiting for clients: 0 of 2 have joined" in text
    assert "error: 0 of 2 clients joined within 3 s, at least 1 are needed. Start clients with `python client_main.py" in text
    assert place.left_behind() == []
    history = read_history(place.folder / "run")
    assert (history.status, history.rounds) == ("failed", ())
    assert "0 of 2 clients joined" in history.reason


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_and_a_client_that_are_stopped_leave_nothing_behind(place: Place, number: signal.Signals) -> None:
    place.server("num_clients=2", "dataset.num_clients=2")
    place.client(0, "dataset.num_clients=2")
    wait_for(lambda: "1 of 2 have joined" in place.said("server"), 180, place.everything_said)
    assert len(place.homes()) == 2
    for name in ("client_0", "server"):
        place.started[name].send_signal(number)
        assert place.end(name, 90) == 130
        assert "stopped" in place.said(name)
    assert place.left_behind() == []
    assert place.homes() == []


def test_a_client_that_is_killed_is_reported_and_the_others_go_on(place: Place) -> None:
    (place.folder / "stopping.py").write_text(HOOK)
    marker = place.folder / "client_2_is_training"
    environment = {"PYTHONPATH": str(place.folder), "MARKER": str(marker)}
    federation = ["dataset.num_clients=3", "num_clients=3", "num_rounds=2", "hooks.after_round=stopping.stop_client_2"]
    place.server(*federation, **environment)
    for client_id in (0, 1, 2):
        place.client(client_id, *federation, **environment)
    wait_for(marker.exists, 240, place.everything_said)
    place.kill("client_2")
    assert [place.end(name, 240) for name in ("server", "client_0", "client_1")] == [0, 0, 0], place.everything_said()
    first, second = read_history(place.folder / "run").rounds[1:]
    assert [(c.client_id, c.status) for c in first.clients] == [(0, "ok"), (1, "ok"), (2, "failed")]
    gone = r"the client left before it answered|Node Unavailable"  # whoever notices first: the server or the SuperLink
    assert re.search(gone, first.clients[2].reason)
    assert sum(c.weight or 0 for c in first.clients) == pytest.approx(1.0)
    assert [(c.client_id, c.status) for c in second.clients] == [(0, "ok"), (1, "ok")]
    assert "client 2 has joined" in place.said("server")
    assert re.search(rf"client 2 is left out of round 1: .*({gone})", place.said("server").replace("\n", " "))
    assert place.left_behind() == []


def test_flwr_run_works_with_plain_supernodes(place: Place) -> None:
    home = place.folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{place.address}"\ninsecure = true\n')
    path = os.pathsep.join([str(Path(processes.program("flwr")).parent), os.environ["PATH"]])
    environment = {"FLWR_HOME": str(home), "PATH": path}
    link = [processes.program("flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(place.port)]
    place.start("link", [*link, "--disable-runtime-dependency-installation"], **environment)
    wait_for(lambda: processes.answers(place.address), 60, place.everything_said)
    for k in (0, 1):
        node = [processes.program("flower-supernode"), "--insecure", "--superlink", place.address, "--port", str(processes.free_port())]
        place.start(f"node_{k}", [*node, "--node-config", f"partition-id={k}"], **environment)
    federation = ["dataset.num_clients=2", "num_clients=2", "num_rounds=1"]
    overrides = " ".join([*DIGITS, *federation])
    place.start(
        "flwr", [processes.program("flwr"), "run", str(PROJECT), "--run-config", f"overrides={json.dumps(overrides)}"], **environment
    )
    assert place.end("flwr", 200) == 0, place.everything_said()

    def finished() -> list[Path]:
        files = (place.folder / "link" / "outputs").glob("*/*/results.json")
        return [file.parent for file in files if json.loads(file.read_text())["status"] in ("finished", "failed")]

    run = wait_for(finished, 240, place.everything_said)[0]
    assert read_history(run).status == "finished"
    run_locally(place.folder / "local", *federation)
    assert model_bytes(run) == model_bytes(place.folder / "local")
