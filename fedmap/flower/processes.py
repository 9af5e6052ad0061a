"""Starting Flower's programs, and leaving none of them behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from fedmap.errors import FederationError
from fedmap.flower.logs import rotating


def program(name: str) -> str:
    """The path of one of Flower's programs beside this Python.

    Raises:
        FederationError: it is not installed there.
    """
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise FederationError(f"{name} is not installed beside {sys.executable}; install requirements.txt into this environment")
    return str(path)


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, cwd: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program inside the block and end it, with everything that it has started, afterwards, also if this process is killed."""
    with rotating(log) as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            with _guarded(process.pid):
                yield process
        finally:
            end_tree(process.pid)
            process.wait()
            _end_session(process.pid)


@contextlib.contextmanager
def _guarded(pid: int) -> Iterator[None]:
    """Inside the block a guardian ends the program should this process die without a word; see `guardian`."""
    try:
        created = psutil.Process(pid).create_time()
    except psutil.Error:  # it has ended already
        yield
        return
    command = [sys.executable, "-P", str(Path(__file__).with_name("guardian.py")), str(pid), repr(created)]
    guardian = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        guardian.kill()
        assert guardian.stdin is not None
        guardian.stdin.close()
        guardian.wait()


def _end_session(leader: int) -> None:
    """Kill what a program that has ended by itself left running in the session that it led."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader:
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=5.0)


def end_tree(pid: int, patience: float = 5.0) -> None:
    """Ask a process and its descendants to end, and kill what is left after `patience` seconds."""
    try:
        root = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    tree = [*root.children(recursive=True), root]
    root_first = [root, *tree[:-1]]
    for process in root_first:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(tree, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=patience)


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Inside the block SIGTERM ends the program as Ctrl-C does: through its `finally` clauses."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def environment(home: Path) -> dict[str, str]:
    """This process's environment with a Flower home of its own."""
    home.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # Nobody outside hears of a federation, unless the user says so.
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return {**quiet, **os.environ, "PATH": path, "FLWR_HOME": str(home)}


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port"."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def answers(address: str, seconds: float = 1.0) -> bool:
    """Whether something accepts connections at "host:port"."""
    try:
        with socket.create_connection(split_address(address), timeout=seconds):
            return True
    except OSError:
        return False


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_answers(address: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 60.0) -> None:
    """Wait for a program that was started to accept connections.

    Raises:
        FederationError: it ended, or did not answer in time; the end of its log is quoted.
    """
    end = time.monotonic() + seconds
    while not answers(address):
        if process.poll() is not None or time.monotonic() > end:
            what = ended(process.returncode) if process.poll() is not None else f"does not answer at {address}"
            raise FederationError(f"{Path(str(process.args[0])).name} {what}; the end of {log}:\n{tail(log)}")  # type: ignore[index]
        time.sleep(0.2)


def ended(code: int | None) -> str:
    """How a program ended, in words."""
    if code is not None and code < 0:
        if -code == signal.SIGKILL:
            return "was killed (SIGKILL; by somebody, or by the system when memory ran out)"
        return f"was ended by signal {-code}"
    return f"ended with exit code {code}"


def tail(path: Path, lines: int = 15, without: Sequence[str] = ()) -> str:
    """The last lines of a text file; those that contain one of the words are left out."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 100_000, 0))
        found = file.read().decode(errors="replace").splitlines()
    return "\n".join([line for line in found if not any(word in line for word in without)][-lines:])
