"""A real client that waits for /start, finds its server through the server manager, leaves, comes back, and survives its server."""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from fedmap.config import PROJECT
from fedmap.flower import processes
from fedmap.outputs import read_history
from tests.federations import DIGITS, processes_that_name, script, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(600)]
pytest.importorskip("fedops", reason="needs FedOps' client API: pip install --no-deps -r requirements-fedops.txt")

FEDERATION = ("dataset.num_clients=2", "num_clients=1", "num_rounds=2")
SLOW = """
import time

def wait_a_moment(update):
    time.sleep(2)
    return update
"""


class Place:
    """Programs that a test has started, and what they said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.front = processes.free_port()
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, main: str, *overrides: str, **environment: str) -> subprocess.Popen[bytes]:
        command = script(main, *DIGITS, *FEDERATION, *overrides, f"hydra.run.dir={self.folder / name / 'run'}")
        (self.folder / "slow.py").write_text(SLOW)
        environment = {"PYTHONPATH": str(self.folder), **environment}
        self.started[name] = start(command, self.folder / f"{name}.log", self.folder / name, **environment)
        return self.started[name]

    def server(self, name: str, port: int, *overrides: str) -> subprocess.Popen[bytes]:
        return self.start(name, "server_main.py", f"runtime.address=127.0.0.1:{port}", f"service.port={self.front}", *overrides)

    def client(self, *overrides: str, **environment: str) -> subprocess.Popen[bytes]:
        return self.start("client", "client_main.py", "client.port=0", *overrides, **environment)

    def said(self, name: str = "client") -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def everything(self) -> str:
        return "\n".join(f"--- {name}\n{self.said(name)[-3000:]}" for name in self.started)

    def wait_until_said(self, pattern: str, seconds: float = 240, times: int = 1) -> None:
        wait_for(lambda: len(re.findall(pattern, self.said())) >= times, seconds, lambda: f"{pattern!r} x {times}\n{self.everything()}")

    def http(self) -> httpx.Client:
        self.wait_until_said(r"its state is at \S+/status")
        found = re.search(r"its state is at (\S+)/status", self.said())
        assert found
        return httpx.Client(base_url=found[1], timeout=20)

    def kill(self, name: str) -> None:
        """End a program and everything that it has started without asking, as a machine that loses power does."""
        root = psutil.Process(self.started[name].pid)
        for process in [root, *root.children(recursive=True)]:
            process.kill()
        self.started[name].wait()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for process in made.started.values():
        processes.end_tree(process.pid)
        process.wait()
    for home in (PROJECT / ".fedmap" / "flower").glob(f"{tmp_path.name}*"):
        shutil.rmtree(home, ignore_errors=True)
    for name in made.started:
        for home in (PROJECT / ".fedmap" / "flower").glob(f"{name}_run*"):
            shutil.rmtree(home, ignore_errors=True)


def test_a_client_waits_for_start_leaves_comes_back_and_survives_the_death_of_its_server(place: Place) -> None:
    manager = f"http://127.0.0.1:{place.front}"
    port = processes.free_port()
    place.client("client.autostart=false", "hooks.after_round=slow.wait_a_moment", FEDOPS_SERVER_MANAGER_URL=manager)
    with place.http() as http:
        place.wait_until_said("client 0: waiting for POST /start")
        assert http.get("/health/ready").status_code == 200
        assert http.get("/online").json()["client_start"] is False
        assert http.post("/start").json()["client_start"] is True
        place.wait_until_said(rf"waiting for the server manager at {manager} to name the server of task fedmap \(no connection\)")
        assert http.get("/status").json()["state"] == "looking for the server"

        place.server("server_1", port)
        place.wait_until_said(f"client 0: connecting to 127.0.0.1:{port}")
        place.wait_until_said("round 1/2, training")
        assert http.get("/online").json()["server_IP"] == f"127.0.0.1:{port}"
        place.kill("server_1")
        place.wait_until_said(f"client 0: waiting for the server at 127.0.0.1:{port}")

        place.server("server_2", port)
        place.wait_until_said(r"the connection to 127.0.0.1:\d+ has ended; connecting again in \d+ s")
        place.wait_until_said("round 1/2, training", times=2)
        http.post("/stop")
        place.wait_until_said("client 0: has left the federation, as it was asked to")
        assert http.get("/status").json()["state"] == "stopped"
        assert http.post("/start").json()["client_start"] is True
        place.wait_until_said("round 2/2, trained")
        wait_for(lambda: place.started["server_2"].poll() is not None, 240, place.everything)
        assert place.started["server_2"].returncode == 0, place.everything()
        history = read_history(place.folder / "server_2" / "run")
        assert history.status == "finished"
        assert [record.num_ok for record in history.rounds] == [0, 0, 1], "the round that the client left is lost, and no more"
        place.wait_until_said("client 0: waiting for POST /start", times=3)
        status = http.get("/status").json()
        assert (status["state"], status["round_index"], status["problem"]) == ("finished", 2, "")
        assert status["connections"] == 3
        assert http.get("/online").json()["client_start"] is False
    place.started["client"].send_signal(signal.SIGTERM)
    assert place.started["client"].wait(60) == 130
    assert processes_that_name(f":{port}", str(place.folder)) == []
