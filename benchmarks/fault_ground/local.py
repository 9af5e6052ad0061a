"""Faults in the local runtime: worker processes that die, fail, starve, sleep and are killed at random moments."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.fault_ground.injection import (
    AFTER,
    BEFORE,
    DURING,
    KILL,
    MEMORY,
    MODEL_SAYS,
    RAISE,
    ROW,
    ROW_SAYS,
    SLEEP,
    Fault,
    overrides,
    write_plan,
)
from benchmarks.fault_ground.trial import Check, Trial, model_bits
from fedmap.config import compose_and_resolve, parse, save
from fedmap.files import write_text

ROUNDS = 5
COMMON = (
    "runtime=local",
    "model=digits",
    "dataset=digits",
    "dataset.num_clients=4",
    "dataset.alpha=100",
    "strategy=fedavg",
    "num_epochs=3",
    "learning_rate=0.02",
    "tracking=none",
    "training.device=cpu",
    "service.enabled=false",
    "hooks.after_round=null",
)
KILLED, STARVED = "the worker process was killed", "out of memory while it answered.*allocate"
_LONGEST = 300.0


@dataclass(frozen=True)
class Ended:
    """How a run came to its end.

    Attributes:
        code: exit code of its process; negative for a signal.
        said: everything that it was told to tell people.
        seconds: how long it took.
    """

    code: int
    said: str
    seconds: float


def run(place: Path, own: Sequence[str], meanwhile: Callable[[psutil.Process, Path], None] | None = None) -> Ended:
    """A federation in `place`/run, in a process forked from this one, and perhaps something that happens to it meanwhile."""
    place.mkdir(parents=True, exist_ok=True)
    tree = compose_and_resolve("config", [*COMMON, *own])
    log = place / "run.log"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with log.open("w") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
            os.chdir(place)
            _serve(place / "run", tree)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)
    if meanwhile is not None:
        with contextlib.suppress(psutil.Error):
            meanwhile(psutil.Process(child), place / "run")
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return Ended(os.waitstatus_to_exitcode(status), log.read_text(), time.monotonic() - started)
        if time.monotonic() - started > _LONGEST:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def _serve(folder: Path, tree: dict[str, object]) -> None:
    from fedmap import report
    from fedmap.flower import doors
    from fedmap.flower.federation import Server
    from fedmap.outputs import RunFolder
    from fedmap.progress import Progress

    class Said(Progress):
        def note(self, text: str) -> None:
            print(text, flush=True)

        def clients(self, round_index: int, client_ids: Sequence[int]) -> None:
            write_text(folder / "round", str(round_index))

    report.write_report = lambda path: path  # plots are no part of what is tried, and take longer than the run
    folder.mkdir(exist_ok=True)
    save(tree, folder / "run.yaml")
    doors._serve_locally(parse(tree), folder / "run.yaml", RunFolder(folder), Said(), Server)


@dataclass(frozen=True)
class Reference:
    """Runs without faults.

    Attributes:
        f1: test macro-F1 by seed, the default one first.
        bits: of the last model.
        early: of the last model after two rounds.
    """

    f1: tuple[float, ...]
    bits: str
    early: str


def reference(place: Path, seeds: Sequence[int]) -> Reference:
    """Run it without faults, in the server's process: which process answers changes nothing."""
    scores = []
    for seed in seeds:
        run(place / f"seed_{seed}", ["runtime.workers=0", f"num_rounds={ROUNDS}", f"random_seed={seed}"])
        scores.append(Check(place / f"seed_{seed}" / "run").f1 or 0.0)
    run(place / "early", ["runtime.workers=0", "num_rounds=2"])
    return Reference(tuple(scores), model_bits(place / f"seed_{seeds[0]}" / "run"), model_bits(place / "early" / "run"))


def deaths(place: Path, known: Reference) -> list[Trial]:
    """A worker dies before, during and after training."""
    plan = [Fault(0, 1, KILL, BEFORE), Fault(1, 2, KILL, DURING), Fault(2, 3, KILL, AFTER)]
    return _planned(place, known, plan, dict.fromkeys(plan, KILLED), "a client dies")


def mistakes(place: Path, known: Reference, workers: int) -> list[Trial]:
    """An exception in the user's model, an unreadable row, memory that does not suffice."""
    plan = [Fault(0, 1, RAISE), Fault(1, 2, ROW), Fault(2, 3, MEMORY), Fault(3, 4, RAISE, AFTER)]
    reasons = {plan[0]: MODEL_SAYS, plan[1]: ROW_SAYS, plan[2]: STARVED, plan[3]: MODEL_SAYS}
    names = {RAISE: "an exception in the model", ROW: "an unreadable row", MEMORY: "a client out of memory"}
    return _planned(place, known, plan, reasons, names, workers)


def _planned(
    place: Path, known: Reference, plan: list[Fault], reasons: dict[Fault, str], names: str | dict[str, str], workers: int = 2
) -> list[Trial]:
    place.mkdir(parents=True)
    path = write_plan(place / "plan.json", plan)
    ended = run(place, [f"runtime.workers={workers}", f"num_rounds={ROUNDS}", *overrides(path)])
    trials = []
    for fault in plan:
        check = Check(place / "run")
        check.that(ended.code == 0, f"exit code {ended.code}: {ended.said[-200:]}")
        check.finished(ROUNDS)
        check.lost(fault.round, fault.client, reasons[fault])
        check.all_ok(fault.round, *{0, 1, 2, 3} - {fault.client})
        check.all_ok(ROUNDS, 0, 1, 2, 3)
        check.score(known.f1[0])
        check.that(f"client {fault.client} is left out of round {fault.round}" in ended.said.replace("\n", " "), "nobody was told")
        name = names if isinstance(names, str) else names[fault.what]
        where = f"client {fault.client}, round {fault.round}, {fault.when} training, {workers} workers"
        trials.append(Trial(name, "local", where, tuple(check.problems), check.f1))
    return trials


def random_deaths(place: Path, known: Reference, rng: random.Random) -> Trial | None:
    """A worker, no matter which and what it does, is killed with SIGKILL: what the system does when memory runs out.

    Returns:
        None if there was nobody left to kill when the moment had come: a fault that did not happen is not tried.
    """
    start, moment, which = rng.randint(1, ROUNDS - 1), rng.uniform(0.0, 0.5), rng.random()

    def kill(server: psutil.Process, folder: Path) -> None:
        while not (folder / "round").exists() or int((folder / "round").read_text()) < start:
            if server.status() == psutil.STATUS_ZOMBIE:
                return
            time.sleep(0.005)
        time.sleep(moment)
        workers = [child for child in server.children() if "spawn_main" in " ".join(child.cmdline())]
        if workers:
            workers[int(which * len(workers))].kill()
            hit.append(int((folder / "round").read_text()))

    hit: list[int] = []
    ended = run(place, ["runtime.workers=2", f"num_rounds={ROUNDS}"], kill)
    if not hit:
        return None
    check = Check(place / "run")
    check.that(ended.code == 0, f"exit code {ended.code}: {ended.said[-200:]}")
    check.finished(ROUNDS)
    lost = check.lost_anywhere()
    check.that(len(lost) <= 1, f"more than one answer was lost: {lost}")
    if lost:
        check.that(KILLED in lost[0][2], f"the reason is {lost[0][2]!r}")
        check.score(known.f1[0])
    else:
        check.same_model(known.bits)
    what = f"round {hit[0]}, after {moment:.2f} s: {'an answer was lost' if lost else 'nothing was lost'}"
    return Trial("a worker is killed at a random moment", "local", what, tuple(check.problems), check.f1)


def slow(place: Path, known: Reference) -> Trial:
    """A client that takes for ever: the round ends at its deadline, and the worker is free for the next one."""
    place.mkdir(parents=True)
    fault = Fault(3, 2, SLEEP, seconds=300.0)
    path = write_plan(place / "plan.json", [fault])
    ended = run(place, ["runtime.workers=2", "runtime.round_seconds=30", f"num_rounds={ROUNDS}", *overrides(path)])
    check = Check(place / "run")
    check.that(ended.code == 0, f"exit code {ended.code}: {ended.said[-200:]}")
    check.finished(ROUNDS)
    check.lost(2, 3, r"no answer within 30 s \(runtime.round_seconds\)")
    for round_index in (1, 3, 4, 5):
        check.all_ok(round_index, 0, 1, 2, 3)
    check.score(known.f1[0])
    check.that(ended.seconds < 250, f"the run took {ended.seconds:.0f} s")
    return Trial("a client is too slow", "local", "client 3, round 2, 300 s instead of 30 s", tuple(check.problems), check.f1)


def nobody_answers(place: Path, known: Reference) -> Trial:
    """All clients fail from round 3 on: the old model is kept, the rounds are marked, and the run ends with the reason."""
    place.mkdir(parents=True)
    path = write_plan(place / "plan.json", [Fault(k, 3, RAISE, always=True) for k in range(4)])
    ended = run(place, ["runtime.workers=0", "runtime.max_failed_rounds=2", "num_rounds=9", *overrides(path)])
    check = Check(place / "run")
    check.that(ended.code == 1, f"exit code {ended.code}")
    check.that(check.history.status == "failed", f"the run is {check.history.status}")
    check.that(
        "2 rounds in a row had fewer answers than the quorum; the model of round 2 is kept" in check.history.reason, "another reason"
    )
    check.that([r.round_index for r in check.history.rounds] == [0, 1, 2, 3, 4], "other rounds")
    for record in check.history.rounds[3:]:
        check.that(any("0 of 4 clients gave usable answers, 2 are needed; the model is kept" in n for n in record.notes), "no mark")
        check.that(record.validation == check.history.rounds[2].validation, "another model was scored")
    for client_id in range(4):
        check.lost(4, client_id, MODEL_SAYS)
    check.finite()
    check.same_model(known.early)
    return Trial("all clients fail", "local", "from round 3 on", tuple(check.problems))


def below_quorum(place: Path, known: Reference) -> Trial:
    """One of four fails where all are needed: the round leaves the model as it was, and the next one goes on."""
    place.mkdir(parents=True)
    path = write_plan(place / "plan.json", [Fault(1, 3, ROW)])
    ended = run(place, ["runtime.workers=0", "runtime.quorum=1.0", f"num_rounds={ROUNDS}", *overrides(path)])
    check = Check(place / "run")
    check.that(ended.code == 0, f"exit code {ended.code}: {ended.said[-200:]}")
    check.finished(ROUNDS)
    marked = [r.round_index for r in check.history.rounds if any("the model is kept" in note for note in r.notes)]
    check.that(marked == [3], f"marked rounds {marked}")
    if len(check.history.rounds) > 3:
        check.that(check.history.rounds[3].validation == check.history.rounds[2].validation, "another model was scored")
    check.all_ok(4, 0, 1, 2, 3)
    check.score(known.f1[0])
    return Trial("too few answers for the quorum", "local", "client 1, round 3, quorum 1.0", tuple(check.problems), check.f1)
