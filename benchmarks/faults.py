"""Faults on purpose, in both runtimes, each held against what should come of it.

Local: clients that die before, during and after training, fail, starve or take too long; workers killed at random moments; too few
answers; none at all. Over a SuperLink: the same, clients that come late and come back, a network that is slow, cuts, swallows and
forgets, and the SuperLink and the server's app killed and started again. A trial has survived if the run came to its end (or ended
with the right sentence), the model is finite, the round's record names the client and the reason, and the score is within 0.03 of the
run without faults; where nothing was lost, the last model has the very same bits.
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.fault_ground import local, network
from benchmarks.fault_ground.trial import Trial
from benchmarks.harness import Options, Result, Table, Target, main
from benchmarks.resume import import_everything


def measure(options: Options) -> Result:
    """All trials, and how many the federation survived."""
    import_everything()
    rng = random.Random(options.seed_list()[0])
    deaths = 1 if options.quick else 5 * options.seeds
    with tempfile.TemporaryDirectory(prefix="fedmap-faults-") as temporary:
        place = Path(temporary)
        known = local.reference(place / "reference", (42,) if options.quick else (42, 43, 44))
        steps: list[Callable[[], list[Trial]]] = [
            lambda: [local.nobody_answers(place / "nobody", known)],
            lambda: [local.below_quorum(place / "quorum", known)],
            lambda: local.mistakes(place / "mistakes_0", known, 0),
            *([] if options.quick else [lambda: local.mistakes(place / "mistakes_2", known, 2)]),
            *([] if options.quick else [lambda: local.deaths(place / "deaths", known)]),
            *([] if options.quick else [lambda: [local.slow(place / "slow", known)]]),
            lambda: _random_deaths(place, known, rng, deaths),
        ]
        if not options.quick and not options.extra.local:
            steps += [
                lambda: network.clients(place / "clients"),
                lambda: network.network(place / "network", rng),
                lambda: network.servers(place / "servers", rng),
            ]
        trials = []
        for step in steps:
            trials += step()
            print(f"{sum(trial.survived for trial in trials)} of {len(trials)}: {trials[-1].fault} ({trials[-1].runtime})", flush=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return _result(trials, known, options, used.ru_utime + used.ru_stime)


def _random_deaths(place: Path, known: local.Reference, rng: random.Random, count: int) -> list[Trial]:
    """So many kills that have hit somebody."""
    tried = (local.random_deaths(place / f"random_{k}", known, rng) for k in range(4 * count))
    return list(itertools.islice((trial for trial in tried if trial is not None), count))


def _result(trials: list[Trial], known: local.Reference, options: Options, seconds: float) -> Result:
    groups = dict.fromkeys((trial.fault, trial.runtime) for trial in trials)
    rows = []
    for fault, runtime in groups:
        some = [trial for trial in trials if (trial.fault, trial.runtime) == (fault, runtime)]
        problems = "; ".join(problem for trial in some for problem in trial.problems)
        rows.append((fault, runtime, f"{sum(t.survived for t in some)} / {len(some)}", problems[:200]))
    return Result(
        settings={"local": list(local.COMMON), "random_seed": options.seed_list()[0], "spread": 0.03},
        figures={
            "tried": [len(trials)],
            "survived": [sum(trial.survived for trial in trials)],
            "f1_without_faults": list(known.f1),
            "f1_with_faults": [trial.f1 for trial in trials if trial.f1 is not None],
            "processor_seconds": [seconds],
        },
        tables=[Table("Faults survived / tried", ("fault", "runtime", "survived", "problems"), rows)],
        targets=[Target("faults survived, as a share", sum(t.survived for t in trials) / len(trials), 1.0, "==")],
        details={
            "trials": [
                {"fault": t.fault, "runtime": t.runtime, "moment": t.moment, "survived": t.survived, "problems": t.problems, "f1": t.f1}
                for t in trials
            ]
        },
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--local", action="store_true", help="leave out the superlink runtime, which takes most of the time")


if __name__ == "__main__":
    sys.exit(main("faults", measure, seeds=1, description=__doc__ or "", arguments=_arguments))
