"""What the server's process holds during a run, by the number of clients.

    python -m benchmarks.server_memory [--quick] [--superlink] [--project FOLDER]

Whole runs of `server_main.py` with runtime=local and FedAvg on synthetic movies, all of the model trained, one step per client and round, so that
nothing but models takes room: a ResNet-18 (11.4 million parameters), and BERT-base with ResNet-18 (121 million), both from random weights.
The server's process is sampled every 10 ms. Counted is what the system cannot take back (RssAnon); what lies in files and the system may drop
(RssFile) is shown beside it. The anonymous memory is stated beyond what the same run takes with as many clients and a model of a hundred
thousand parameters: the interpreter, its libraries, the plots of the report. `--project` measures another working copy, to compare.

`--superlink` measures the same runs over a SuperLink, with fewer clients, as each is a process of its own: the server's app, and beside it the
SuperLink's process, which is Flower's and keeps every message until it has been fetched. Its base is a run of the smallest model with two clients.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.aggregation_models import tensors_of
from benchmarks.harness import Options, Result, Table, Target, main
from benchmarks.process_tree import running
from benchmarks.round_systems import environment_of
from benchmarks.wire_bytes import BERT_BASE, tokenizer
from fedmap.config import PROJECT
from fedmap.data.prepare import prepare
from fedmap.errors import FederationError
from fedmap.flower import processes

BASE = ("model=tiny", "dataset.image_size=32")
MODELS = {
    "11.4M": ("model=tiny", "model.vision_name=resnet18", "dataset.image_size=32"),
    "121M": (
        "model=bert_resnet18",
        "model.bert_name={bert}",
        "model.pretrained_text=false",
        "model.pretrained_vision=false",
        "model.max_text_length=16",
        "dataset.image_size=32",
    ),
}
MB = 1e6
ROOM = 12  # GB of memory and of disk that the largest run wants to itself
LINKED = (("11.4M", 4), ("121M", 2))  # over a SuperLink
_APP, _LINK = "flwr-serverapp", "flower-superlink"  # in command lines


def measure(options: Options) -> Result:
    """One run for each model and number of clients."""
    if not sys.platform.startswith("linux"):
        raise FederationError("memory is read from /proc, which only Linux has")
    cases = [("11.4M", 5), ("11.4M", 20)] if options.quick else [(name, clients) for name in MODELS for clients in (5, 20)]
    rows: list[list[object]] = []
    figures: dict[str, list[float]] = {}
    beyond: dict[tuple[str, int], float] = {}
    sizes = {name: 4 * sum(_size(shape) for shape, _ in tensors_of(name).values()) / MB for name, _ in cases}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        _prepare(folder)
        if options.extra.superlink:
            return _measure_linked(folder, LINKED[:1] if options.quick else LINKED, options)
        base: dict[int, float] = {}
        for clients in (5, 20):
            found = _peaks(folder, BASE, clients, options)
            base[clients] = found["RssAnon"]
            figures[f"base.{clients}.anonymous_mb"] = [found["RssAnon"]]
            rows.append(["tiny", clients, found["RssAnon"], found["RssFile"], 0.0, 0.0])
        for name, clients in cases:
            if name == "121M" and _free(folder) < ROOM:
                print(f"{name}, {clients} clients: left out, it wants {ROOM} GB of memory and disk")
                continue
            found = _peaks(folder, MODELS[name], clients, options)
            more = beyond[name, clients] = found["RssAnon"] - base[clients]
            figures[f"{name}.{clients}.anonymous_mb"] = [found["RssAnon"]]
            figures[f"{name}.{clients}.file_mb"] = [found["RssFile"]]
            rows.append([name, clients, found["RssAnon"], found["RssFile"], more, more / sizes[name]])
    targets = [
        Target(f"{name} x {clients}: MB beyond the base, 2 models and 300 MB stated", more, 2 * sizes[name] + 300, "<=")
        for (name, clients), more in beyond.items()
    ]
    targets += [
        Target(f"{name}, from 5 to 20 clients: growth, in models", (beyond[name, 20] - beyond[name, 5]) / size, 0.25, "<=")
        for name, size in sizes.items()
        if {(name, 5), (name, 20)} <= beyond.keys()
    ]
    columns = ("parameters", "clients", "anonymous, MB", "of files, MB", "beyond the base, MB", "in models")
    return Result(
        settings={"rounds": _rounds(options), "models_mb": sizes, "strategy": "fedavg", "project": str(options.extra.project.name)},
        figures=figures,
        tables=[Table("The server's process at its peak", columns, rows)],
        targets=targets,
        notes=[f"A model takes {', '.join(f'{size:.0f} MB ({name})' for name, size in sizes.items())}."],
    )


def _measure_linked(folder: Path, cases: Sequence[tuple[str, int]], options: Options) -> Result:
    """The same over a SuperLink."""
    rows: list[list[object]] = []
    figures: dict[str, list[float]] = {}
    targets = []
    base = 0.0
    for name, clients in (("tiny", 2), *cases):
        size = 4 * sum(_size(shape) for shape, _ in tensors_of(name).values()) / MB if name in MODELS else 0.0
        if name == "121M" and _free(folder) < ROOM:
            print(f"{name}, {clients} clients: left out, it wants {ROOM} GB of memory and disk")
            continue
        found = _linked_peaks(folder, MODELS.get(name, BASE), clients, options)
        base = base or found[_APP]["RssAnon"]
        more = found[_APP]["RssAnon"] - base
        for who, peaks in found.items():
            figures |= {f"{name}.{clients}.{who}.{key}_mb": [value] for key, value in peaks.items()}
        rows.append([name, clients, *found[_APP].values(), more, more / size if size else 0.0, found[_LINK]["RssAnon"]])
        if size:
            targets.append(Target(f"{name} x {clients}: MB beyond the base, 2 models and 300 MB stated", more, 2 * size + 300, "<="))
    columns = ("parameters", "clients", "anonymous, MB", "of files, MB", "beyond the base, MB", "in models", "SuperLink's process, MB")
    return Result(
        settings={"rounds": _rounds(options), "strategy": "fedavg", "project": str(options.extra.project.name)},
        figures=figures,
        tables=[Table("The server's app at its peak, over a SuperLink", columns, rows)],
        targets=targets,
        notes=[],
    )


def _rounds(options: Options) -> int:
    return 1 if options.quick else 2


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _free(folder: Path) -> float:
    """GB of memory that can be had, or of disk where that is less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    memory = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return min(memory, shutil.disk_usage(folder).free) / 1e9


def _prepare(folder: Path) -> None:
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text(json.dumps(BERT_BASE))
    (folder / "bert" / "tokenizer.json").write_bytes(tokenizer().read_bytes())
    for clients in (5, 20):
        prepare(
            root=str(folder / f"data-{clients}"),
            clients=clients,
            policy="iid",
            min_rows=1,
            seed=0,
            plot=False,
            source="synthetic",
            num_movies=10 * clients,
        )


def _peaks(folder: Path, model: Sequence[str], clients: int, options: Options) -> dict[str, float]:
    """MB at the peak, by key of /proc/<pid>/status; a run that fails is an error."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    own = (f"dataset.root={folder}/data-{clients}", "runtime=local", "runtime.workers=1", f"clients_per_round={clients}")
    command = [sys.executable, "server_main.py", *_words(folder, model, options), *own, f"hydra.run.dir={folder}/run"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=options.extra.project, stdout=log, stderr=log)
        peaks = {"RssAnon": 0.0, "RssFile": 0.0}
        while server.poll() is None:
            for key, value in _status(server.pid).items():
                peaks[key] = max(peaks[key], value)
            time.sleep(0.01)
    if server.returncode != 0:
        raise FederationError(f"the run ended with status {server.returncode}: {(folder / 'log').read_text(errors='replace')[-1500:]}")
    print(f"{' '.join(model[:2])}, {clients} clients: {peaks}", flush=True)
    return peaks


def _words(folder: Path, model: Sequence[str], options: Options) -> list[str]:
    """What all runs with a model are told."""
    return [
        *(word.format(bert=folder / "bert") for word in model),
        "strategy=fedavg",
        f"num_rounds={_rounds(options)}",
        "training.num_updates=1",
        "training.optimizer=sgd",
        "batch_size=2",
        "service.enabled=false",
        "tracking=none",
        "hooks.after_round=null",
    ]


def _linked_peaks(folder: Path, model: Sequence[str], clients: int, options: Options) -> dict[str, dict[str, float]]:
    """The same of the server's app and of the SuperLink, in a run with real clients."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "run").mkdir()
    address = f"127.0.0.1:{processes.free_port()}"
    words = [*_words(folder, model, options), f"dataset.root={folder}/data-5", f"num_clients={clients}"]
    words += [f"clients_per_round={clients}", "runtime=superlink", f"runtime.address={address}"]
    peaks = {who: {"RssAnon": 0.0, "RssFile": 0.0} for who in (_APP, _LINK)}
    known: dict[int, str] = {}
    with contextlib.ExitStack() as stack:

        def start(name: str, script: str, *own: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, str(options.extra.project / script), *words, *own, f"hydra.run.dir={folder}/run/{name}"]
            return stack.enter_context(running(command, folder / f"{name}.log", options.extra.project, environment_of()))

        server = start("server", "server_main.py")
        nodes = [start(f"client_{k}", "client_main.py", f"client_id={k}", "client.enabled=false") for k in range(clients)]
        looked = 0.0
        while server.poll() is None:
            if any(node.poll() not in (None, 0) for node in nodes):
                raise FederationError(f"a client has failed: {processes.tail(folder / 'client_0.log')}")
            if time.monotonic() - looked > 1.0:
                looked, known = time.monotonic(), _members(server.pid)
            for pid, who in known.items():
                for key, value in _status(pid).items():
                    peaks[who][key] = max(peaks[who][key], value)
            time.sleep(0.01)
        if server.returncode != 0 or not peaks[_APP]["RssAnon"]:
            raise FederationError(f"the run ended with status {server.returncode}: {processes.tail(folder / 'server.log')}")
    print(f"{' '.join(model[:2])}, {clients} clients over a SuperLink: {peaks}", flush=True)
    return peaks


def _members(root: int) -> dict[int, str]:
    """The server's app and the SuperLink among the descendants of a process, by pid."""
    found: dict[int, str] = {}
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            who = next((who for who in (_APP, _LINK) if any(Path(word).name == who for word in words[:3])), None)
            if who is not None:
                found[process.pid] = who
    return found


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
    parser.add_argument("--superlink", action="store_true", help="the server's app over a SuperLink, in a result file of its own")
    parser.add_argument("--project", type=Path, default=PROJECT, help="the working copy that is measured (default: this one)")


if __name__ == "__main__":
    name = "server_memory_superlink" if "--superlink" in sys.argv else "server_memory"
    sys.exit(main(name, measure, seeds=1, description=__doc__ or "", arguments=arguments))
