"""Federations of real programs on loopback: a place that starts them, reads what they say, and leaves none of them behind."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from fedmap.config import PROJECT
from fedmap.flower import processes
from tests.federations import DIGITS, processes_that_name, script, start, wait_for


class Place:
    """A port and a folder of their own, and every program that was started there.

    Attributes:
        folder: for what programs write; a program's output is `<name>.log`, a server's run `run`, a client's run `out_<k>`.
        common: settings of every program.
        environment: environment variables of every program.
        code: the copy of the project that is run.
    """

    def __init__(self, folder: Path, common: Sequence[str] = ()) -> None:
        self.folder = folder
        self.common = list(common)
        self.environment: dict[str, str] = {}
        self.code = PROJECT
        self.port = processes.free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a program."""
        self.started[name] = start(command, self.folder / f"{name}.log", self.folder / name, **self.environment, **environment)
        return self.started[name]

    def server(self, *overrides: str, name: str = "server", run: str = "run", **environment: str) -> subprocess.Popen[bytes]:
        """Start server_main.py."""
        common = [*DIGITS, *self.common, *self._address(overrides), f"hydra.run.dir={self.folder / run}"]
        return self.start(name, script("server_main.py", *common, *overrides, code=self.code), **environment)

    def client(self, client_id: int, *overrides: str, name: str = "", **environment: str) -> subprocess.Popen[bytes]:
        """Start client_main.py; it is called client_<k> unless another name is given."""
        name = name or f"client_{client_id}"
        common = [*DIGITS, *self.common, *self._address(overrides), f"client_id={client_id}"]
        front = [] if any(o.startswith("client.port=") for o in overrides) else ["client.port=0"]
        run = f"hydra.run.dir={self.folder / name.replace('client', 'out')}"
        return self.start(name, script("client_main.py", *common, *front, run, *overrides, code=self.code), **environment)

    def _address(self, overrides: Sequence[str]) -> list[str]:
        return [] if any(o.startswith("runtime.address=") for o in overrides) else [f"runtime.address={self.address}"]

    def said(self, name: str) -> str:
        """What a program has said so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def everything_said(self) -> str:
        """The end of what every program has said, for the message of a test that fails."""
        return "\n".join(f"--- {name}\n{self.said(name)[-3000:]}" for name in self.started)

    def wait_until_said(self, name: str, pattern: str, seconds: float = 240, times: int = 1) -> re.Match[str]:
        """Wait until a program has said something; returns the last time."""

        def found() -> list[re.Match[str]]:
            matches = list(re.finditer(pattern, self.said(name)))
            return matches if len(matches) >= times else []

        last: re.Match[str] = wait_for(found, seconds, lambda: f"{pattern!r} x {times} by {name}\n{self.everything_said()}")[-1]
        return last

    def end(self, name: str, seconds: float) -> int:
        """The exit code of a program that ends by itself."""
        wait_for(lambda: self.started[name].poll() is not None, seconds, self.everything_said)
        return self.started[name].returncode

    def kill(self, name: str) -> None:
        """End a program and everything that it has started without asking, as a machine that loses power does."""
        root = psutil.Process(self.started[name].pid)
        for process in [root, *root.children(recursive=True)]:
            process.kill()
        self.started[name].wait()

    def homes(self) -> list[Path]:
        """Flower's folders of the programs started here; each program removes its own."""
        return sorted((self.code / ".fedmap" / "flower").glob(f"{self.folder.name}_*"))

    def left_behind(self) -> list[str]:
        """Command lines of processes of this place that still run."""
        return processes_that_name(f":{self.port}", str(self.folder))

    def close(self) -> None:
        """End every program, and remove what those that were killed have left."""
        for process in self.started.values():
            processes.end_tree(process.pid)
            process.wait()
        for home in self.homes():
            shutil.rmtree(home, ignore_errors=True)
