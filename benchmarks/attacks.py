"""Two of ten clients are hostile: what each attack does to the final model, with the ladder of checks and without.

Movies dealt to ten clients by label (Dirichlet .5), a frozen pair of towers, ten rounds. Clients 0 and 1 attack in every round. Every
score is the server's test macro-F1 of the chosen model, at thresholds tuned on the server's validation rows; the reference is the
run of the eight honest clients alone. Synthetic movies by default; `--data PATH` takes a folder with movies.csv and posters/.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.attack_runs import ATTACKS, HOSTILE, run
from benchmarks.harness import Options, Result, Table, Target, main, spread
from benchmarks.modality_aware import COMMON, QUICK, REAL, SYNTHETIC
from benchmarks.modality_ground import Ground, Setting, deal, read_movies
from fedmap.config import PROJECT
from fedmap.data.partition import Policy
from fedmap.files import write_json
from fedmap.guard import OFF, Defence

CLIENTS = 10
REFERENCE = "without"  # the run without hostile clients
BOUND = 0.02  # of macro-F1 that an attack may cost
STRATEGIES: Mapping[str, tuple[str, ...]] = {
    "fedavg": ("strategy=fedavg",),
    "modality_aware": ("strategy=modality_aware",),
    "fedtrimmedavg": ("strategy=fedtrimmedavg",),
}
# what stands against the attacks: the strategy alone; the checks of each update and replays; the configuration's default
DEFENCES: Mapping[str, Defence | None] = {"nothing": None, "checks": OFF, "default": Defence()}
COLUMNS = (
    ("fedavg", "nothing"),
    ("fedavg", "checks"),
    ("fedavg", "default"),
    ("fedtrimmedavg", "checks"),
    ("modality_aware", "nothing"),
    ("modality_aware", "default"),
)
# what is stated to cost at most BOUND; the others are told of
STATED = (
    "nan",
    "inf",
    "1e30",
    "truncated",
    "misshapen",
    "times10",
    "times100",
    "flipped",
    "flipped10",
    "noise",
    "stale",
    "copied",
    "boasting",
)
QUICK_ATTACKS = ("none", "nan", "misshapen", "flipped10", "copied")

Runs = dict[str, dict[str, list[dict[str, Any]]]]  # by column ("fedavg.default") and attack, one per seed


def measure(options: Options) -> Result:
    """Run every attack against every strategy and defence with every seed."""
    extra, quick = options.extra, options.quick
    torch.set_num_threads(1)
    attacks = list(QUICK_ATTACKS if quick else ATTACKS)
    overrides = [*COMMON, *(QUICK if quick else SYNTHETIC if extra.data is None else REAL)]
    columns = [column for column in COLUMNS if ".".join(column) in extra.columns] if extra.columns else list(COLUMNS)
    columns = [column for column in columns if not quick or column[0] != "modality_aware"]
    least = 10 if quick else 20
    setting = Setting("label skew", Policy("dirichlet", CLIENTS, alpha=0.5, min_rows=least), ("both",) * CLIENTS)
    runs: Runs = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = extra.work or Path(temporary)
        movies = read_movies(work, extra.data, 300 if quick else None, overrides)
        kind = f"{'real' if extra.data else 'synthetic'}-{len(movies.table)}"
        for seed in options.seed_list():
            ground = deal(movies, setting, seed)
            for strategy, defence in columns:
                for attack in [REFERENCE, *attacks]:
                    if attack == REFERENCE and defence != "default" and (strategy, "default") in columns:
                        continue
                    path = work / "attacks" / f"{kind}-{strategy}-{defence}-{attack}-{seed}.json"
                    found = _run(ground, strategy, defence, attack, path, overrides)
                    runs.setdefault(f"{strategy}.{defence}", {}).setdefault(attack, []).append(found)
            print(f"seed {seed}: done", flush=True)
    return Result(
        settings={
            "data": "synthetic" if extra.data is None else "real",
            "overrides": [override for override in overrides if "/" not in override],
            "rows": len(movies.table),
            "labels": len(movies.label_names),
            "clients": CLIENTS,
            "hostile": list(HOSTILE),
            "defence": vars(Defence()),
        },
        figures={f"{column}.{attack}": [one["tuned"] for one in found] for column, by in runs.items() for attack, found in by.items()},
        tables=tables(runs),
        targets=[] if quick else targets(runs),
        details={"codes": _codes(runs), "last": _last(runs), "failed_rounds": _failed(runs)},
    )


def _run(ground: Ground, strategy: str, defence: str, attack: str, path: Path, overrides: list[str]) -> dict[str, Any]:
    """A run, or what is known of it from an earlier start."""
    key = {"overrides": overrides, "defence": None if DEFENCES[defence] is None else vars(DEFENCES[defence])}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            found: dict[str, Any] = kept["run"]
            return found
    found = run(ground, STRATEGIES[strategy], None if attack == REFERENCE else ATTACKS[attack], DEFENCES[defence])
    write_json(path, {"key": key, "run": found})
    return found


def _reference(runs: Runs, column: str) -> list[float]:
    strategy = column.partition(".")[0]
    own = next(by[REFERENCE] for name, by in runs.items() if name.startswith(f"{strategy}.") and REFERENCE in by)
    return [one["tuned"] for one in own]


def costs(runs: Runs, column: str, attack: str) -> list[float]:
    """What an attack costs, seed by seed: the score without hostile clients less the score with them."""
    return [before - one["tuned"] for before, one in zip(_reference(runs, column), runs[column][attack], strict=True)]


def tables(runs: Runs) -> list[Table]:
    """Scores, what attacks cost, and reasons."""
    columns = list(runs)
    attacks = [attack for attack in next(iter(runs.values())) if attack != REFERENCE]
    first = ["without hostile clients", *(spread(_reference(runs, column)) for column in columns)]
    scores = [first, *([ATTACKS[a].title, *(spread([one["tuned"] for one in runs[c][a]]) for c in columns)] for a in attacks)]
    points = [[ATTACKS[a].title, *(spread([100 * cost for cost in costs(runs, c, a)], 1) for c in columns)] for a in attacks]
    codes = [[ATTACKS[a].title, _said(runs["fedavg.default"][a])] for a in attacks]
    return [
        Table("Server test, macro-F1 of the chosen model", ("attack", *columns), scores),
        Table("Points of macro-F1 below the run without hostile clients", ("attack", *columns), points),
        Table(
            "What the ladder said of FedAvg's clients, per run of 10 rounds and 10 clients", ("attack", "times a reason was given"), codes
        ),
    ]


def targets(runs: Runs) -> list[Target]:
    """Stated of the configuration's default."""
    return [
        Target(f"{column.partition('.')[0]}, {ATTACKS[attack].title}: cost in macro-F1", fmean(costs(runs, column, attack)), BOUND, "<=")
        for column in runs
        if column.endswith(".default")
        for attack in STATED
    ]


def _said(found: list[dict[str, Any]]) -> str:
    codes = sorted({code for one in found for code in one["codes"]})
    return ", ".join(f"{code} {fmean(one['codes'].get(code, 0) for one in found):.0f}" for code in codes)


def _codes(runs: Runs) -> dict[str, Any]:
    return {column: {attack: [one["codes"] for one in found] for attack, found in by.items()} for column, by in runs.items()}


def _last(runs: Runs) -> dict[str, Any]:
    return {column: {attack: fmean(one["last"] for one in found) for attack, found in by.items()} for column, by in runs.items()}


def _failed(runs: Runs) -> dict[str, Any]:
    return {column: {attack: fmean(one["failed"] for one in found) for attack, found in by.items()} for column, by in runs.items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--data", type=Path, help="a folder with movies.csv and posters/; synthetic movies without it")
    parser.add_argument("--columns", nargs="+", choices=[".".join(column) for column in COLUMNS], help="only these")
    parser.add_argument("--work", type=Path, help="keep data, features and finished runs here, for the next start")


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    sys.exit(main("attacks", measure, seeds=3, description=__doc__ or "", arguments=arguments))
