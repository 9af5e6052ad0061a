"""Runs that are killed (SIGKILL) at random moments and started again, against the same run left alone: every bit must agree.

For each strategy of conf/strategy one run on the digits is left alone. Then the same run is killed, continued, sometimes killed
again, and brought to its end. Compared are results.json without its seconds, and the bytes of the last and the best model.

A moment is a random time, or a random write: just before or just after a file takes its place (os.replace), where a run is most
vulnerable. Each run is a process forked from this one, which has imported everything before, so that no time goes into
imports; the runs of server_main.py are processes of their own with two worker processes each.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Result, Table, Target, main
from fedmap.config import CONF, PROJECT, compose_and_resolve, parse, save

STRATEGIES = tuple(sorted(path.stem for path in (CONF / "strategy").glob("*.yaml")))
COMMON = (
    "runtime=local",
    "runtime.workers=0",
    "model=digits",
    "dataset=digits",
    "dataset.num_clients=4",
    "clients_per_round=3",
    "num_rounds=4",
    "batch_size=64",
    "tracking=none",
    "training.device=cpu",
    "service.enabled=false",
    "hooks.after_round=null",
)
EXTRA: Mapping[str, Sequence[str]] = {  # few clients and few rounds, with everything a strategy keeps between rounds in use
    "krum": ("server.strategy.options.num_malicious_nodes=0",),
    "bulyan": ("server.strategy.options.num_malicious_nodes=0",),
    "scaffold": ("training.num_updates=4",),
    "modality_aware": (
        "server.strategy.n_trials_per_round=3",
        "server.strategy.patience=1",
        "server.strategy.audit_every=1",
        "server.strategy.aggregator_path=student.safetensors",
    ),
}
SCRIPTED = ("scaffold", "modality_aware")
ENDLESS = 600.0


@dataclass(frozen=True)
class Moment:
    """When a run is killed: after so many seconds, or at a write (counted from 1), before or after the file is in its place."""

    seconds: float | None = None
    write: int | None = None
    after: bool = False

    def describe(self) -> str:
        """For the result file."""
        if self.seconds is not None:
            return f"after {self.seconds:.3f} s"
        return f"{'after' if self.after else 'before'} write {self.write}"


@dataclass(frozen=True)
class Trial:
    """One run that was killed at some moments and continued.

    Attributes:
        strategy: its name.
        moments: at which it really was killed; one that had ended before is none.
        same: whether it ended with the bits of the run left alone.
        problem: what went wrong otherwise.
    """

    strategy: str
    moments: tuple[str, ...]
    same: bool
    problem: str = ""


def overrides_of(strategy: str) -> list[str]:
    """The command line of a strategy's run."""
    return [*COMMON, f"strategy={strategy}", *EXTRA.get(strategy, ())]


def outcome(folder: Path) -> dict[str, Any]:
    """What must agree: the results without their seconds, and the models' bytes."""
    results = _without_seconds(json.loads((folder / "results.json").read_text()))
    models = {name: hashlib.sha256((folder / name / "model.safetensors").read_bytes()).hexdigest() for name in ("last", "best")}
    return {"results": results, "models": models}


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [_without_seconds(item) for item in value] if isinstance(value, list) else value


def differences(left: Any, right: Any, place: str = "") -> list[str]:
    """Where two outcomes differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = sorted(left.keys() | right.keys())
        return [d for key in keys for d in differences(left.get(key), right.get(key), f"{place}.{key}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [d for i, pair in enumerate(zip(left, right, strict=True)) for d in differences(*pair, f"{place}[{i}]")]
    return [] if left == right else [f"{place[1:]}: {left!r:.60} against {right!r:.60}"]


def run_once(place: Path, tree: Mapping[str, Any], moment: Moment | None) -> tuple[bool, str]:
    """Run or continue the federation in `place`/run, in a forked process. Returns whether it was killed, and what it said."""
    place.mkdir(parents=True, exist_ok=True)
    log = place / "run.log"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with log.open("w") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                os.chdir(place)
                _child(place / "run", tree, moment)
            code = 0
        except BaseException as error:
            with contextlib.suppress(OSError):
                log.write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(code)
    started = time.monotonic()
    limit = ENDLESS if moment is None or moment.seconds is None else moment.seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.WIFSIGNALED(status), "" if status == 0 or os.WIFSIGNALED(status) else log.read_text()[-400:]
        if time.monotonic() - started > limit:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.001)


def _child(folder: Path, tree: Mapping[str, Any], moment: Moment | None) -> None:
    from fedmap import report
    from fedmap.flower import doors
    from fedmap.flower.federation import Server
    from fedmap.outputs import RunFolder
    from fedmap.progress import PlainProgress

    report.write_report = lambda folder: folder  # plots are no part of what is compared, and take longer than the run
    folder.mkdir(exist_ok=True)
    save(tree, folder / "run.yaml")
    writes = _kill_at_write(moment)
    doors._serve_locally(parse(tree), folder / "run.yaml", RunFolder(folder), PlainProgress(), Server)
    (folder.parent / "writes").write_text(str(writes()))


def _kill_at_write(moment: Moment | None) -> Callable[[], int]:
    """Count the files that take their place, and end the process with SIGKILL at the one that is asked for."""
    real, count = os.replace, 0

    def replace(source: Any, target: Any, **more: Any) -> None:
        nonlocal count
        count += 1
        now = moment is not None and moment.write == count
        if now and moment is not None and not moment.after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target, **more)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
    return lambda: count


def moments(rng: random.Random, seconds: float, writes: int) -> Iterator[Moment]:
    """Random moments of a run that takes so long and writes so many files, without end."""
    while True:
        yield Moment(write=rng.randint(1, writes), after=rng.random() < 0.5)
        yield Moment(seconds=rng.uniform(0, seconds))


def killed_and_continued(
    strategy: str, expected: Mapping[str, Any], planned: Sequence[Moment], once: Callable[[Moment | None], tuple[bool, str]], folder: Path
) -> Trial:
    """Kill a run at the planned moments, one after the other, and let it come to its end."""
    hit: list[str] = []
    for moment in [*planned, None]:
        killed, said = once(moment)
        if said:
            return Trial(strategy, tuple(hit), False, said)
        if not killed:
            break
        assert moment is not None
        hit.append(moment.describe())
    found = differences(outcome(folder), expected)
    return Trial(strategy, tuple(hit), not found, "; ".join(found[:3]))


def forked_trials(strategy: str, place: Path, rng: random.Random, count: int) -> list[Trial]:
    """Trials of one strategy in forked processes."""
    tree = compose_and_resolve("config", overrides_of(strategy))
    started = time.monotonic()
    _, said = run_once(place / "alone", tree, None)
    seconds = time.monotonic() - started
    if said:
        return [Trial(strategy, (), False, said)]
    expected = outcome(place / "alone" / "run")
    drawn = moments(rng, seconds, int((place / "alone" / "writes").read_text()))
    trials = []
    for number in range(count):
        here = place / str(number)
        planned = [next(drawn) for _ in range(2 if rng.random() < 0.5 else 1)]
        trials.append(killed_and_continued(strategy, expected, planned, lambda m, p=here: run_once(p, tree, m), here / "run"))
    return trials


def scripted_trials(strategy: str, place: Path, rng: random.Random, count: int) -> list[Trial]:
    """Trials of one strategy as a user would see them: server_main.py with two worker processes, continued by its name."""
    overrides = [*overrides_of(strategy), "runtime.workers=2", "name=run"]
    started = time.monotonic()
    _, said = run_script(place / "alone", overrides, None)
    seconds = time.monotonic() - started
    if said:
        return [Trial(strategy, (), False, said)]
    expected = outcome(place / "alone" / "outputs" / "run")
    trials = []
    for number in range(count):
        here = place / str(number)
        planned = [Moment(seconds=rng.uniform(0, seconds))]
        trials.append(
            killed_and_continued(strategy, expected, planned, lambda m, p=here: run_script(p, overrides, m), here / "outputs" / "run")
        )
    return trials


def run_script(place: Path, overrides: Sequence[str], moment: Moment | None) -> tuple[bool, str]:
    """`run_once` for server_main.py."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / "run.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(PROJECT / "server_main.py"), *overrides], cwd=place, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            process.wait(ENDLESS if moment is None else moment.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return True, ""
    return False, "" if process.returncode == 0 else (place / "run.log").read_text()[-400:]


def measure(options: Options) -> Result:
    """All trials, and how many of them ended as if nothing had happened."""
    import_everything()
    rng = random.Random(options.seeds)
    per_strategy, scripted = (1, 0) if options.quick else (4 * options.seeds, 2 * options.seeds)
    trials: dict[str, list[Trial]] = {}
    with tempfile.TemporaryDirectory(prefix="fedmap-resume-") as temporary:
        for strategy in STRATEGIES:
            trials[strategy] = forked_trials(strategy, Path(temporary) / strategy, rng, per_strategy)
        for strategy in SCRIPTED if scripted else ():
            trials[f"{strategy}, server_main.py"] = scripted_trials(strategy, Path(temporary) / f"script_{strategy}", rng, scripted)
    everything = [trial for some in trials.values() for trial in some]
    tried, same = len(everything), sum(trial.same for trial in everything)
    hits = sum(len(trial.moments) for trial in everything)
    rows = [
        (
            name,
            sum(len(t.moments) for t in some),
            f"{sum(t.same for t in some)} / {len(some)}",
            "; ".join(t.problem for t in some if not t.same),
        )
        for name, some in trials.items()
    ]
    targets = [Target("runs with the bits of the run left alone, as a share", same / tried, 1.0, "==")]
    if not options.quick:
        targets.append(Target("kills", hits, 50, ">="))
    return Result(
        settings={"overrides": list(COMMON), "extra": {k: list(v) for k, v in EXTRA.items()}, "random_seed": options.seeds},
        figures={"kills": [hits], "runs": [tried], "survived": [same]},
        tables=[Table("Killed at random moments and continued", ("strategy", "kills", "same bits", "problem"), rows)],
        targets=targets,
        details={
            "trials": [
                {"strategy": name, "kills": list(t.moments), "same": t.same, "problem": t.problem}
                for name, some in trials.items()
                for t in some
            ]
        },
    )


def import_everything() -> None:
    """What a run imports, before the first fork; nothing here starts a thread."""
    for name in (
        "examples.digits.data",
        "examples.digits.model",
        "fedmap.aggregators.modality_aware.aggregator",
        "fedmap.flower.client_app",
        "fedmap.flower.federation",
        "fedmap.flower.foreign",
        "fedmap.flower.session",
        "fedmap.report",
        "hydra.utils",
        "optuna",
        "torch._dynamo",
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main("resume", measure, seeds=1, description=__doc__ or ""))
