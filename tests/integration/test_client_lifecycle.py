"""A real client that waits for /start, finds its server through the server manager, leaves, comes back, and survives its server."""

import signal

import httpx
import pytest

from fedmap.flower import processes
from fedmap.outputs import read_history
from tests.deployed import Place
from tests.federations import processes_that_name, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(600)]
pytest.importorskip("fedops", reason="needs FedOps' client API: pip install --no-deps -r requirements-fedops.txt")

FEDERATION = ("dataset.num_clients=2", "num_clients=1", "num_rounds=2")
SLOW = """
import time

def wait_a_moment(update):
    time.sleep(2)
    return update
"""


def test_a_client_waits_for_start_leaves_comes_back_and_survives_the_death_of_its_server(place: Place) -> None:
    (place.folder / "slow.py").write_text(SLOW)
    place.common += FEDERATION
    place.environment["PYTHONPATH"] = str(place.folder)
    front, port = processes.free_port(), processes.free_port()
    manager = f"http://127.0.0.1:{front}"
    here = (f"runtime.address=127.0.0.1:{port}", f"service.port={front}")
    waiting = ("client.autostart=false", "hooks.after_round=slow.wait_a_moment")
    place.client(0, *waiting, name="client", FEDOPS_SERVER_MANAGER_URL=manager)
    with httpx.Client(base_url=place.wait_until_said("client", r"its state is at (\S+)/status")[1], timeout=20) as http:
        place.wait_until_said("client", "client 0: waiting for POST /start")
        assert http.get("/health/ready").status_code == 200
        assert http.get("/online").json()["client_start"] is False
        assert http.post("/start").json()["client_start"] is True
        place.wait_until_said("client", rf"waiting for the server manager at {manager} to name the server of task fedmap \(no connection\)")
        assert http.get("/status").json()["state"] == "looking for the server"

        place.server(*here, name="server_1", run="run_1")
        place.wait_until_said("client", f"client 0: connecting to 127.0.0.1:{port}")
        place.wait_until_said("client", "round 1/2, training")
        assert http.get("/online").json()["server_IP"] == f"127.0.0.1:{port}"
        place.kill("server_1")
        place.wait_until_said("client", f"client 0: waiting for the server at 127.0.0.1:{port}")

        place.server(*here, name="server_2", run="run_2")
        place.wait_until_said("client", r"the connection to 127.0.0.1:\d+ has ended; connecting again in \d+ s")
        place.wait_until_said("client", "round 1/2, training", times=2)
        http.post("/stop")
        place.wait_until_said("client", "client 0: has left the federation, as it was asked to")
        assert http.get("/status").json()["state"] == "stopped"
        assert http.post("/start").json()["client_start"] is True
        place.wait_until_said("client", "round 2/2, trained")
        wait_for(lambda: place.started["server_2"].poll() is not None, 240, place.everything_said)
        assert place.started["server_2"].returncode == 0, place.everything_said()
        history = read_history(place.folder / "run_2")
        assert history.status == "finished"
        assert [record.num_ok for record in history.rounds] == [0, 0, 1], "the round that the client left is lost, and no more"
        place.wait_until_said("client", "client 0: waiting for POST /start", times=3)
        status = http.get("/status").json()
        assert (status["state"], status["round_index"], status["problem"]) == ("finished", 2, "")
        assert status["connections"] == 3
        assert http.get("/online").json()["client_start"] is False
    place.started["client"].send_signal(signal.SIGTERM)
    assert place.started["client"].wait(60) == 130
    assert processes_that_name(f":{port}", str(place.folder)) == []
