"""Federated against central, individual, untrained and most-frequent, on movies.

Synthetic movies by default; `--data PATH` takes a folder with movies.csv and posters/. Every method has the same model,
initial weights and budget; models and thresholds are chosen on validation splits, and the test split is only reported.
Each seed deals the movies anew, draws other initial weights and orders the rows differently.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.harness import Options, Result, Table, Target, main, spread
from fedmap.baselines import Arena, mean_results
from fedmap.config import PROJECT, compose_and_resolve, parse
from fedmap.data.prepare import prepare
from fedmap.history import FinalResults

REAL = ["model=minilm_efficientnet_lite0"]
SYNTHETIC = ["model=minilm_resnet18", "dataset.image_size=32"]
QUICK = ["model=tiny", "dataset.image_size=32", "num_rounds=10", "num_epochs=4", "batch_size=16", "learning_rate=0.01"]


def methods(arena: Arena, ablations: bool) -> dict[str, FinalResults]:
    """Every method's results on one ground."""
    results = {
        "federated": arena.federated(),
        "central": arena.central(),
        "individual (mean)": mean_results(arena.individual()),
        "untrained": arena.untrained(),
        "most frequent": arena.most_frequent(),
    }
    if ablations:
        results["federated, text alone"] = arena.only("text").federated()
        results["federated, poster alone"] = arena.only("image").federated()
    return results


def measure(options: Options) -> Result:
    """Run every method for every seed."""
    data: Path | None = options.extra.data
    overrides = QUICK if options.quick else [*(SYNTHETIC if data is None else REAL), f"num_rounds={options.extra.rounds}"]
    overrides = [*overrides, *options.extra.set]
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.extra.work or Path(temporary)
        for seed in options.seed_list():
            root = work / f"{'real' if data else 'quick' if options.quick else 'synthetic'}-{seed}"
            source: dict[str, Any] = {"source": "synthetic", "num_movies": 300 if options.quick else 2000}
            if data is not None:
                source = {"path": str(data), "labels": "found", "limit": 300 if options.quick else None}
            prepare(root=str(root), seed=seed, plot=False, **source)
            config = parse(compose_and_resolve("config", [*overrides, f"dataset.root={root}", f"random_seed={seed}", "tracking=none"]))
            for method, final in methods(Arena.of(config), not options.quick).items():
                for name, scores in (("tuned", final.test_tuned), ("at_half", final.test)):
                    assert scores is not None
                    for kind in ("macro_f1", "micro_f1"):
                        figures.setdefault(f"{method}.{name}.{kind}", []).append(getattr(scores, kind))
            print(f"seed {seed} done", flush=True)
    names = list(dict.fromkeys(key.split(".")[0] for key in figures))
    rows = [[n, *(spread(figures[f"{n}.{t}.{k}"]) for t in ("tuned", "at_half") for k in ("macro_f1", "micro_f1"))] for n in names]
    columns = ("test split", "macro-F1 tuned", "micro-F1 tuned", "macro-F1 at 0.5", "micro-F1 at 0.5")
    return Result(
        settings={"data": "synthetic" if data is None else "real", "overrides": [o for o in overrides if "/" not in o]},
        figures=figures,
        tables=[Table(f"{'Synthetic' if data is None else 'Real'} movies, {options.seeds} seed(s)", columns, rows)],
        targets=targets({key: fmean(values) for key, values in figures.items()}, data is not None, options.quick),
    )


def targets(means: dict[str, float], real: bool, quick: bool) -> list[Target]:
    """What is stated; a quick run is too small for the figures of the full one."""

    def macro(name: str) -> float:
        return means[f"{name}.tuned.macro_f1"]

    def micro(name: str) -> float:
        return means[f"{name}.tuned.micro_f1"]

    if quick:
        return [Target("federated above untrained, macro-F1", macro("federated") - macro("untrained"), 0.0, ">")]
    if not real:
        return [
            Target("federated above untrained, macro-F1", macro("federated") - macro("untrained"), 0.15),
            Target("federated above most frequent, macro-F1", macro("federated") - macro("most frequent"), 0.15),
            Target("central above federated, macro-F1", macro("central") - macro("federated"), 0.05, "<="),
            Target("both modalities above text alone, macro-F1", macro("federated") - macro("federated, text alone"), 0.0, ">"),
            Target("both modalities above poster alone, macro-F1", macro("federated") - macro("federated, poster alone"), 0.0, ">"),
        ]
    probe = (("federated", 0.47, 0.56), ("central", 0.44, 0.55), ("individual (mean)", 0.37, 0.49))
    return [
        target
        for name, least_macro, least_micro in probe
        for target in (Target(f"{name}, macro-F1", macro(name), least_macro), Target(f"{name}, micro-F1", micro(name), least_micro))
    ]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--data", type=Path, help="a folder with movies.csv and posters/; synthetic movies without it")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of a full run (default 15)")
    parser.add_argument("--work", type=Path, help="keep prepared data and cached features here, for the next run")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings, as for server_main.py")


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    sys.exit(main("main_job", measure, seeds=3, description=__doc__ or "", arguments=arguments))
