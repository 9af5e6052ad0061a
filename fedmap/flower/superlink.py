"""A deployed federation's server: starts and supervises a SuperLink, submits the app, and shows the run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedmap.access.folder import AccessFolder
from fedmap.config import PROJECT, RunConfig
from fedmap.errors import FederationError
from fedmap.files import is_locked
from fedmap.flower import processes
from fedmap.flower.bundle import stage
from fedmap.flower.events import Tail, show
from fedmap.flower.identities import NODES, read_nodes
from fedmap.flower.standing import LOCK
from fedmap.progress import Progress

_POLL_SECONDS = 0.3
_STATUS_SECONDS = 10.0


def serve(config: RunConfig, config_file: Path, folder: Path, run_name: str, progress: Progress) -> None:
    """Run one federation over a SuperLink and show its progress until it has ended.

    Raises:
        FederationError: the SuperLink cannot be started, the app cannot be submitted, or the run failed.
    """
    environment = processes.environment(PROJECT / ".fedmap" / "flower" / run_name)
    home = Path(environment["FLWR_HOME"])
    try:
        with _superlink(config, folder, environment) as (link, control):
            events = Tail(folder / "events.jsonl")
            events.skip()
            _name_connection(home, control, config.security.folder)
            run_id = _submit(control, config_file, folder, run_name, environment)
            how = " security=tls" if config.security.tls else ""
            progress.note(f"clients can join at {config.runtime.address}: python client_main.py client_id=<k>{how}")
            _watch(events, link, progress, lambda: _status(run_id, environment), folder / NODES)
    finally:
        (folder / NODES).unlink(missing_ok=True)
        _forget(home)


@contextlib.contextmanager
def _superlink(config: RunConfig, folder: Path, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes] | None, str]]:
    """The SuperLink's process, None where it is somebody else's, and the address at which it takes the run."""
    address = config.runtime.address
    if config.runtime.external:
        if not processes.answers(address):
            raise FederationError(f"nothing answers at {address}; start a SuperLink there or set runtime.external=false")
        yield None, address
        return
    if processes.answers(address):
        raise FederationError(
            f"{address} is already taken by another program; choose another runtime.address (clients need the same), "
            "or use the SuperLink that runs there with runtime.external=true"
        )
    log, control = folder / "superlink.log", address
    if config.security.folder is None:
        host, port = processes.split_address(address)
        command = [processes.program("flower-superlink"), "--insecure", "--host", host, "--port", str(port)]
        command += ["--disable-runtime-dependency-installation"]
    else:
        control = f"127.0.0.1:{processes.free_port()}"
        command = [sys.executable, "-m", "fedmap.service.link", config.security.folder, address, control, str(folder / NODES)]
        own = os.pathsep.join(part for part in (str(PROJECT), os.environ.get("PYTHONPATH", "")) if part)
        environment = {**environment, "PYTHONPATH": own}
    with processes.running(command, log, Path.cwd(), environment) as process:
        processes.wait_until_answers(control, process, log)
        yield process, control


def _name_connection(home: Path, control: str, certificates: str | None) -> None:
    """Write Flower's own configuration: what its commands reach under the name fedmap."""
    how = (
        "insecure = true" if certificates is None else f"root-certificates = {json.dumps(str(AccessFolder(Path(certificates)).authority))}"
    )
    text = f'[superlink]\ndefault = "fedmap"\n\n[superlink.fedmap]\naddress = "{control}"\n{how}\n'
    (home / "config.toml").write_text(text, encoding="utf-8")


def _submit(control: str, config_file: Path, folder: Path, run_name: str, environment: dict[str, str]) -> str:
    home = Path(environment["FLWR_HOME"])
    values = {"config": str(config_file), "folder": str(folder), "run-name": run_name}
    overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
    app = stage(home)
    command = [processes.program("flwr"), "run", str(app), "fedmap", "--run-config", overrides, "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    answer = _json(done.stdout)
    if done.returncode != 0 or not answer.get("success"):
        raise FederationError(f"the app cannot be submitted to the SuperLink at {control}:\n{done.stdout}{done.stderr}")
    return str(answer["run-id"])


def _status(run_id: str, environment: dict[str, str]) -> tuple[str, str]:
    """Flower's own word on the run: its status ("running", "finished:failed", ...) and details."""
    command = [processes.program("flwr"), "ls", "fedmap", "--run-id", run_id, "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        run = _json(done.stdout)["runs"][0]
        return str(run.get("status", "")), str(run.get("status-details", run.get("details", "")))
    except (subprocess.TimeoutExpired, KeyError, IndexError):
        return "", ""


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _watch(
    events: Tail, link: subprocess.Popen[bytes] | None, progress: Progress, status: Callable[[], tuple[str, str]], nodes: Path
) -> None:
    known = set(read_nodes(nodes).values())
    log = events.path.with_name("superlink.log")
    asked = time.monotonic()
    while True:
        for event in events.new():
            if event["event"] == "finished":
                return
            if event["event"] == "failed":
                raise FederationError(str(event["reason"]))
            show(event, progress)
        if known and (accepted := set(read_nodes(nodes).values())) != known:
            for client_id in sorted(known - accepted):
                progress.note(f"client {client_id}'s key is no longer accepted: it is cut off")
            known = accepted
        if link is not None and link.poll() is not None:
            raise FederationError(f"the SuperLink {processes.ended(link.returncode)}. {_advice(events.path.parent)}\n{_end_of(log)}")
        # Asking takes a second of processor time; the server's app that holds the lock is not gone.
        if time.monotonic() - asked > _STATUS_SECONDS and not is_locked(events.path.with_name(LOCK)):
            word, details = status()
            asked = time.monotonic()
            if word.startswith("finished") and not any(e["event"] in ("finished", "failed") for e in Tail(events.path).new()):
                reason = f"the server's app has ended without a result ({word} {details}). {_advice(events.path.parent)}"
                raise FederationError(f"{reason}\n{_end_of(log)}")
        time.sleep(_POLL_SECONDS)


def _advice(folder: Path) -> str:
    return f"Clients that are running wait; the same command with resume={folder} goes on after the last round that is kept there"


def _end_of(log: Path) -> str:
    """The end of a log without the lines that only say that somebody asked for something."""
    return f"The end of {log}:\n{processes.tail(log, without=('uvicorn.access', '[Fleet.', 'ControlServicer.'))}"


def _forget(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
