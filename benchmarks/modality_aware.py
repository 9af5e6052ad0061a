"""ModalityAwareAggregation against FedAvg, FedProx and the published FedOps strategy, where federations are easy and where not.

Five clients; every strategy gets the same movies, deals, initial weights, client seeds and validation rows, and ours and the peer
the same number of trials per round. The chosen round and the thresholds come from the server's validation rows; the test rows
are only reported. Synthetic movies by default; `--data PATH` takes a folder with movies.csv and posters/.
The peer needs `python -m benchmarks.make_peer_venv` first.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks.harness import Options, Result, Table, Target, main, spread
from benchmarks.make_peer_venv import python_of
from benchmarks.modality_ground import BENIGN, HARD, SETTINGS, deal, read_movies
from benchmarks.modality_plots import plot_scores, plot_weights
from benchmarks.modality_runs import FAIR, OURS, STRATEGIES, run
from benchmarks.peer import PeerProcess
from fedmap.config import PROJECT
from fedmap.files import write_json

COMMON = ["num_rounds=10", "num_epochs=1", "learning_rate=0.003", "runtime=local"]
REAL = ["model=minilm_efficientnet_lite0", "model.fusion_output_dim=256", "dataset.image_size=224"]
SYNTHETIC = ["model=minilm_efficientnet_lite0", "model.fusion_output_dim=256", "dataset.image_size=96"]
QUICK = ["model=tiny", "model.freeze_bert=true", "model.freeze_vision=true", "dataset.image_size=32", "num_rounds=3"]
QUICK_SETTINGS = ("iid", "modality", "liar")
HEADLINE = "per-modality"  # the configuration's default: what the targets are about
SCORES = (
    "tuned",
    "at_half",
    "last.tuned",
    "last.at_half",
    "clients_mean.tuned",
    "clients_worst.tuned",
    "worst_label",
    "aggregation_seconds",
)

TOLD = ("evaluations", "candidates", "surrogate correlation", "share led by the student", "refused signals")

Runs = dict[str, dict[str, list[dict[str, Any]]]]  # by setting and strategy, one per seed


def measure(options: Options) -> Result:
    """Run every strategy in every setting with every seed."""
    extra = options.extra
    quick, data = options.quick, extra.data
    torch.set_num_threads(1)  # as the peer's process has
    settings = list(extra.settings or (QUICK_SETTINGS if quick else SETTINGS))
    strategies = list(extra.strategies or (name for name in STRATEGIES if name not in FAIR))
    notes = []
    if "peer" in strategies and quick and not python_of().is_file():
        strategies.remove("peer")
        notes.append("The peer is left out: it has no environment (python -m benchmarks.make_peer_venv).")
    overrides = [*COMMON, *(QUICK if quick else SYNTHETIC if data is None else REAL), *extra.set]
    trials = 8 if quick else extra.trials
    runs: Runs = {setting: {strategy: [] for strategy in strategies} for setting in settings}
    with tempfile.TemporaryDirectory() as temporary:
        work = extra.work or Path(temporary)
        movies = read_movies(work, data, 300 if quick else None, overrides)
        process = PeerProcess() if "peer" in strategies else None
        try:
            for seed in options.seed_list():
                for setting in settings:
                    ground = None
                    for strategy in strategies:
                        name = f"{'real' if data else 'synthetic'}-{setting}-{strategy}-{seed}.json"
                        key = {"overrides": overrides, "trials": trials if strategy in (*OURS, "peer") else None, "rows": len(movies.table)}
                        kept = None if strategy in extra.again else _kept(work / "runs" / name, key)
                        if kept is None:
                            ground = ground or deal(movies, SETTINGS[setting], seed)
                            kept = run(ground, strategy, trials, process)
                            write_json(work / "runs" / name, {"key": key, "run": kept})
                        runs[setting][strategy].append(kept)
                    print(f"seed {seed}, {SETTINGS[setting].title}: done", flush=True)
        finally:
            if process is not None:
                process.close()
    stem = extra.out.with_suffix("")
    plot_scores(runs, stem.with_name(stem.name + "_scores.png"))
    plot_weights(runs, stem.with_name(stem.name + "_weights.png"))
    figures = {
        f"{setting}.{strategy}.{score}": [float(one[score]) for one in repeated]
        for setting, by_strategy in runs.items()
        for strategy, repeated in by_strategy.items()
        for score in SCORES
    }
    return Result(
        settings={
            "data": "synthetic" if data is None else "real",
            "overrides": [override for override in overrides if "/" not in override],
            "trials": trials,
            "rounds": movies.config(0).num_rounds,
            "rows": len(movies.table),
            "labels": len(movies.label_names),
            "peer": process.versions if process is not None else None,
        },
        figures=figures,
        tables=tables(runs),
        targets=targets(runs, quick),
        details={"runs": _brief(runs)},
        notes=notes,
    )


def tables(runs: Runs) -> list[Table]:
    """Scores, paired differences, clients and seconds."""
    strategies = list(next(iter(runs.values())))

    def table(title: str, cell: Any) -> Table:
        rows = [
            [SETTINGS[setting].title, *(cell(by_strategy, strategy) for strategy in strategies)] for setting, by_strategy in runs.items()
        ]
        return Table(title, ("setting", *strategies), rows)

    def scores(name: str, digits: int = 3) -> Any:
        return lambda by_strategy, strategy: spread([one[name] for one in by_strategy[strategy]], digits)

    def gain(over: str, name: str = "tuned") -> Any:
        return lambda by_strategy, strategy: (
            "" if strategy == over else spread([100 * d for d in differences(by_strategy, strategy, over, name)], 1)
        )

    shown = [
        table("Server test, macro-F1, thresholds tuned on validation", scores("tuned")),
        table("Server test, macro-F1 at 0.5", scores("at_half")),
        table("Server test, the worst label's F1", scores("worst_label")),
        table("Clients' test rows, mean macro-F1", scores("clients_mean.tuned")),
        table("Clients' test rows, worst client's macro-F1", scores("clients_worst.tuned")),
        table("Seconds per aggregation, search included", scores("aggregation_seconds", 4)),
    ]
    for over in ("fedavg", "peer"):
        if over in strategies:
            shown.append(table(f"Points of macro-F1 above {over}, paired by seed, tuned thresholds", gain(over)))
            shown.append(table(f"Points of macro-F1 above {over}, paired by seed, at 0.5", gain(over, "at_half")))
    for strategy in (one for one in OURS if one in strategies):
        searches: list[list[object]] = []
        for setting, by_strategy in runs.items():
            told = [_told(one) for one in by_strategy[strategy]]
            known = [[value for each in told if (value := each[name]) is not None] for name in TOLD]
            searches.append([SETTINGS[setting].title, *(fmean(values) if values else "" for values in known)])
        shown.append(Table(f"The search of {strategy}, means per round", ("setting", *TOLD), searches))
    return shown


def targets(runs: Runs, quick: bool) -> list[Target]:
    """What is stated of the default configuration; a quick run is too small for it."""
    strategies = next(iter(runs.values()))
    if quick or not {"fedavg", HEADLINE} <= set(strategies):
        return []
    stated = []
    for setting in (name for name in runs if name in BENIGN):
        baseline = [one["tuned"] for one in runs[setting]["fedavg"]]
        allowed = stdev(baseline) if len(baseline) > 1 else 0.0
        below = fmean(differences(runs[setting], HEADLINE, "fedavg"))
        stated.append(Target(f"{SETTINGS[setting].title}: ours - FedAvg, not below its spread", below, -allowed))
    for setting in (name for name in runs if name in HARD):
        stated.append(Target(f"{SETTINGS[setting].title}: ours - FedAvg", fmean(differences(runs[setting], HEADLINE, "fedavg")), 0.03))
    if "peer" in strategies:
        for setting in runs:
            stated.append(Target(f"{SETTINGS[setting].title}: ours - peer", fmean(differences(runs[setting], HEADLINE, "peer")), 0.0, ">"))
    return stated


def differences(by_strategy: dict[str, list[dict[str, Any]]], strategy: str, over: str, name: str = "tuned") -> list[float]:
    """A strategy's score minus another's, seed by seed."""
    return [one[name] - other[name] for one, other in zip(by_strategy[strategy], by_strategy[over], strict=True)]


def _kept(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["run"] if content["key"] == key else None


def _told(one: dict[str, Any]) -> dict[str, float | None]:
    """What a run's search reported, as means over rounds; None where it reported nothing of the kind."""

    def mean(name: str) -> float | None:
        found = [told[name] for told in one["diagnostics"] if name in told]
        return fmean(found) if found else None

    evaluations = fmean(one["evaluations"]) if one["evaluations"] else mean("evaluations")
    led = [told.get("student-leads", 0.0) for told in one["diagnostics"]]
    found = (evaluations, mean("candidates"), mean("surrogate-correlation"), fmean(led), mean("rejected-signals"))
    return dict(zip(TOLD, found, strict=True))


def _brief(runs: Runs) -> dict[str, dict[str, dict[str, Any]]]:
    """What is saved of the runs besides the figures, as means over seeds: curves, weights by round and client, the search."""

    def brief(repeated: list[dict[str, Any]]) -> dict[str, Any]:
        rounds = range(len(repeated[0]["curve"]))
        weights = [one["weights"] for one in repeated if all(one["weights"])]
        told = [_told(one) for one in repeated]
        clients = range(len(repeated[0]["client_rows"]))
        return {
            "chosen_rounds": [one["chosen_round"] for one in repeated],
            "curve": [round(fmean(one["curve"][index] for one in repeated), 4) for index in rounds],
            "weights": [[round(fmean(w[index].get(str(k), 0.0) for w in weights), 3) for k in clients] for index in rounds]
            if weights
            else [],
            "search": {name: fmean(known) for name in TOLD if (known := [each for t in told if (each := t[name]) is not None])},
        }

    return {setting: {strategy: brief(repeated) for strategy, repeated in by.items()} for setting, by in runs.items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--data", type=Path, help="a folder with movies.csv and posters/; synthetic movies without it")
    parser.add_argument("--trials", type=int, default=32, help="candidates that ours and the peer try per round (default 32)")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), help="only these")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), help="only these")
    parser.add_argument("--work", type=Path, help="keep data, features and finished runs here, for the next start")
    parser.add_argument("--again", nargs="*", default=[], metavar="STRATEGY", help="run these anew though --work has them")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings, as for server_main.py")


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    sys.exit(main("modality_aware", measure, seeds=5, description=__doc__ or "", arguments=arguments))
