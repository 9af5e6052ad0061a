"""Short real federations on the digits example, for tests of the runtimes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from fedmap.config import PROJECT, compose_and_resolve, parse, save
from fedmap.flower import doors
from fedmap.flower.federation import Server
from fedmap.history import RunHistory
from fedmap.outputs import RunFolder, read_history
from fedmap.progress import Progress

DIGITS = ("model=digits", "dataset=digits", "tracking=none", "training.device=cpu")


class Notes(Progress):
    """A progress that keeps the sentences it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def run_locally(folder: Path, *overrides: str, workers: int = 0, progress: Progress | None = None) -> RunHistory:
    """A whole run of `runtime=local` on the digits within this process; its results lie in the folder."""
    tree = compose_and_resolve("config", ["runtime=local", *DIGITS, f"runtime.workers={workers}", *overrides])
    folder.mkdir(parents=True, exist_ok=True)
    save(tree, folder / "run.yaml")
    doors._serve_locally(parse(tree), folder / "run.yaml", RunFolder(folder), progress or Notes(), Server)
    return read_history(folder)


def model_bytes(folder: Path, which: str = "last") -> bytes:
    """The saved model of a run's folder, bit for bit."""
    return (folder / which / "model.safetensors").read_bytes()


def start(command: Sequence[str | Path], log: Path, cwd: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start a program in the background with its output in a file."""
    cwd.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", **environment},
        )


def script(name: str, *overrides: str, code: Path = PROJECT) -> list[str]:
    """The command of one of the root scripts of a copy of the code; a server without its page, unless the overrides say something of it."""
    quiet = ["service.enabled=false"] if name == "server_main.py" and not any(o.startswith("service.") for o in overrides) else []
    return [sys.executable, str(code / name), *quiet, *overrides]


def wait_for(what: Callable[[], Any], seconds: float, describe: Callable[[], str]) -> Any:
    """Wait until `what()` is true and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(0.2)
    raise AssertionError(f"nothing within {seconds:g} s; {describe()}")


def processes_that_name(*words: str) -> list[str]:
    """The command lines of running processes, other than this one, that contain one of the words."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.info["pid"] != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE and any(word in line for word in words):
            found.append(line)
    return found
