"""The process that serves a run's page: it ends with its run, and whatever happens to it costs the run nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from fedmap.config import PROJECT, RunConfig, compose_and_resolve, parse
from fedmap.errors import FederationError
from fedmap.service.listening import listen, url
from fedmap.service.process import front, outputs_of
from tests.federations import wait_for
from tests.fronts import watch

pytestmark = pytest.mark.network


def config(folder: Path, *overrides: str) -> RunConfig:
    place = ["runtime=local", "model=digits", "dataset=digits", "service.port=0", f"service.token_file={folder / 'secret' / 'token'}"]
    return parse(compose_and_resolve("config", [*place, *overrides]))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "outputs" / "2026-01-31" / "10-00-00"
    made.mkdir(parents=True)
    yield made
    assert fronts() == []


def fronts() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "fedmap.service" in child.cmdline()]


def answer(address: str, path: str = "/status", **options: Any) -> httpx.Response:
    return httpx.get(address + path, timeout=60, **options)


def test_the_page_is_there_inside_the_block_alone(folder: Path) -> None:
    said: list[str] = []
    with front(config(folder), folder, said.append) as address:
        assert said[0] == f"the page of this run: {address}"
        shown = answer(address).json()
        assert (shown["id"], shown["status"], shown["current"]) == ("2026-01-31~10-00-00", "waiting", True)
        (child,) = fronts()
        assert child.nice() > psutil.Process().nice(), "training goes first"
        token = (folder / "secret" / "token").read_text().strip()
        assert token not in " ".join(child.cmdline()) + "".join(child.environ().values())
        assert httpx.put(f"{address}/FLSe/FLRoundFin/fedmap", headers={"Authorization": f"Bearer {token}"}).json() == {"ok": True}
        (folder / "events.jsonl").write_text('{"event": "note", "text": "a"}\n')
        assert watch(f"{address}/events", 1)[0][2]["text"] == "a"
    assert [token in line for line in said] == [False, True, False], "the token is shown once"
    outputs = os.path.relpath(folder.parents[1])
    assert said[-1] == f"the page has ended with the run; `python -m fedmap dashboard {outputs}` shows it again"
    with pytest.raises(httpx.ConnectError):
        answer(address)
    with front(config(folder), folder, said.append) as again:
        assert answer(again, "/health/live").status_code == 200
    assert token not in "".join(said[3:]), "and not again"


def test_whoever_connects_before_the_front_is_ready_is_answered(folder: Path) -> None:
    with front(config(folder, "service.token_file=null"), folder, print) as address:
        assert answer(address, "/health/live").json() == {"status": "alive"}


def test_a_front_that_is_killed_is_said_and_the_block_goes_on(folder: Path) -> None:
    said: list[str] = []
    with front(config(folder), folder, said.append) as address:
        assert answer(address).status_code == 200
        (child,) = fronts()
        child.kill()
        wait_for(lambda: said[-1] == "the page of this run has ended (exit code -9); the run goes on", 20, lambda: "\n".join(said))


def test_a_front_that_hangs_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmap.service.process._STOP_SECONDS", 0.5)
    with front(config(folder), folder, print) as address:
        assert answer(address).status_code == 200
        (child,) = fronts()
        child.suspend()
    assert not child.is_running()


def test_the_front_ends_when_its_run_is_killed(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from fedmap.config import compose_and_resolve, parse
from fedmap.service.process import front
config = parse(compose_and_resolve("config", ["runtime=local", "service.port=0", "service.token_file=null"]))
with front(config, Path({str(tmp_path)!r}), lambda text: print(text, flush=True)):
    time.sleep(600)
"""
    run = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    address = run.stdout.readline().split(": ")[1].strip()
    assert answer(address).status_code == 200
    (child,) = psutil.Process(run.pid).children()
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    child.wait(20)


@pytest.mark.parametrize("trouble", ["token", "host", "python"])
def test_a_front_that_cannot_start_is_said_and_the_block_goes_on(folder: Path, trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides, reason = [], ""
    if trouble == "token":
        (folder / "token").write_text("readable-by-everybody")
        (folder / "token").chmod(0o644)
        overrides, reason = [f"service.token_file={folder / 'token'}"], "can be read by others"
    elif trouble == "host":
        overrides, reason = ["service.host=203.0.113.7", "security.insecure=true"], "no page can be served at 203.0.113.7"
    else:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        reason = "No such file"
    said: list[str] = []
    with front(config(folder, *overrides), folder, said.append) as address:
        assert address == ""
    assert len(said) == 1
    assert said[0].startswith("there is no page of this run: ")
    assert reason in said[0]
    assert said[0].endswith("; the run goes on")


def test_a_front_that_is_not_wanted_says_nothing(folder: Path) -> None:
    with front(config(folder, "service.enabled=false"), folder, pytest.fail) as address:
        assert address == ""


def test_an_error_in_the_block_is_the_blocks(folder: Path) -> None:
    with pytest.raises(FederationError, match="mine"), front(config(folder, "service.token_file=null"), folder, print):
        raise FederationError("mine")


def test_two_runs_at_once_have_a_page_each(folder: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        said: list[str] = []
        with front(config(folder, f"service.port={port}", "service.token_file=null"), folder, said.append) as address:
            assert address != url(taken)
            assert said == [f"port {port} is taken", f"the page of this run: {address}"]
            assert answer(address, "/health/live").status_code == 200


@pytest.mark.parametrize(
    ("folder", "outputs"),
    [
        ("/a/outputs/2026-01-31/10-00-00", ("/a/outputs", 3)),
        ("/a/outputs/hospital", ("/a/outputs", 3)),
        ("/a/multirun/2026-01-31/10-00-00/0", ("/a/multirun", 3)),
        ("/a/b/c", ("/a/b", 0)),
        ("/outputs/a/b/c/d", ("/outputs/a/b/c", 0)),
    ],
)
def test_only_a_folder_of_outputs_is_searched_for_other_runs(folder: str, outputs: tuple[str, int]) -> None:
    assert outputs_of(Path(folder)) == (Path(outputs[0]), outputs[1])
