"""What watching costs: rounds of a local federation with 200 event watchers and 100 requests a second on its front, and without.

One long run; quiet and loaded minutes alternate within it, in the order quiet, loaded, loaded, quiet, ..., so that whatever drifts
(the machine, growing results) meets both alike. A round counts where it began and ended within one of these minutes. The slowdown of a
pair is the ratio of the mean seconds of its rounds; the figure is the median over pairs.

The federation runs with one worker process fewer than there are processors, if there are two: the load itself, which is no part of
the product, needs one. `--front thread` serves from a thread of the federation's process instead, `--workers` changes the workers.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import Options, Result, Table, Target, main, median, spread
from fedmap.config import PROJECT, compose_and_resolve, parse, save
from fedmap.errors import FederationError
from fedmap.flower.events import EVENTS, EventProgress, Tail, Told
from fedmap.progress import Progress

_RUN = ("runtime=local", "model=digits", "dataset=digits", "strategy=fedavg", "tracking=none", "training.device=cpu", "num_rounds=100000")
_FEDERATION = ("dataset.num_clients=5", "hooks.after_round=null", "service.port=0", "service.token_file=null", "keep_checkpoints=1")
_WARM_ROUNDS = 3


def serve(folder: Path, front: str, workers: int, epochs: int) -> None:
    """The federation, in a process that the benchmark starts and kills; says where its front is."""
    from fedmap.flower.doors import _serve_locally
    from fedmap.flower.federation import Server
    from fedmap.outputs import RunFolder
    from fedmap.service import background, process
    from fedmap.service.server_front import create_server_app

    tree = compose_and_resolve("config", [*_RUN, *_FEDERATION, f"runtime.workers={workers}", f"num_epochs={epochs}"])
    config = parse(tree)
    save(tree, folder / "run.yaml")
    events = EventProgress(folder / EVENTS)
    events.opened(config.num_rounds)

    @contextlib.contextmanager
    def served() -> Iterator[str]:
        if front == "process":
            with process.front(config, folder, lambda text: print(text, file=sys.stderr)) as url:
                yield url
        else:
            with background.serving(create_server_app(folder.parent, folder, depth=0)) as thread:
                yield thread.url

    with served() as url:
        print(url, flush=True)
        _serve_locally(config, folder / "run.yaml", RunFolder(folder), Told(Progress(), events), Server)


def rounds_within(events: list[dict[str, Any]], begin: float, end: float) -> list[float]:
    """Seconds of the rounds that began and ended between two times."""
    asked = {event["round_index"]: event["time"] for event in events if event["event"] == "clients"}
    ended = {event["record"]["round_index"]: event["time"] for event in events if event["event"] == "round"}
    return [ended[k] - asked[k] for k in asked if k in ended and begin <= asked[k] and ended[k] <= end]


def front_process(federation: psutil.Process, front: str) -> psutil.Process:
    """The process that serves."""
    if front == "thread":
        return federation
    (found,) = [child for child in federation.children() if "fedmap.service" in child.cmdline()]
    return found


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(options: Options) -> Result:
    """Alternate quiet and loaded windows, `--seeds` pairs of them."""
    extra = options.extra
    seconds = 8.0 if options.quick else extra.seconds
    workers = extra.workers or max(1, (os.cpu_count() or 1) - 1)
    settings = {
        "front": extra.front,
        "watchers": extra.watchers,
        "requests_per_second": extra.rate,
        "seconds": seconds,
        "pairs": options.seeds,
        "workers": workers,
        "num_epochs": extra.epochs,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        folder.mkdir()
        command = [sys.executable, "-m", "benchmarks.fronts", "serve", str(folder), extra.front, str(workers), str(extra.epochs)]
        server = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            events = Tail(folder / EVENTS)
            seen: list[dict[str, Any]] = []
            while sum(event["event"] == "round" for event in seen) <= _WARM_ROUNDS:
                if server.poll() is not None:
                    raise FederationError("the federation ended; its reason is above")
                time.sleep(0.5)
                seen += events.new()
            windows = [
                window for pair in range(options.seeds) for window in (("quiet", "loaded") if pair % 2 == 0 else ("loaded", "quiet"))
            ]
            measured = [_window(name, url, folder.name, settings, psutil.Process(server.pid)) for name in windows]
            seen += events.new()
            load_average = os.getloadavg()[0]
        finally:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()
            time.sleep(2)  # the front and the workers see that it has gone, and leave
    for window in measured:
        window["rounds"] = rounds_within(seen, window["begin"], window["end"])
        if not window["rounds"]:
            raise FederationError(f"no whole round within {seconds:g} s; take fewer --epochs or more --seconds")
    return _result(settings, measured, load_average)


def _window(name: str, url: str, run_id: str, settings: dict[str, Any], federation: psutil.Process) -> dict[str, Any]:
    seconds = settings["seconds"]
    front = front_process(federation, settings["front"])
    load: dict[str, Any] = {}
    time.sleep(1)
    begin, before = time.time(), _cpu(front)
    if name == "loaded":
        numbers = (settings["watchers"], settings["requests_per_second"], seconds)
        command = [sys.executable, "-m", "benchmarks.front_load", url, run_id, *map(str, numbers)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=seconds + 60, check=False)
        if done.returncode:
            raise FederationError(f"the load ended early:\n{done.stderr}")
        load = json.loads(done.stdout)
    else:
        time.sleep(seconds)
    end = time.time()
    return {"name": name, "begin": begin, "end": end, "front_cpu": (_cpu(front) - before) / (end - begin), "load": load}


def _result(settings: dict[str, Any], measured: list[dict[str, Any]], load_average: float) -> Result:
    def mean(window: dict[str, Any]) -> float:
        return sum(window["rounds"]) / len(window["rounds"])

    quiet = [window for window in measured if window["name"] == "quiet"]
    loaded = [window for window in measured if window["name"] == "loaded"]
    slowdowns = [100 * (mean(b) / mean(a) - 1) for a, b in zip(quiet, loaded, strict=True)]
    delays = sorted(delay for window in loaded for delay in window["load"]["delays"])
    statuses: dict[str, int] = {}
    for window in loaded:
        for status, count in window["load"]["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    wrong = sum(count for status, count in statuses.items() if status != "200")
    least = min(min(window["load"]["events"]) for window in loaded)
    figures = {
        "round_seconds.quiet": [mean(window) for window in quiet],
        "round_seconds.loaded": [mean(window) for window in loaded],
        "slowdown_percent": slowdowns,
        "front_processors.loaded": [window["front_cpu"] for window in loaded],
        "load_processors": [window["load"]["cpu"] / settings["seconds"] for window in loaded],
        "answer_seconds.median": [median(delays)],
        "answer_seconds.p99": [delays[int(0.99 * (len(delays) - 1))]],
        "events_seen_by_every_watcher": [float(least)],
    }
    rows = [(name, spread(values)) for name, values in figures.items()]
    return Result(
        settings=settings,
        figures=figures,
        tables=[Table(f"{settings['watchers']} watchers and {settings['requests_per_second']:g} requests/s", ("what", "measured"), rows)],
        targets=[
            Target("a round is slower by less than, in percent (median of the pairs)", median(slowdowns), 5.0, "<"),
            Target("requests without an answer 200", float(wrong), 0.0, "<="),
            Target("events that every watcher saw", float(least), 1.0),
        ],
        details={"statuses": statuses, "rounds": {w["name"]: len(w["rounds"]) for w in measured}},
        notes=[f"load average of the machine at the end: {load_average:.1f} on {os.cpu_count()} processors"],
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--front", choices=("process", "thread"), default="process", help="where the front runs (default process)")
    parser.add_argument("--watchers", type=int, default=200, help="open streams of events (default 200)")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second (default 100)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each quiet and each loaded window (default 60)")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the federation (default: processors less one)")
    parser.add_argument("--epochs", type=int, default=40, help="local epochs, which make a round longer (default 40)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
        sys.exit()
    sys.exit(main("fronts", measure, seeds=3, description=(__doc__ or "").partition("\n")[0], arguments=_arguments))
