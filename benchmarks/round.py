"""A round of the peer's application (fedops 1.1.30.19, IMDB use case) against ours: same model, data, batch size, epochs, seed.

150 training, 25 validation and 25 test rows per client, 100 validation and 100 test rows on the server, made-up movies with posters of
185 x 278 pixels. The model has 12 million numbers, all trained: a BERT of 2 layers and ResNet-18, both from the same random weights.
What of the peer is its wheel and what imitates its application's files: see `benchmarks/peer_application.py`. Seconds are given on the
wall, which say something on a machine that is otherwise idle, and of the processor and of whole process trees, which other programs
hardly touch.

A round begins when the server asks its clients and ends when it has scored the new model. Quality is the last model's on the server's
test rows. Ours is run as it comes, and with `training.amp=true` (bfloat16 where that is safe). The deployed run is made with the first seed alone,
since it ends with the local run's bits, which is checked. Processes have one thread each; our server scores two models of its search at once on two
processors. Besides: one client's fit against a bare training loop, in time and in memory; how often images are decoded and rows scored, counted where it
happens. With --towers also frozen real towers (all-MiniLM-L6-v2, EfficientNet-Lite0). Needs `python -m benchmarks.make_peer_venv`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.harness import Options, Result, Table, Target, main, median, spread
from benchmarks.round_counts import counted
from benchmarks.round_ground import Ground, make_data, real_text_tower, small_bert
from benchmarks.round_systems import Timing, environment_of, run_ours, run_peer
from fedmap.config import PROJECT
from fedmap.errors import FederationError

_TITLES = {
    "peer": "the peer's application",
    "local": "ours, local",
    "superlink": "ours, SuperLink",
    "local_amp": "ours, local, training.amp",
    "superlink_amp": "ours, SuperLink, training.amp",
}
_RUN: dict[str, Callable[[Ground, Path], Timing]] = {
    "peer": run_peer,
    "local": lambda ground, folder: run_ours(ground, folder, superlink=False),
    "superlink": lambda ground, folder: run_ours(ground, folder, superlink=True),
    "local_amp": lambda ground, folder: run_ours(dataclasses.replace(ground, amp=True), folder, superlink=False),
    "superlink_amp": lambda ground, folder: run_ours(dataclasses.replace(ground, amp=True), folder, superlink=True),
}
_BOTH = (("local", "superlink"), ("local_amp", "superlink_amp"))  # a local run, and the deployed one that must have its bits


class Report:
    """Collects what is measured."""

    def __init__(self) -> None:
        self.figures: dict[str, list[float]] = {}
        self.rounds: list[list[object]] = []
        self.shares: list[list[object]] = []
        self.clients: list[list[object]] = []
        self.targets: list[Target] = []
        self.counts: dict[str, Any] = {}

    def compare(self, name: str, title: str, ground: Ground, systems: tuple[str, ...], seeds: list[int], base: Path) -> None:
        """Run the systems in turn, once for each seed, the deployed one for the first, and note their rounds."""
        found: dict[str, list[Timing]] = {system: [] for system in systems}
        for place, seed in enumerate(seeds):
            for system in systems if place % 2 == 0 else reversed(systems):
                if system.startswith("superlink") and place:
                    continue
                one = _RUN[system](dataclasses.replace(ground, seed=seed), base / f"{name}_{system}_{seed}")
                found[system].append(one)
                took = ", ".join(f"{wall:.1f} ({cpu:.1f})" for wall, cpu in zip(one.wall, one.cpu, strict=True))
                print(f"{title}, {_TITLES[system]}: {took} s a round (of the processor)", flush=True)
        for system, timings in found.items():
            self._note(f"{name}.{system}", [title, _TITLES[system]], timings)
        for system in systems:
            if system != "peer":
                for what, words in (("wall", "on the wall"), ("round", "of the processor")):
                    ratio = median(self.figures[f"{name}.peer.{what}"]) / median(self.figures[f"{name}.{system}.{what}"])
                    self.targets.append(Target(f"{title}: the peer's round / {_TITLES[system]}, seconds {words}", ratio, 3.0))
        for system in systems:
            if system.startswith("local"):
                self._quality(name, title, system, len(seeds))
        for local, deployed in _BOTH:
            if deployed in systems:
                same = np.array_equal(found[deployed][0].logits, found[local][0].logits)
                self.targets.append(
                    Target(f"{title}: the logits of {_TITLES[deployed]}, are the local run's, bit for bit", float(same), 1.0)
                )

    def _quality(self, name: str, title: str, system: str, seeds: int) -> None:
        both = (self.figures[f"{name}.{system}.precision"], self.figures[f"{name}.peer.precision"])
        wider = max(stdev(each) if seeds > 1 else 0.0 for each in both)
        words = f"{title}: mean average precision, {_TITLES[system]}, less the peer's (bound: the larger spread)"
        self.targets.append(Target(words, mean(both[0]) - mean(both[1]), -wider))

    def _note(self, key: str, cells: list[object], timings: list[Timing]) -> None:
        self.figures[f"{key}.round"] = [seconds for one in timings for seconds in one.cpu]
        self.figures[f"{key}.wall"] = [seconds for one in timings for seconds in one.wall]
        self.figures[f"{key}.whole"] = [one.whole_cpu for one in timings]
        self.figures[f"{key}.loss"] = [one.loss for one in timings]
        self.figures[f"{key}.precision"] = [one.precision for one in timings]
        for what, megabytes in timings[0].peak.items():
            self.figures[f"{key}.megabytes.{what}"] = [one.peak.get(what, megabytes) for one in timings]
        for what, seconds in timings[0].shares.items():
            self.figures[f"{key}.processes.{what}"] = seconds
            self.shares.append([*cells, what, median(seconds)])
        values = [median(self.figures[f"{key}.{what}"]) for what in ("wall", "round", "whole")]
        quality = [spread(self.figures[f"{key}.{what}"], 3) for what in ("precision", "loss")]
        self.rounds.append([*cells, *values, *quality])
        if timings[0].counts:
            self.counts[key] = timings[0].counts

    def client(self, ground: Ground, base: Path, trials: int) -> None:
        """One client's fit against the bare loop."""
        described = {"ground": {**dataclasses.asdict(ground), "root": str(ground.root), "text": str(ground.text)}}
        file = base / "ground.json"
        file.write_text(json.dumps({**described, "cache": str(base / "fit_cache"), "trials": trials}))
        times = _measured("times", file)
        self.figures |= {f"fit.{who}.seconds": values for who, values in times.items()}
        ratios = [fit / bare for fit, bare in zip(times["fit"], times["bare"], strict=True)]
        self.figures["fit.ratio"] = ratios
        memory = {who: float(_measured(who, file)["bytes"]) / 1e6 for who in ("bare", "fit")}
        self.figures |= {f"fit.{who}.megabytes": [value] for who, value in memory.items()}
        for who, title in (("bare", "bare training loop"), ("fit", "client's fit, scoring and signals included")):
            self.clients.append([title, median(times[who]), memory[who]])
        self.targets.append(
            Target("one client's fit / bare training loop, processor seconds (median of pairs)", median(ratios), 1.15, "<=")
        )
        self.targets.append(
            Target("one client's fit / bare training loop, peak memory of the process", memory["fit"] / memory["bare"], 1.15, "<=")
        )

    def count(self, ground: Ground, base: Path) -> None:
        """How often our program decodes and scores, over a whole run."""
        found = counted(ground, base / "counted")
        self.counts["ours"] = found
        run, rounds = found["run"], found["rounds"]
        self.targets.append(Target("ours: images decoded in a run / images", run["decoded"] / run["images"], 1.0, "<="))
        self.targets.append(Target("ours: images decoded within rounds, for training or scoring", rounds.get("decoded", 0), 0, "<="))
        for split in ("val", "test"):
            passes = rounds[f"server passes over {split}"] / ground.num_rounds
            self.targets.append(Target(f"ours: server's passes over its {split} rows per round, the search's apart", passes, 1.0, "<="))
        each = rounds["client passes over val"] / (ground.clients * ground.num_rounds)
        self.targets.append(Target("ours: client's validation passes per round, one for each model (received, trained)", each, 2.0, "<="))


def _measured(what: str, file: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.round_fit", what, str(file)]
    done = subprocess.run(command, cwd=PROJECT, env=environment_of(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise FederationError(f"benchmarks.round_fit {what} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(options: Options) -> Result:
    """Everything, or the small version: one round of one client, the peer and ours local."""
    extra, report = options.extra, Report()
    rounds = 1 if options.quick else extra.rounds
    pixels = extra.image_size
    with tempfile.TemporaryDirectory(dir=extra.work) as place:
        base = Path(place)

        def ground(clients: int, **more: Any) -> Ground:
            root = base / f"data_{clients}"
            if not root.exists():
                make_data(root, clients, 0, extra.data)
                small_bert(base / f"bert_{clients}", root)
            values = {"image_size": pixels, "num_rounds": rounds, "text": base / f"bert_{clients}", **more}
            return Ground(root, clients, **values)

        seeds = options.seed_list()
        systems: tuple[str, ...] = ("peer", "local") if options.quick else tuple(_RUN)
        for clients in (1,) if options.quick else tuple(extra.clients):
            plural = "1 client" if clients == 1 else f"{clients} clients"
            report.compare(f"{clients}_clients", f"{plural}, {pixels} pixels", ground(clients), systems, seeds, base)
        if not options.quick:
            report.client(ground(1), base, extra.trials)
            report.count(ground(1, image_size=32), base)
        if extra.towers:
            real = {"text": real_text_tower(base / "minilm"), "text_pooling": "mean", "image": "efficientnet_lite0", "frozen": True}
            report.compare("towers", f"1 client, frozen real towers, {pixels} pixels", ground(1, **real), ("peer", "local"), seeds, base)
    columns = ("", "who", "seconds a round", "of the processor", "of the whole run", "mean average precision", "test loss")
    return Result(
        settings={"rounds": rounds, "image_size": pixels, "threads": 1, "data": "synthetic" if extra.data is None else "real"},
        figures=report.figures,
        tables=[
            Table(f"A round; quality after {rounds} of them", columns, report.rounds),
            Table("Where a round's processor seconds go", ("", "who", "process", "seconds"), report.shares),
            *(
                [Table("One client, 150 rows, one epoch", ("", "processor seconds", "peak memory, MB"), report.clients)]
                if report.clients
                else []
            ),
        ],
        targets=report.targets,
        details={"counts": report.counts},
        notes=[f"load average of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"],
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="a folder with movies.csv and posters/; made-up movies without it")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 3], help="how many (default 1 and 3)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each run (default 3)")
    parser.add_argument("--image-size", type=int, default=64, help="pixels (default 64; 224 takes eight times as long)")
    parser.add_argument("--trials", type=int, default=4, help="pairs of fit and bare loop (default 4)")
    parser.add_argument("--towers", action="store_true", help="also with frozen real towers; needs requirements-towers.txt")
    parser.add_argument("--work", type=Path, help="where to put a gigabyte of temporary files (default: the system's place)")


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    sys.exit(main("round", measure, seeds=3, description=(__doc__ or "").partition("\n")[0], arguments=_arguments))
