"""The page of a real run: watched from the first event to the last, without any effect on the model."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedmap.flower import processes
from fedmap.outputs import read_history
from fedmap.service import background
from fedmap.service.server_front import create_server_app
from tests.federations import DIGITS, model_bytes, processes_that_name, script, start, wait_for
from tests.fronts import Watcher

pytestmark = [pytest.mark.network, pytest.mark.slow]
RUN = (
    *DIGITS,
    "strategy=fedavg",
    "runtime=local",
    "runtime.workers=1",
    "dataset.num_clients=3",
    "num_rounds=3",
    "hooks.after_round=null",
    "name=run",
)


class Run:
    """A `server_main.py` in a folder of its own."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.log = folder / "said.log"
        self.run = folder / "outputs" / "run"
        folder.mkdir(exist_ok=True)
        self.process = start(script("server_main.py", *RUN, *overrides), self.log, folder)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def url(self) -> str:
        found = wait_for(lambda: re.search(r"the page of this run: (http://\S+)", self.said()), 60, self.said)
        return str(found[1])

    def end(self) -> int:
        return self.process.wait(120)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    made: list[Run] = []
    yield made
    for run in made:
        processes.end_tree(run.process.pid)
        run.process.wait()
    assert processes_that_name(str(tmp_path)) == []


def test_a_run_is_watched_from_first_to_last_and_its_model_does_not_change(tmp_path: Path, runs: list[Run]) -> None:
    quiet = Run(tmp_path / "quiet")
    runs.append(quiet)
    assert quiet.end() == 0, quiet.said()
    watched = Run(tmp_path / "watched", "service.port=0")
    runs.append(watched)
    url = watched.url()
    watchers = [Watcher(f"{url}{path}") for path in ("/events", "/api/runs/run/events")]
    for watcher in watchers:
        watcher.start()
    first = httpx.get(f"{url}/status", timeout=60).json()
    assert (first["id"], first["current"], first["strategy"], first["num_rounds"]) == ("run", True, "fedavg", 3)
    assert first["status"] in ("waiting", "running")
    assert watched.end() == 0, watched.said()
    lines = (watched.run / "events.jsonl").read_text().splitlines()
    for watcher in watchers:
        watcher.stopped.set()
        watcher.join(20)
        assert [data for _, _, data in watcher.seen] == [json.loads(line) for line in lines]
    kinds = [json.loads(line)["event"] for line in lines]
    assert (kinds[0], kinds[-1], kinds.count("round"), kinds.count("client")) == ("opened", "finished", 4, 9)
    rounds = [data["record"] for _, kind, data in watchers[0].seen if kind == "round"]
    assert rounds == json.loads((watched.run / "results.json").read_text())["rounds"]
    for which in ("best", "last"):
        assert model_bytes(watched.run, which) == model_bytes(quiet.run, which)
    assert read_history(watched.run).final == read_history(quiet.run).final
    assert [json.loads(line)["event"] for line in (quiet.run / "events.jsonl").read_text().splitlines()].count("round") == 4
    token = (tmp_path / "watched" / ".fedmap" / "token").read_text().strip()
    assert watched.said().count(token) == 1, "shown once"
    written = [path for path in watched.run.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert written == [], "the token is in no file of the run"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/status")


def test_a_run_that_is_interrupted_says_so_to_its_watchers(tmp_path: Path, runs: list[Run]) -> None:
    run = Run(tmp_path / "run", "service.port=0", "num_rounds=500")
    runs.append(run)
    watcher = Watcher(f"{run.url()}/events")
    watcher.start()
    wait_for(lambda: [kind for _, kind, _ in watcher.seen].count("round") > 1, 60, run.said)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    watcher.stopped.set()
    watcher.join(20)
    assert (watcher.seen[-1][1], watcher.seen[-1][2]["kind"]) == ("failed", "KeyboardInterrupt")
    with background.serving(create_server_app(tmp_path / "run" / "outputs")) as served:
        assert httpx.get(f"{served.url}/status").json()["status"] == "interrupted"
