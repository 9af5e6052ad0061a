"""A long federation: does the server's memory, its disk, its open files and the seconds of a round stay as they are?

300 rounds with 50 clients on the digits, in the server's own process (`runtime.workers=0`), so that whatever leaks in the server, the
clients or the messages between them is seen. Before each round the resident memory, the open files and threads of the process are
recorded, after it the bytes of the run's folder and the processor seconds of the round. `--deployed N` does N rounds over a
SuperLink with two clients instead and looks at the SuperLink and the server's app.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.fault_ground.deployed import deployed
from benchmarks.fault_ground.local import COMMON
from benchmarks.fault_ground.network import DEPLOYED
from benchmarks.harness import Options, Result, Table, Target, main, median
from fedmap.config import PROJECT, compose_and_resolve, parse, save
from fedmap.errors import FederationError
from fedmap.history import RoundRecord
from fedmap.progress import Progress

IMAGE = PROJECT / "docs" / "images" / "soak.png"
WARM = 0.2  # the share of the rounds that warm up: caches, pools, the allocator's arenas
_OWN = ("runtime.workers=0", "dataset.num_clients=50", "num_epochs=1", "strategy=scaffold", "training.num_updates=4")


def serve(folder: Path, rounds: int) -> None:
    """The federation, in a process of its own; writes one line per round to soak.jsonl in the folder."""
    from fedmap.flower import doors
    from fedmap.flower.events import EVENTS, EventProgress, Told
    from fedmap.flower.federation import Server
    from fedmap.outputs import RunFolder

    os.chdir(folder)
    tree = compose_and_resolve("config", [*COMMON, *_OWN, f"num_rounds={rounds}", "tracking=tensorboard"])
    run = folder / "run"
    run.mkdir()
    save(tree, run / "run.yaml")
    with (folder / "soak.jsonl").open("w", buffering=1) as file:
        progress = Told(_Recorder(run, folder / ".fedmap", file), EventProgress(run / EVENTS))
        doors._serve_locally(parse(tree), run / "run.yaml", RunFolder(run), progress, Server)


class _Recorder(Progress):
    def __init__(self, run: Path, memories: Path, file: Any) -> None:
        self.run, self.memories, self.file, self.me, self.last = run, memories, file, psutil.Process(), time.process_time()

    def round_done(self, record: RoundRecord) -> None:
        now = time.process_time()
        parts = {"round": record.round_index, "cpu": now - self.last, "rss": self.me.memory_info().rss, "files": self.me.num_fds()}
        parts |= {"threads": self.me.num_threads(), "disk": size_of(self.run), "memories": size_of(self.memories)}
        parts |= {"checkpoints": size_of(self.run / "checkpoints")}
        self.file.write(json.dumps(parts) + "\n")
        self.last = time.process_time()  # looking at the folder is no part of the round


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def slope(rounds: Sequence[float], values: Sequence[float]) -> float:
    """By how much a value grows per round: the slope of the least-squares line."""
    return float(np.polyfit(np.asarray(rounds, dtype=float), np.asarray(values, dtype=float), 1)[0])


def measure(options: Options) -> Result:
    """Run it and look at the curves."""
    if options.extra.deployed:
        return _measure_deployed(options.extra.deployed)
    rounds = 30 if options.quick else options.extra.rounds
    with tempfile.TemporaryDirectory(prefix="fedmap-soak-") as place:
        command = [sys.executable, "-m", "benchmarks.soak", "serve", place, str(rounds)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        if done.returncode:
            raise FederationError(f"the federation ended with exit code {done.returncode}: {done.stderr[-600:]}")
        rows = [json.loads(line) for line in (Path(place) / "soak.jsonl").read_text().splitlines()][1:]
    warm = rows[int(WARM * len(rows)) :]
    at = [row["round"] for row in warm]
    growth = slope(at, [row["rss"] for row in warm]) / 1e6
    third = len(warm) // 3
    early, late = (median([row["cpu"] for row in part]) for part in (warm[:third], warm[-third:]))
    disk = slope(at, [row["disk"] - row["checkpoints"] for row in warm]) / 1e3
    if not options.quick:
        draw(rows, IMAGE)
    targets = [
        Target("memory: growth per round after warm-up, MB", growth, 0.1 if not options.quick else 0.5, "<="),
        Target("processor seconds of a round: last third against first third", late / early, 1.15 if not options.quick else 1.5, "<="),
        Target("open files: more at the end than after warm-up", rows[-1]["files"] - warm[0]["files"], 0, "<="),
        Target("threads: more at the end than after warm-up", rows[-1]["threads"] - warm[0]["threads"], 0, "<="),
        Target("client memories: bytes at the end against after warm-up", rows[-1]["memories"] / warm[0]["memories"], 1.05, "<="),
    ]
    table = [(row["round"], row["rss"] / 1e6, row["cpu"], row["disk"] / 1e6, row["checkpoints"] / 1e6, row["files"]) for row in _some(rows)]
    return Result(
        settings={"overrides": [*COMMON, *_OWN], "rounds": rounds},
        figures={
            "rss_mb": [row["rss"] / 1e6 for row in rows],
            "round_cpu_seconds": [row["cpu"] for row in rows],
            "rss_growth_mb_per_round": [growth],
            "disk_growth_kb_per_round": [disk],
            "checkpoints_mb": [row["checkpoints"] / 1e6 for row in rows],
        },
        tables=[Table("Soak", ("round", "resident MB", "processor s", "folder MB", "checkpoints MB", "open files"), table)],
        targets=targets,
        details={"rounds": rows},
    )


def _some(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    step = max(len(rows) // 6, 1)
    return [*rows[:-1:step], rows[-1]]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Memory, time and disk over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    at = [row["round"] for row in rows]
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    curves = (
        ("resident memory, MB", [row["rss"] / 1e6 for row in rows]),
        ("processor seconds of a round", [row["cpu"] for row in rows]),
        ("the run's folder, MB", [row["disk"] / 1e6 for row in rows]),
    )
    for axis, (title, values) in zip(axes, curves, strict=True):
        axis.plot(at, values, linewidth=1.5)
        axis.set(title=title, xlabel="round", ylim=(0, max(values) * 1.15))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _measure_deployed(rounds: int) -> Result:
    """The same over a SuperLink, with few clients and rounds: each message costs a process there."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fedmap-soak-") as place:
        own = ["dataset.num_clients=2", "num_clients=2", f"num_rounds={rounds}"]
        with deployed(Path(place), [*DEPLOYED, *own]) as federation:
            federation.server()
            federation.client(0)
            federation.client(1)
            for index in range(1, rounds + 1):
                federation.wait(lambda number=index: federation.ended(number), f"round {index}")
                rows.append({"round": index, **_memory(federation.programs["server"].pid)})
            code = federation.end("server")
    warm = rows[int(0.3 * len(rows)) :]
    kinds = [kind for kind in ("superlink", "serverapp") if all(kind in row for row in warm)]
    growth = {kind: slope([row["round"] for row in warm], [row[kind] for row in warm]) / 1e6 for kind in kinds}
    table = [(row["round"], *(row.get(kind, 0) / 1e6 for kind in kinds)) for row in _some(rows)]
    return Result(
        settings={"overrides": [*DEPLOYED, *own]},
        figures={f"{kind}_growth_mb_per_round": [value] for kind, value in growth.items()},
        tables=[Table("Soak over a SuperLink: resident MB", ("round", *kinds), table)],
        targets=[
            Target("exit code of the server", code, 0, "=="),
            *(Target(f"{kind}: growth per round, MB", value, 1.0, "<=") for kind, value in growth.items()),
        ],
        details={"rounds": rows},
    )


def _memory(server: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for process in psutil.Process(server).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            kind = "serverapp" if "flwr-serverapp" in line else "superlink" if "flower-superlink" in line else ""
            if kind:
                found[kind] = max(found.get(kind, 0), process.memory_info().rss)
    return found


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=300, help="how many rounds (default 300)")
    parser.add_argument("--deployed", type=int, default=0, metavar="N", help="N rounds over a SuperLink instead")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main("soak", measure, seeds=1, description=__doc__ or "", arguments=_arguments))
