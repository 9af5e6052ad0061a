"""Many small clients on one machine: FedMAP's local runtime beside Flower's Ray simulation and blazefl, on one task.

A small MLP (4,810 parameters) and CNN (9,802); each client holds 40 rows and takes four steps of plain SGD per round, and all
clients take part in every round. Model, initial weights, rows, batches, steps, optimiser and rounds are the same; the order of the
rows is each system's own, so that accuracies agree within their spread and not bit for bit. The peers are used as their
documentation shows, from an environment of their own (`python -m benchmarks.make_scale_venv`).

Ours runs twice: as it is, and with 32 clients trained in one pass (`runtime.clients_at_once=32`; the systems ending in "-together"). That
is off by default, since it changes the last bits of results; the targets are judged with it, and the table of ratios shows both.

Beside them the head of the fusion model on features of frozen towers, with 500 clients of 40 movies each.

Each run is a process of its own; the systems take turns. What is compared is the processor time of the whole process tree per
client and round, and the clients per second of wall time, both from the second round on: the first one warms up. The seconds of other
programs on the machine stretch the wall, and hardly the processor time.

    python -m benchmarks.scale [--quick] [--seeds N] [--largest N] [--systems ...]
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Result, Table, Target, main, median
from benchmarks.make_scale_venv import ENVIRONMENT, FOLDER, python_of
from benchmarks.scale_clock import Job
from benchmarks.scale_movies import write_features
from benchmarks.scale_ours import HEADS
from fedmap.config import PROJECT
from fedmap.errors import FederationError

OURS = {
    "fedmap": (2, 1),
    "fedmap-inside": (0, 1),
    "fedmap-together": (2, 32),
    "fedmap-inside-together": (0, 32),
}  # workers, clients at once
BLAZEFL = ("blazefl-serial", "blazefl-threads", "blazefl-processes")
SYSTEMS = (*OURS, "ray", *BLAZEFL)
TASKS = ("mlp", "cnn")
QUICK_SYSTEMS = ("fedmap-inside", "fedmap-together", "ray", "blazefl-serial")
SIZES = {"fedmap-inside": (100, 500, 1000, 2000), "fedmap": (500, 2000), "fedmap-together": (500, 2000), "blazefl-serial": (500, 2000)}
UPDATE = 4 * 4810  # bytes of the MLP
ROW = 4 * 64 + 8 + 10  # bytes of one of its rows: inputs, class, labels
LIMIT = 3600.0  # seconds


def run(job: Job) -> dict[str, Any]:
    """One run in a process of its own, and what it took.

    Raises:
        FederationError: it failed; with the end of what it said.
    """
    ours = job.system in OURS
    python, module = (sys.executable, "benchmarks.scale_ours") if ours else (str(python_of()), "benchmarks.scale_peers")
    with tempfile.TemporaryDirectory(prefix="fedmap-scale-") as folder:
        out, log = Path(folder) / "out.json", Path(folder) / "log"
        with log.open("wb") as said:
            command = [python, "-m", module, json.dumps(asdict(job)), str(out)]
            try:
                subprocess.run(command, cwd=PROJECT, stdout=said, stderr=subprocess.STDOUT, check=True, timeout=LIMIT)
            except subprocess.SubprocessError as error:
                raise FederationError(f"{job} failed: {error!r:.100}\n{log.read_text(errors='replace')[-2000:]}") from error
        found: dict[str, Any] = json.loads(out.read_text())
    print(describe(found), flush=True)
    return found


def job_of(system: str, task: str, clients: int, rounds: int, seed: int) -> Job:
    """A job as each system wants it."""
    job = Job(system, task, clients, rounds, seed)
    if system not in OURS:
        return job
    workers, at_once = OURS[system]
    return replace(job, workers=workers, at_once=at_once)


def steady(found: Mapping[str, Any], what: str) -> list[float]:
    """Per client, what each round from the second on took of "wall" or "processor", in milliseconds."""
    clients, marks = found["job"]["clients"], found[what]
    return [(after - before) / clients * 1e3 for before, after in itertools.pairwise(marks[1:])]


def describe(found: Mapping[str, Any]) -> str:
    """One line."""
    job = found["job"]
    return (
        f"{job['system']:22s} {job['task']} {job['clients']:5d} clients, seed {job['seed']}: processor {median(steady(found, 'processor')):8.3f} ms, "
        f"wall {median(steady(found, 'wall')):8.3f} ms per client and round, {found['memory'][-1]:6.0f} MB, accuracy {found['accuracy'][-1]:.3f}"
    )


def measure(options: Options) -> Result:
    """All runs, taking turns."""
    if not python_of().is_file():
        raise FederationError(
            f"the peers are not installed in {FOLDER}; make their environment with `python -m benchmarks.make_scale_venv`"
        )
    seeds, quick = options.seed_list(), options.quick
    systems: Sequence[str] = options.extra.systems or (QUICK_SYSTEMS if quick else SYSTEMS)
    clients, rounds = (50, 3) if quick else (100, 4)
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for seed in seeds:
        for task in TASKS[:1] if quick else TASKS:
            for system in systems:
                runs[task, system].append(run(job_of(system, task, clients, rounds, seed)))
    least, largest = (100, 100) if quick else (0, max(max(sizes) for sizes in SIZES.values()))
    largest = options.extra.largest or largest
    growth = {
        system: [run(job_of(system, "mlp", size, 3, seeds[0])) for size in sizes if least <= size <= largest]
        for system, sizes in SIZES.items()
        if system in systems
    }
    head = _head(quick, seeds[0]) if "fedmap-inside" in systems else None
    figures: dict[str, list[float]] = {}
    for (task, system), found in runs.items():
        figures[f"processor_ms.{task}.{system}"] = [value for one in found for value in steady(one, "processor")]
        figures[f"clients_per_second.{task}.{system}"] = [1e3 / value for one in found for value in steady(one, "wall")]
        figures[f"accuracy.{task}.{system}"] = [one["accuracy"][-1] for one in found]
        figures[f"memory_mb.{task}.{system}"] = [max(one["memory"]) for one in found]
    for system, found in growth.items():
        for one in found:
            size = one["job"]["clients"]
            figures[f"growth.processor_ms.{system}.{size}"] = steady(one, "processor")
            figures[f"growth.memory_mb.{system}.{size}"] = [max(one["memory"])]
            figures[f"growth.private_mb.{system}.{size}"] = [max(one["private"])]
    if head:
        figures |= {f"head.{what}_ms": steady(head, what) for what in ("processor", "wall")}
        figures |= {"head.macro_f1": head["accuracy"], "head.private_mb": head["private"]}
    return Result(
        settings={
            "clients": clients,
            "rounds": rounds,
            "largest": largest,
            "peers": ENVIRONMENT.versions(),
            "job": asdict(Job("", "", 0, 0)),
        },
        figures=figures,
        tables=[_compared(runs), _ratios(runs), _grown(growth), *([_heads(head)] if head else [])],
        targets=_targets(runs, growth),
    )


def _head(quick: bool, seed: int) -> dict[str, Any]:
    """The fusion model's head alone with hundreds of clients, in one process."""
    task, movies, clients, rounds = ("tiny-head", 300, 50, 4) if quick else ("head", 600, 500, 6)
    with tempfile.TemporaryDirectory(prefix="fedmap-scale-movies-") as work:
        features = write_features(Path(work), movies, ["runtime=local", *HEADS[task]])
        job = job_of("fedmap-inside", task, clients, rounds, seed)
        return run(replace(job, batch_size=20, learning_rate=3e-3, features=str(features)))


def _ratio(runs: Mapping[tuple[str, str], list[dict[str, Any]]], what: str, task: str, ours: str, peer: str) -> float:
    """How many times more the peer takes, the median of pairs of runs that came one after the other."""
    pairs = zip(runs[task, ours], runs[task, peer], strict=True)
    return median([median(steady(theirs, what)) / median(steady(own, what)) for own, theirs in pairs])


def _targets(runs: Mapping[tuple[str, str], list[dict[str, Any]]], growth: Mapping[str, list[dict[str, Any]]]) -> list[Target]:
    targets = []
    for task in TASKS:
        for peer in ("ray", *BLAZEFL):
            for what, said, names in (
                ("wall", "clients per second", ("fedmap-together", "fedmap")),
                ("processor", "processor time", ("fedmap-inside-together", "fedmap-inside")),
            ):
                ours = next((name for name in names if (task, name) in runs), None)  # the first that has run is judged
                if ours and (task, peer) in runs:
                    targets.append(Target(f"{said}, {task}: {ours} against {peer}", _ratio(runs, what, task, ours, peer), 2.0))
    if found := {one["job"]["clients"]: one for one in growth.get("fedmap-inside", [])}:
        few, many = min(found, key=lambda size: abs(size - 100)), max(found)
        first, last = (median(steady(found[size], "processor")) for size in (few, many))
        targets.append(Target(f"time is linear: per client, {many} clients against {few}", last / first, 1.2, "<="))
    if {1000, 2000} <= set(found):  # both with the compiled kernel of averages, which 100 MB of libraries come with
        more = max(found[2000]["private"]) - max(found[1000]["private"])
        needs = (ROW * Job("", "", 0, 0).rows + UPDATE) / 1e3
        targets.append(Target("memory is flat: kB a client beyond its rows and its waiting update, 2000 clients", more - needs, 0.0, "<="))
    return targets


def _compared(runs: Mapping[tuple[str, str], list[dict[str, Any]]]) -> Table:
    rows = []
    for (task, system), found in runs.items():
        processor, wall = ([value for one in found for value in steady(one, what)] for what in ("processor", "wall"))
        accuracy = [one["accuracy"][-1] for one in found]
        shown = f"{median(accuracy):.3f} ({min(accuracy):.3f} to {max(accuracy):.3f})"
        rows.append((task, system, median(processor), 1e3 / median(wall), max(one["memory"][-1] for one in found), shown))
    columns = ("task", "system", "processor ms per client and round", "clients per second (wall)", "MB, whole tree", "accuracy")
    return Table("Per client and round, from the second round on", columns, rows)


def _ratios(runs: Mapping[tuple[str, str], list[dict[str, Any]]]) -> Table:
    rows = [
        (task, peer, ours, _ratio(runs, "wall", task, ours, peer), _ratio(runs, "processor", task, ours, peer))
        for task in TASKS
        for peer in ("ray", *BLAZEFL)
        for ours in OURS
        if {(task, peer), (task, ours)} <= set(runs)
    ]
    return Table("Ours against each peer; larger is better", ("task", "peer", "ours", "clients per second", "processor time"), rows)


def _grown(growth: Mapping[str, list[dict[str, Any]]]) -> Table:
    rows = [
        (
            system,
            one["job"]["clients"],
            median(steady(one, "processor")),
            1e3 / median(steady(one, "wall")),
            one["private"][0],
            max(one["private"]),
        )
        for system, found in growth.items()
        for one in found
    ]
    columns = ("system", "clients", "processor ms per client and round", "clients per second (wall)", "own MB before", "own MB at most")
    return Table("From few clients to many (MLP)", columns, rows)


def _heads(found: Mapping[str, Any]) -> Table:
    job, processor, wall = found["job"], median(steady(found, "processor")), median(steady(found, "wall"))
    learnt = " ".join(f"{value:.3f}" for value in found["accuracy"])
    columns = ("clients", "seconds a round", "processor ms per client", "own MB before", "own MB at most", "macro-F1 by round")
    row = (job["clients"], wall * job["clients"] / 1e3, processor, found["private"][0], max(found["private"]), learnt)
    return Table("The fusion model's head on frozen towers, one process", columns, [row])


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--largest", type=int, help="the largest number of clients (default 2000, with --quick 100)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="only these (default all)")


if __name__ == "__main__":
    sys.exit(main("scale", measure, seeds=3, description=__doc__.strip().splitlines()[0], arguments=_arguments))
