"""The systems that `benchmarks.round` compares, each run whole in processes of its own: the peer, ours local, ours over a SuperLink."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.make_peer_venv import python_of
from benchmarks.process_tree import Recorder, running
from benchmarks.round_ground import Ground, save_initial
from fedmap.build import build_data, cache_dir, prepare_split, training_options
from fedmap.config import PROJECT
from fedmap.errors import FederationError
from fedmap.flower.processes import free_port, wait_until_answers
from fedmap.local.training import evaluate

_APPLICATION = Path(__file__).with_name("peer_application.py")
_PATIENCE = 3600.0


@dataclass(frozen=True)
class Timing:
    """One run.

    Attributes:
        cpu: processor seconds of each round, of all processes.
        wall: seconds of each round.
        whole_cpu: processor seconds from the first process's start to the last one's end.
        logits: of the last model on the server's test rows, [n, C].
        labels: of these rows.
        peak: the largest resident set of each process, in MB, by what it is.
        shares: processor seconds of each round, by what the process is; about 0.3 s of each process that ends within it are missing.
        counts: what was counted, by who; see the sources.
    """

    cpu: list[float]
    wall: list[float]
    whole_cpu: float
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    peak: dict[str, float] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Mean binary cross-entropy."""
        x, y = self.logits.astype(np.float64), self.labels
        return float(np.mean(np.logaddexp(0, x) - x * y))

    @property
    def precision(self) -> float:
        """Mean over the labels of average precision, which needs no threshold."""
        from sklearn.metrics import average_precision_score

        present = self.labels.any(axis=0)
        return float(average_precision_score(self.labels[:, present], self.logits[:, present], average="macro"))


def environment_of(**more: str) -> dict[str, str]:
    """This process's environment for a system's processes: one thread each, no network, no telemetry."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "FLWR_TELEMETRY_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **quiet, "HF_HUB_OFFLINE": "1", **more}


def run_peer(ground: Ground, folder: Path) -> Timing:
    """The peer's application: a server and its clients.

    Raises:
        FederationError: its environment is missing, or one of its processes failed.
    """
    python = python_of()
    if not python.is_file():
        raise FederationError(f"{python} is missing: the peer has no environment; make it with python -m benchmarks.make_peer_venv")
    folder.mkdir(parents=True)
    save_initial(ground, folder)
    settings = ground.settings(folder, free_port())
    file = folder / "settings.json"
    file.write_text(json.dumps(settings))
    environment = environment_of(PYTHONPATH=str(PROJECT))
    commands = {"server": [python, _APPLICATION, "server", file]}
    commands |= {f"client {k}": [python, _APPLICATION, "client", file, k] for k in range(ground.clients)}

    def moments() -> list[tuple[float, float]]:
        marks = lines_of(folder / "marks.jsonl")
        at = {(m["what"], m["round"]): m["time"] for m in marks if m["who"] == "server"}
        return [(at["begin", k], at["end", k]) for k in range(1, ground.num_rounds + 1)]

    recorder = _run(commands, folder, environment, f"127.0.0.1:{settings['port']}")
    rounds = moments()
    cpu, wall = _rounds(recorder, rounds)
    scored = np.load(folder / "scores.npz")
    counts: dict[str, Mapping[str, int]] = {}
    for mark in lines_of(folder / "marks.jsonl"):
        counts[f"{mark['who']} {mark['what']} {mark['round']}"] = mark["counts"]
    labels = scored["labels"].astype(np.uint8)
    return Timing(cpu, wall, recorder.readings[-1][1], scored["logits"], labels, _peaks(recorder), _shares(recorder, rounds), counts)


def run_ours(ground: Ground, folder: Path, superlink: bool) -> Timing:
    """Our program by its root scripts.

    Raises:
        FederationError: one of its processes failed.
    """
    folder.mkdir(parents=True)
    out = folder / "run"
    common = [*ground.overrides(), f"dataset.cache_dir={folder / 'cache'}"]
    server = [sys.executable, PROJECT / "server_main.py", *common, f"hydra.run.dir={out}"]
    commands: dict[str, Sequence[Any]] = {"server": [*server, "runtime=local"]}
    if superlink:
        address = f"runtime.address=127.0.0.1:{free_port()}"
        commands = {"server": [*server, address]}
        client = [sys.executable, PROJECT / "client_main.py", *common, address, "client.enabled=false"]
        for k in range(ground.clients):
            commands[f"client {k}"] = [*client, f"client_id={k}", f"hydra.run.dir={folder / f'client_{k}'}"]
    recorder = _run(commands, folder, environment_of())
    events = lines_of(out / "events.jsonl")
    begun = {event["round_index"]: event["time"] for event in events if event["event"] == "clients"}
    ended = {event["record"]["round_index"]: event["time"] for event in events if event["event"] == "round"}
    rounds = [(begun[k], ended[k]) for k in sorted(begun)]
    cpu, wall = _rounds(recorder, rounds)
    logits, labels = _scores(ground, out / "last", folder)
    return Timing(cpu, wall, recorder.readings[-1][1], logits, labels, _peaks(recorder), _shares(recorder, rounds))


def _scores(ground: Ground, saved: Path, folder: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    from models import MMIMDbFusionModel

    config = ground.config(f"dataset.cache_dir={folder / 'cache'}")
    model = MMIMDbFusionModel.from_pretrained(saved)
    split = prepare_split(model, build_data(config).server()["test"], cache_dir(config))
    found = evaluate(model, split, training_options(config))
    return found.logits, found.labels


def _run(commands: Mapping[str, Sequence[Any]], folder: Path, environment: Mapping[str, str], address: str = "") -> Recorder:
    """Run programs to their ends; with an address, all but the first start when something listens there."""
    recorder = Recorder()
    with contextlib.ExitStack() as stack:
        stack.enter_context(recorder)
        roots = {}
        for name, command in commands.items():
            if roots and address:
                wait_until_answers(address, next(iter(roots.values())), folder / "server" / "log")
            place = folder / name.replace(" ", "_") / "cwd"
            place.mkdir(parents=True, exist_ok=True)
            root = stack.enter_context(running(command, place.parent / "log", place, environment))
            roots[name] = root
            recorder.pids.append(root.pid)
        end = time.monotonic() + _PATIENCE
        while any(root.poll() is None for root in roots.values()):
            failed = [name for name, root in roots.items() if root.poll() not in (None, 0)]
            if failed or time.monotonic() > end:
                log = (folder / (failed or list(roots))[0].replace(" ", "_") / "log").read_text(errors="replace")
                raise FederationError(f"{', '.join(failed) or 'nobody'} failed within {_PATIENCE:g} s:\n{log[-3000:]}")
            time.sleep(0.05)
    return recorder


def _rounds(recorder: Recorder, moments: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    cpu = [recorder.at(end) - recorder.at(begin) for begin, end in moments]
    return cpu, [end - begin for begin, end in moments]


_KINDS = {  # of processes, by a word of their command line
    "launcher.py": "flwr-clientapp",
    "server_main": "server_main",
    "client_main": "client_main",
    "flwr-serverapp": "flwr-serverapp",
    "flwr-clientapp": "flwr-clientapp",
    "flower-superlink": "flower-superlink",
    "flower-supernode": "flower-supernode",
    "flower-superexec": "flower-superexec",
    "fedmap.flower.resident": "client's resident",
    "spawn_main": "client's worker",
}


def _kind(words: str) -> str:
    if "process_tree" in words:
        return ""
    if "peer_application" in words:
        return "peer server" if " server " in words else "peer client"
    return next((kind for word, kind in _KINDS.items() if word in words), "")


def _peaks(recorder: Recorder) -> dict[str, float]:
    """Megabytes of the largest process of each kind."""
    found: dict[str, float] = {}
    for pid, size in recorder.peak.processes.items():
        if kind := _kind(recorder.peak.names[pid]):
            found[kind] = max(found.get(kind, 0.0), size / 1e6)
    return found


def _shares(recorder: Recorder, moments: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    """Processor seconds of each kind of process in each round."""
    found: dict[str, list[float]] = {}
    for place, (begin, end) in enumerate(moments):
        for pid, seconds in recorder.between(begin, end).items():
            if (kind := _kind(recorder.peak.names[pid])) and seconds:
                found.setdefault(kind, [0.0] * len(moments))[place] += seconds
    return found


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A file of one JSON object per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
