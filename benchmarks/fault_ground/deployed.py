"""A deployed federation on loopback whose processes may be killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from fedmap.config import PROJECT
from fedmap.errors import FederationError
from fedmap.flower import processes
from fedmap.flower.events import EVENTS

PATIENCE = 1200.0  # seconds for anything that is waited for


class Deployed:
    """A server and its clients, each a program of its own.

    Attributes:
        place: a folder for everything that they write.
        port: where the SuperLink listens.
        overrides: of every program's configuration.
    """

    def __init__(self, place: Path, overrides: list[str]) -> None:
        self.place, self.overrides = place, overrides
        self.port = processes.free_port()
        self.folder = place / "run"
        self.programs: dict[str, subprocess.Popen[bytes]] = {}
        place.mkdir(parents=True, exist_ok=True)

    def server(self) -> None:
        """Start the server, or start it again."""
        self._start("server", "server_main.py", f"runtime.address=127.0.0.1:{self.port}", f"hydra.run.dir={self.folder}")

    def client(self, client_id: int, port: int | None = None) -> None:
        """Start a client, or start it again; it finds the server at the port, e.g. a proxy's."""
        address = f"runtime.address=127.0.0.1:{port or self.port}"
        own = f"hydra.run.dir={self.place / f'out_{client_id}'}"
        self._start(f"client_{client_id}", "client_main.py", address, own, f"client_id={client_id}")

    def _start(self, name: str, script: str, *own: str) -> None:
        common = [*self.overrides, "service.enabled=false", "client.enabled=false"]
        place = self.place / name
        place.mkdir(exist_ok=True)
        with (self.place / f"{name}.log").open("ab") as log:
            self.programs[name] = subprocess.Popen(
                [sys.executable, str(PROJECT / script), *common, *own],
                cwd=place,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONPATH": str(PROJECT)},
            )

    def kill(self, name: str) -> None:
        """SIGKILL to a program and everything that it has started, as when its machine is switched off."""
        program = psutil.Process(self.programs[name].pid)
        for process in [program, *program.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.programs[name].wait()

    def kill_within(self, name: str, word: str) -> bool:
        """SIGKILL to the processes of a program whose command line has the word; whether there was one."""
        found = False
        for process in psutil.Process(self.programs[name].pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if word in " ".join(process.cmdline()):
                    process.kill()
                    found = True
        return found

    def events(self) -> list[dict[str, Any]]:
        """What the server has said so far."""
        path = self.folder / EVENTS
        lines = path.read_text().splitlines() if path.exists() else []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def asked(self, round_index: int) -> bool:
        """Whether clients have been asked to train in this round."""
        return any(event["event"] == "clients" and event["round_index"] >= round_index for event in self.events())

    def ended(self, round_index: int) -> bool:
        """Whether a round has ended."""
        return any(event["event"] == "round" and event["record"]["round_index"] >= round_index for event in self.events())

    def notes(self) -> str:
        """The sentences of the server, one a line."""
        return "\n".join(str(event["text"]) for event in self.events() if event["event"] == "note")

    def said(self, name: str) -> str:
        """What a program has printed."""
        path = self.place / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, true: Callable[[], object], what: str, alive: str = "server") -> None:
        """Wait until something is true.

        Raises:
            FederationError: it is not within `PATIENCE`, or the program `alive` has ended before.
        """
        end = time.monotonic() + PATIENCE
        while not true():
            if alive and self.programs[alive].poll() is not None and not true():
                raise FederationError(f"{alive} has ended before {what}: {self.said(alive)[-600:]}")
            if time.monotonic() > end:
                raise FederationError(f"not within {PATIENCE:g} s: {what}; the server: {self.said('server')[-600:]}")
            time.sleep(0.2)

    def end(self, name: str) -> int:
        """The exit code of a program that ends by itself."""
        self.wait(lambda: self.programs[name].poll() is not None, f"the end of {name}", alive="")
        return int(self.programs[name].returncode)

    def left(self) -> list[str]:
        """The command lines of processes that should be gone."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if process.info["status"] != psutil.STATUS_ZOMBIE and str(self.place) in line:
                found.append(line)
        return found


@contextlib.contextmanager
def deployed(place: Path, overrides: list[str]) -> Iterator[Deployed]:
    """A federation that is not there any more after the block."""
    made = Deployed(place, overrides)
    try:
        yield made
    finally:
        for program in made.programs.values():
            processes.end_tree(program.pid)
            program.wait()
