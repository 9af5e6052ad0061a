"""A deployed server that is killed and started again, while one client stays and another has died with it."""

import os
import signal

import psutil
import pytest

from benchmarks.resume import differences, outcome
from fedmap.history import RunHistory
from fedmap.outputs import read_history
from tests.deployed import Place
from tests.federations import run_locally, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(600)]

FEDERATION = [
    "dataset.num_clients=2",
    "num_clients=2",
    "num_rounds=3",
    "strategy=scaffold",
    "training.num_updates=4",
    "hooks.after_round=null",
    "service.enabled=false",
]


def rounds(place: Place) -> int:
    folder = place.folder / "run"
    history = read_history(folder) if (folder / "results.json").exists() else RunHistory()
    return max((r.round_index for r in history.rounds), default=0)


def test_a_server_is_killed_and_goes_on_with_clients_that_stayed_and_clients_that_came_back(place: Place) -> None:
    server = place.server(*FEDERATION)
    clients = [place.client(k, *FEDERATION) for k in (0, 1)]
    wait_for(lambda: rounds(place) >= 1, 240, place.everything_said)
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    for victim in (server, clients[1]):
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == [], "the SuperLink and its processes end with the server"
    done = rounds(place)
    place.server(*FEDERATION)
    place.client(1, *FEDERATION)
    assert [place.end(name, 300) for name in ("server", "client_0", "client_1")] == [0, 0, 0], place.everything_said()
    said = place.said("server")
    assert f"continuing the run in {place.folder / 'run'} after round " in said
    assert "initial model" not in said, "what the first server said is not said again"
    assert done >= 1
    run_locally(place.folder / "local", *FEDERATION)
    assert differences(_comparable(outcome(place.folder / "run")), _comparable(outcome(place.folder / "local"))) == []
    assert place.left_behind() == []


def _comparable(found: dict) -> dict:
    """Bytes on the wire and the seconds they took differ between the runtimes by a few; everything else must agree."""
    for record in found["results"]["rounds"]:
        for client in record["clients"]:
            client.pop("bytes_up"), client.pop("bytes_down")
    return found
