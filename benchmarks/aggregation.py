"""One aggregation: ours, Flower's FedAvg, the published FedOps strategy with 4 candidates, and one pass over the clients' weights.

Models of 1, 11.4 and 121 million float32 parameters in the shapes of the real ones, 5 and 20 clients; each contestant in a process of its own,
one after the other in every trial. The limit is one pass over the clients' weights in two threads, block by block, that sums them in float32.
Ours and the limit use two threads, the others one. How much faster is said twice: on the wall, where the second thread shows, and in processor
seconds, which others on the machine disturb least. Flower's FedAvg and the peer read the clients' arrays from messages, and so does ours in "from messages".

The peer needs `python -m benchmarks.make_peer_venv`; without it it is left out and its target missed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.aggregation_models import SIZES, tensors_of
from benchmarks.harness import Options, Result, Table, Target, main, median
from benchmarks.make_peer_venv import python_of
from fedmap.config import PROJECT

THREADS = 2
WHO = {
    "limit": "limit: one pass, float32",
    "read": "reading alone",
    "ours": "ours",
    "parsed": "ours, from messages",
    "mixing": "ours, ModalityAware's mix",
    "flower": "Flower's FedAvg",
    "peer": "fedops, 4 candidates",
}
PROCESSES = {"limit": ("limit", "read"), "ours": ("ours", "parsed", "mixing"), "flower": ("flower",), "peer": ("peer",)}
GIB = 2**30
PEER_TRIALS = 1  # warm ones: its calls take as long as everybody else's together
LEFT_OUT = {("peer", "121M", 20): "three minutes and 10 GiB a call"}


@dataclass
class Case:
    """A model's size and a number of clients, and what was measured.

    Attributes:
        size: a key of `SIZES`.
        clients: K.
        parameters: numbers that each client sends.
        model_bytes: of one client's arrays.
        first: by contestant, the first call's figures.
        warm: by contestant, the later calls' figures.
        facts: by process, what it said when it was ready.
    """

    size: str
    clients: int
    parameters: int
    model_bytes: int
    first: dict[str, dict[str, float]] = field(default_factory=dict)
    warm: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Names the case in figures."""
        return f"{self.size}x{self.clients}"

    def values(self, who: str, what: str) -> list[float]:
        """A contestant's warm figures: "wall" or "processor"."""
        return [trial[what] for trial in self.warm.get(who, [])]

    def ratio(self, who: str, to: str, what: str = "processor") -> float:
        """The median over trials of one contestant's figure in terms of another's; NaN where one is missing."""
        pairs = list(zip(self.values(who, what), self.values(to, what), strict=False))
        return statistics.median(a / b for a, b in pairs) if pairs else math.nan


class Contestant:
    """A process that holds the clients' models and runs trials."""

    def __init__(self, process: str, case: Case) -> None:
        command = [sys.executable, "-m", "benchmarks.aggregation_worker", process]
        variables = dict(os.environ)
        if process == "peer":
            command = [str(python_of()), str(Path(__file__).with_name("aggregation_peer.py"))]
            variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        variables |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "FLWR_TELEMETRY_ENABLED": "0"}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the process
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=variables, cwd=PROJECT, text=True
        )
        tensors = tensors_of(case.size)
        order = {"do": "prepare", "names": list(tensors), "tensors": list(tensors.values()), "clients": case.clients, "threads": THREADS}
        case.facts[process] = self.ask(order)

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Give an order and wait for the answer."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(order) + "\n")
            self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            self._log.seek(0)
            said = self._log.read()[-2000:].decode(errors="replace")
            self.close()
            raise RuntimeError(f"a contestant ended with status {self._child.returncode}: {said}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        for stream in (self._child.stdin, self._child.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._child.wait(timeout=60)
        self._log.close()


@contextlib.contextmanager
def contestants(processes: Sequence[str], case: Case) -> Iterator[dict[str, Contestant]]:
    """Processes that are ready, and are ended afterwards."""
    started: dict[str, Contestant] = {}
    try:
        for process in processes:
            started[process] = Contestant(process, case)
        yield started
    finally:
        for contestant in started.values():
            contestant.close()


def run(case: Case, processes: Sequence[str], trials: int, *, together: bool) -> None:
    """A first call and some warm ones of every contestant.

    Args:
        case: gets the figures.
        processes: keys of `PROCESSES`.
        trials: warm ones, >= 1.
        together: whether all processes live at the same time and take turns; otherwise one lives at a time, for the sake of memory, and
            they take turns twice. The peer, whose calls take minutes then, has one.
    """
    groups = [(list(processes), trials)]
    if not together:
        groups = [([process], trials // 2) for _ in range(2) for process in processes if process != "peer"]
        groups += [(["peer"], 1)] if "peer" in processes else []
    for group, count in groups:
        with contestants(group, case) as started:
            for index in range(count + 1):
                for process, contestant in started.items():
                    if process == "peer" and index > PEER_TRIALS:
                        continue
                    for who in PROCESSES[process]:
                        found = contestant.ask({"do": "trial", "name": who, "first": index == 0})
                        if index:
                            case.warm.setdefault(who, []).append(found)
                        else:
                            case.first.setdefault(who, found)


def measure(options: Options) -> Result:
    """Time all cases."""
    plan = [("1M", 5), ("11.4M", 5)]
    if not options.quick:
        plan += [("1M", 20), ("11.4M", 20), ("121M", 5), ("121M", 20)]
    trials = 5 if options.quick else 9
    processes = [name for name in PROCESSES if name != "peer" or python_of().is_file()]
    notes = [
        f"{size} x {clients}: {WHO[who]} is left out ({why})." for (who, size, clients), why in LEFT_OUT.items() if (size, clients) in plan
    ]
    notes += [] if "peer" in processes else ["The peer's environment is missing: python -m benchmarks.make_peer_venv makes it."]
    cases = []
    for size, clients in plan:
        tensors = tensors_of(size)
        numbers = sum(math.prod(shape) for shape, dtype in tensors.values() if dtype == "float32")
        case = Case(size, clients, numbers, 4 * numbers)
        together = size != "121M"
        taking_part = [process for process in processes if (process, size, clients) not in LEFT_OUT]
        needed = (5 * (clients + 2) if together else clients + 4) * case.model_bytes / GIB
        if psutil.virtual_memory().available / GIB < needed + 1.5:
            notes.append(f"{case.name} is left out: it takes {needed:.0f} GiB, which are not free.")
            continue
        run(case, taking_part, trials if together else 4, together=together)
        cases.append(case)
        print(f"{case.name}: done", flush=True)
    return report(cases, notes, options)


def report(cases: Sequence[Case], notes: list[str], options: Options) -> Result:
    """Figures, tables and targets."""
    figures: dict[str, list[float]] = {}
    rows: list[list[object]] = []
    stated: list[Target] = []
    for case in cases:
        for who, title in WHO.items():
            if who not in case.warm:
                continue
            for what in ("wall", "processor"):
                figures[f"{case.name}.{who}.{what}"] = case.values(who, what)
                figures[f"{case.name}.{who}.first.{what}"] = [case.first[who][what]]
            extra = case.first[who]["extra"] / case.model_bytes
            figures[f"{case.name}.{who}.extra_models"] = [extra]
            seconds = [1000 * value for value in (median(case.values(who, "processor")), median(case.values(who, "wall")))]
            first = 1000 * case.first[who]["processor"]
            rows.append(
                [case.name, title, *(f"{value:.1f}" for value in (*seconds, first)), f"{extra:.2f}", f"{case.ratio(who, 'limit'):.2f}"]
            )
        stated += targets(case)
    exact = [case.facts["ours"]["exact"] for case in cases]
    stated += [
        Target("largest error of ours against float64, in units in the last place", max(each["ulps"] for each in exact), 0.5001, "<="),
        Target("cases whose bits do not depend on the order of arrival and on threads", sum(each["same"] for each in exact), len(exact)),
    ]
    columns = ("model x clients", "", "processor ms", "wall ms", "first call, processor ms", "extra models", "times the limit")
    return Result(
        settings={"threads": THREADS, "sizes": {size: SIZES[size] for size in {case.size for case in cases}}},
        figures=figures,
        tables=[Table("One aggregation: medians of warm calls", columns, rows)],
        targets=stated,
        notes=[*notes, f"Load average while this was measured: {os.getloadavg()[0]:.1f}."],
        details={"facts": {case.name: case.facts for case in cases}, "load_average": list(os.getloadavg())},
    )


def targets(case: Case) -> list[Target]:
    """What the case has to reach; against the limit in processor seconds."""
    found = [
        Target(f"{case.name}: ours / the limit", case.ratio("ours", "limit"), 1.5, "<="),
        Target(f"{case.name}: ModalityAware's mix / the limit", case.ratio("mixing", "limit"), 1.5, "<="),
    ]
    slower = {"flower": ("Flower's FedAvg", 4.0), "peer": ("fedops with 4 candidates", 15.0)}
    for who, (title, least) in slower.items():
        if (who, case.size, case.clients) not in LEFT_OUT:
            for what in ("wall", "processor"):
                ratio = case.ratio(who, "parsed", what)
                found.append(Target(f"{case.name}: {title} / ours, both from messages, {what}", ratio, least))
    if case.size != "1M":  # below, pages and Python's own small change are more than the model
        found.append(Target(f"{case.name}: extra memory of ours, in models", case.first["ours"]["extra"] / case.model_bytes, 1.2, "<="))
    return found


if __name__ == "__main__":
    sys.exit(main("aggregation", measure, seeds=1, description=__doc__ or ""))
