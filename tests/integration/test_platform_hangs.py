"""With the page's port, the FedOps platform and the tracker all hanging, broken or not there, a run gives the same model."""

import json
import re
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fedmap.flower import processes
from tests.federations import DIGITS, model_bytes, script, start
from tests.platforms import endless, raw, rubbish, silent

pytestmark = [pytest.mark.slow, pytest.mark.network]
RUN = (*DIGITS, "runtime=local", "runtime.workers=1", "dataset.num_clients=2", "num_rounds=2", "hooks.after_round=null", "name=run")
HANGING = """
import requests
from fedmap.tracking import Tracker

class Hanging(Tracker):
    def __init__(self, url):
        self.url = url

    def start(self, folder, config):
        requests.post(self.url, json={})  # without a time-out, as many trackers do

    def round_done(self, record):
        requests.post(self.url, json={})
"""


def run(folder: Path, *overrides: str, **environment: str) -> tuple[str, float]:
    """A whole run; what it said, and its seconds."""
    started = time.monotonic()
    process = start(script("server_main.py", *RUN, *overrides), folder / "said.log", folder, PYTHONPATH=str(folder), **environment)
    try:
        assert process.wait(240) == 0, (folder / "said.log").read_text()
    finally:
        processes.end_tree(process.pid)
        process.wait()
    return (folder / "said.log").read_text(), time.monotonic() - started


def results(folder: Path) -> Any:
    """results.json without what depends on the clock."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(item) for key, item in value.items() if key != "seconds"}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    return timeless(json.loads((folder / "outputs" / "run" / "results.json").read_text()))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run without page, platform and tracker."""
    folder = tmp_path_factory.mktemp("alone")
    said, seconds = run(folder, "service.enabled=false")
    assert "FedOps" not in said
    return folder, seconds


def same(folder: Path, alone: Path) -> None:
    for which in ("last", "best"):
        assert model_bytes(folder / "outputs" / "run", which) == model_bytes(alone / "outputs" / "run", which)
    assert results(folder) == results(alone)


def test_a_run_beside_everything_that_hangs(tmp_path: Path, alone: tuple[Path, float]) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    with ExitStack() as stack:
        manager, performance, tracker = (stack.enter_context(raw(silent)) for _ in range(3))
        page = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        said, seconds = run(
            tmp_path,
            f"service.port={page.getsockname()[1]}",
            "tracking._target_=hanging.Hanging",
            f"+tracking.url={tracker}",
            FEDOPS_SERVER_MANAGER_URL=manager,
            FEDOPS_CLIENT_PERFORMANCE_URL=performance,
            FEDOPS_REQUEST_TIMEOUT_SECONDS="2",
        )
    same(tmp_path, alone[0])
    assert len(re.findall(re.escape(f"the FedOps platform at {manager} does not take"), said)) == 1, said
    assert "Hanging is left behind, the run goes on without it" in said
    assert seconds < alone[1] + 90, "10 s are the tracker's"


def test_a_run_beside_a_platform_that_is_broken(tmp_path: Path, alone: tuple[Path, float]) -> None:
    with raw(rubbish) as manager, raw(endless) as performance:
        platform = {"FEDOPS_SERVER_MANAGER_URL": manager, "FEDOPS_CLIENT_PERFORMANCE_URL": performance}
        said, _ = run(tmp_path, "service.enabled=false", FEDOPS_REQUEST_TIMEOUT_SECONDS="2", **platform)
    same(tmp_path, alone[0])
    for url in (manager, performance):
        assert said.count(f"the FedOps platform at {url} does not take") == 1, said
