"""What the server's process holds during a run, by the number of clients.

    python -m benchmarks.server_memory [--quick] [--project FOLDER]

Whole runs of `server_main.py` with runtime=local and FedAvg on synthetic movies: a ResNet-18 and a fusion head are trained, 11.4 million parameters, one step
per client and round, so that nothing but models takes room. The server's process is sampled every 10 ms. Counted is what the system cannot take back
(RssAnon); what lies in files and the system may drop (RssFile) is shown beside it. Both are stated beyond what the same run takes with a model of
a hundred thousand parameters: the interpreter and its libraries. `--project` measures another working copy, to compare.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.aggregation_models import tensors_of
from benchmarks.harness import Options, Result, Table, Target, main
from fedmap.config import PROJECT
from fedmap.data.prepare import prepare
from fedmap.errors import FederationError

LARGE = ("model=minilm_resnet18", "dataset.image_size=64")
SMALL = ("model=tiny", "dataset.image_size=32")
MB = 1e6


def measure(options: Options) -> Result:
    """One run for each number of clients."""
    counts = (5, 20)
    model = 4 * sum(_size(shape) for shape, _ in tensors_of("11.4M").values()) / MB
    base = _peaks(SMALL, 5, options)
    rows: list[list[object]] = [["tiny", 5, base["RssAnon"], base["RssFile"], 0.0]]
    figures = {"base.anonymous_mb": [base["RssAnon"]]}
    beyond = {}
    for clients in counts:
        found = _peaks(LARGE, clients, options)
        beyond[clients] = found["RssAnon"] - base["RssAnon"]
        figures[f"11.4M.{clients}.anonymous_mb"] = [found["RssAnon"]]
        figures[f"11.4M.{clients}.file_mb"] = [found["RssFile"]]
        rows.append(["11.4M", clients, found["RssAnon"], found["RssFile"], beyond[clients] / model])
    return Result(
        settings={"rounds": 1 if options.quick else 2, "model_mb": model, "strategy": "fedavg", "project": str(options.extra.project.name)},
        figures=figures,
        tables=[
            Table(
                "The server's process at its peak, MB", ("parameters", "clients", "anonymous", "of files", "models beyond the base"), rows
            )
        ],
        targets=[
            Target("20 clients: MB beyond the base, 2 models and 300 MB stated", beyond[20], 2 * model + 300, "<="),
            Target("from 5 to 20 clients: growth, in models", (beyond[20] - beyond[5]) / model, 1.0, "<="),
        ],
        notes=[f"A model takes {model:.0f} MB."],
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _peaks(model: tuple[str, ...], clients: int, options: Options) -> dict[str, float]:
    """MB at the peak, by key of /proc/<pid>/status; a run that fails is an error."""
    if not sys.platform.startswith("linux"):
        raise FederationError("memory is read from /proc, which only Linux has")
    with tempfile.TemporaryDirectory() as folder:
        prepare(
            root=f"{folder}/data",
            clients=clients,
            policy="iid",
            min_rows=1,
            seed=0,
            plot=False,
            source="synthetic",
            num_movies=max(200, 20 * clients),
        )
        command = [
            sys.executable,
            "server_main.py",
            *model,
            f"dataset.root={folder}/data",
            f"hydra.run.dir={folder}/run",
            "strategy=fedavg",
            "runtime=local",
            "runtime.workers=1",
            f"num_rounds={1 if options.quick else 2}",
            "training.num_updates=1",
            "batch_size=8",
            f"clients_per_round={clients}",
            "service.enabled=false",
            "tracking=none",
            "hooks.after_round=null",
        ]
        with open(f"{folder}/log", "wb") as log:
            server = subprocess.Popen(command, cwd=options.extra.project, stdout=log, stderr=log)
            peaks = {"RssAnon": 0.0, "RssFile": 0.0}
            while server.poll() is None:
                for key, value in _status(server.pid).items():
                    peaks[key] = max(peaks[key], value)
                time.sleep(0.01)
        if server.returncode != 0:
            raise FederationError(
                f"the run ended with status {server.returncode}: {Path(folder, 'log').read_text(errors='replace')[-1500:]}"
            )
        print(f"{model[0]}, {clients} clients: {peaks}", flush=True)
        return peaks


def _status(pid: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {
        key: int(rest.split()[0]) * 1024 / MB for key, _, rest in (line.partition(":") for line in lines) if key in ("RssAnon", "RssFile")
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--project", type=Path, default=PROJECT, help="the working copy that is measured (default: this one)")


if __name__ == "__main__":
    sys.exit(main("server_memory", measure, seeds=1, description=__doc__ or "", arguments=arguments))
