"""The page of a run, in a process of its own and of low priority: it reads files, and costs the run nothing else.

The socket is opened here, so that the address is known at once and whoever connects early is answered as soon as the front is
there. The front ends when its standard input closes, also where this process was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedmap.access.folder import AccessFolder
from fedmap.config import PROJECT, RunConfig, is_loopback
from fedmap.errors import FederationError
from fedmap.flower import processes
from fedmap.service.listening import listen, url
from fedmap.service.security import load_token

LOG = "front.log"
_STOP_SECONDS = 5.0


@contextlib.contextmanager
def front(config: RunConfig, folder: Path, note: Callable[[str], None]) -> Iterator[str]:
    """Serve the pages and the HTTP interface of a run inside the block; yields their address, "" where there is none.

    A front that cannot start, or that ends early, is said and costs nothing else.

    Args:
        config: the run's configuration.
        folder: the run's folder.
        note: told sentences for people.
    """
    if not config.service.enabled:
        yield ""
        return
    with contextlib.ExitStack() as stack:
        address = ""
        try:
            address = stack.enter_context(_started(config, folder, note))
        except (FederationError, OSError) as error:
            note(f"there is no page of this run: {error}; the run goes on")
        yield address


@contextlib.contextmanager
def _started(config: RunConfig, folder: Path, note: Callable[[str], None]) -> Iterator[str]:
    service = config.service
    token, made = (None, False) if service.token_file is None else load_token(Path(service.token_file))
    with contextlib.closing(listen(service.host, service.port)) as listener:
        settings = _settings(config, folder, token)
        address = url(listener, settings["tls"] is not None)
        process = _start(listener, settings, folder / LOG)
    if service.port not in (0, int(address.rpartition(":")[2])):
        note(f"port {service.port} is taken")
    note(f"the page of this run: {address}")
    if made:
        note(f"writing there needs this token, shown this once and kept in {service.token_file}: {token}")
    stopping = threading.Event()
    threading.Thread(target=_tell_when_it_ends, args=(process, stopping, folder / LOG, note), daemon=True).start()
    try:
        yield address
    finally:
        stopping.set()
        _stop(process)
        outputs = os.path.relpath(outputs_of(folder)[0])
        note(f"the page has ended with the run; `python -m fedmap dashboard {outputs}` shows it again")


def outputs_of(folder: Path) -> tuple[Path, int]:
    """The folder that holds the runs beside this one, and how many levels down they lie.

    Only what bears Hydra's name of such a folder is searched; of a run that was sent elsewhere, that run alone is shown.
    """
    for parent in list(folder.parents)[:3]:
        if parent.name in ("outputs", "multirun"):
            return parent, 3
    return folder.parent, 0


def _settings(config: RunConfig, folder: Path, token: str | None) -> dict[str, Any]:
    outputs, depth = outputs_of(folder)
    port = processes.split_address(config.runtime.address)[1] if config.runtime.name == "superlink" else None
    public = not is_loopback(config.service.host)
    files = AccessFolder(Path(config.security.folder)).server if config.security.folder is not None and public else None
    return {
        "outputs": str(outputs),
        "current": str(folder),
        "depth": depth,
        "token": token,
        "public": public,
        "tls": files and [str(file) for file in files],
        "task": {"task_id": config.task_id, "port": port},
    }


def _start(listener: socket.socket, settings: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(part for part in (str(PROJECT), os.environ.get("PYTHONPATH", "")) if part)
    handle = listener.fileno()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedmap.service", str(handle)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=[handle],
            start_new_session=True,  # Ctrl-C is for the run, which then ends the front
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(settings).encode() + b"\n")  # not as an argument, which everybody here could read
        process.stdin.flush()
    return process


def _tell_when_it_ends(process: subprocess.Popen[bytes], stopping: threading.Event, log: Path, note: Callable[[str], None]) -> None:
    process.wait()
    if not stopping.is_set():
        last = processes.tail(log, 1)
        note(f"the page of this run has ended (exit code {process.returncode}{': ' + last if last else ''}); the run goes on")


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        processes.end_tree(process.pid)
        process.wait()
