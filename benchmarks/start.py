"""How long a command takes to answer: help, and mistakes of the user, in processor seconds of a process of its own.

Seconds on the wall depend on who else uses the machine; those that the process computes (user and system) much less. The
limits: Python itself, and Python with Hydra, which every root script needs. Runs alternate between the commands. "Loads" names the
heavy packages that a command imports all the same (`python -X importtime`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from statistics import median

from benchmarks.harness import Options, Result, Table, Target, main
from fedmap.config import PROJECT
from fedmap.errors import FederationError

HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "flwr",
    "matplotlib",
    "fastapi",
    "uvicorn",
    "pandas",
    "scipy",
    "sklearn",
    "optuna",
    "captum",
)
LIMITS = {"python -c pass": ("-c", "pass"), "python -c 'import hydra'": ("-c", "import hydra")}
COMMANDS: dict[str, tuple[int, tuple[str, ...]]] = {  # with their exit status; {} is an empty folder
    "server_main.py --help": (0, ("server_main.py", "--help")),
    "server_main.py batch_sise=64": (1, ("server_main.py", "batch_sise=64")),
    "server_main.py batch_size=0": (2, ("server_main.py", "batch_size=0", "hydra.run.dir={}/run")),
    "client_main.py --help": (0, ("client_main.py", "--help")),
    "client_main.py clientid=1": (1, ("client_main.py", "clientid=1")),
    "client_main.py batch_size=0": (2, ("client_main.py", "batch_size=0", "hydra.run.dir={}/run")),
    "data_preparation.py --help": (0, ("data_preparation.py", "--help")),
    "data_preparation.py sorce=csv": (2, ("data_preparation.py", "sorce=csv")),
    "data_preparation.py path=/nowhere": (2, ("data_preparation.py", "path={}/nowhere")),
    "python -m fedmap --help": (0, ("-m", "fedmap", "--help")),
    "python -m fedmap predict --help": (0, ("-m", "fedmap", "predict", "--help")),
    "python -m fedmap report nowhere": (2, ("-m", "fedmap", "report", "{}/nowhere")),
    "python -m fedmap compare nowhere": (2, ("-m", "fedmap", "compare", "{}/nowhere")),
}
SECONDS = 2.0  # within which a command has to answer


def arguments_of(words: Sequence[str], folder: str) -> list[str]:
    """A command's words after `python`, with absolute paths, so that it can start in any folder."""
    placed = [word.replace("{}", folder) for word in words]
    return [str(PROJECT / placed[0]) if placed[0].endswith(".py") else placed[0], *placed[1:]]


def seconds_of(words: Sequence[str], status: int) -> float:
    """Processor seconds of one command.

    Raises:
        FederationError: it ended with another status.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, *arguments_of(words, folder)],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, ended, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
    if process.returncode != status:
        raise FederationError(f"{' '.join(words)} ended with status {process.returncode}, expected {status}")
    return used.ru_utime + used.ru_stime


def modules_of(words: Sequence[str]) -> set[str]:
    """All modules that a command imports."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        command = [sys.executable, "-X", "importtime", *arguments_of(words, folder)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def measure(options: Options) -> Result:
    """Every command several times, in turns."""
    repeats = 2 if options.quick else 9
    asked = {**{name: (0, words) for name, words in LIMITS.items()}, **COMMANDS}
    found: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(repeats + 1):
        for name, (status, words) in asked.items():
            seconds = seconds_of(words, status)
            if turn > 0:  # the first one reads files and writes bytecode
                found[name].append(seconds)
    loaded = {name: sorted(modules_of(words) & set(HEAVY)) for name, (_, words) in asked.items()}
    base = median(found["python -c 'import hydra'"])
    rows = [[name, median(times), min(times), max(times), median(times) / base, ", ".join(loaded[name])] for name, times in found.items()]
    columns = ("command", "median", "least", "most", "of 'import hydra'", "loads")
    return Result(
        settings={"repeats": repeats, "seconds": SECONDS},
        figures=found,
        tables=[Table("Processor seconds until a command has answered and ended", columns, rows)],
        targets=[Target(f"{name}: processor seconds", median(found[name]), SECONDS, "<=") for name in COMMANDS],
        details={"loads": loaded},
    )


if __name__ == "__main__":
    sys.exit(main("start", measure, seeds=1, description=__doc__ or ""))
