"""Bytes of a client and round against the published FedOps application, and what each way of packing does to macro-F1.

Bytes: BERT-base with ResNet-18, all of it trained, BERT frozen, and both frozen; serialised messages after a real round. The
peer's are those of its own code (fedops 1.1.30.19 over Flower 1.32): the whole state whether it is trained or not, float32, down and up
and down again for evaluation. Macro-F1: frozen towers and a trained head, five clients, ten rounds; paired with the run whose
messages are not packed. Needs `python -m benchmarks.make_peer_venv`.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks.harness import Options, Result, Table, Target, main, spread
from benchmarks.modality_aware import COMMON, QUICK, REAL, SYNTHETIC
from benchmarks.modality_ground import SETTINGS, deal, read_movies
from benchmarks.wire_bytes import FROZEN, exchange, peer_bytes, train_a_round
from benchmarks.wire_scores import scores
from fedmap.compression import Compression
from fedmap.config import PROJECT, compose_and_resolve, parse
from fedmap.files import plain, write_json

MODELS = {"whole": "all trained", "frozen-bert": "BERT frozen", "head": "both towers frozen"}
STRATEGIES = {"fedavg": "fedavg", "per-modality": "modality_aware"}  # the names of benchmarks.modality_runs
GROUNDS = ("iid", "modality")


def options_of_compression() -> dict[str, Compression]:
    """What is compared: the options of the configuration, and further values of their settings."""
    named = {
        name: parse(compose_and_resolve("config", [f"compression={name}"])).compression
        for name in ("none", "lossless", "fp16", "int8", "topk")
    }
    topk = named["topk"]
    return {
        **{name: how for name, how in named.items() if name != "topk"},
        "int8 both ways": replace(named["int8"], down="int8"),
        "topk 20 %": replace(topk, density=0.2),
        "topk 5 %": replace(topk, density=0.05),
        "topk 1 %": replace(topk, density=0.01),
        "topk 5 %, no feedback": replace(topk, density=0.05, feedback=False),
    }


def measure(options: Options) -> Result:
    """Both halves."""
    torch.set_num_threads(1)
    codes = options_of_compression()
    with tempfile.TemporaryDirectory() as folder:
        file = (options.extra.work or Path(folder)) / "wire" / f"bytes{'-quick' if options.quick else ''}.json"
        key = {"how": {name: vars(how) for name, how in codes.items()}}
        bytes_found = _kept(file, key, functools.partial(measure_bytes, codes, options.quick))
    sizes, peer = bytes_found["sizes"], bytes_found["peer"]
    found = measure_scores(codes, options)
    figures = {
        f"{model}.{name}.{key}": [float(size[key])] for model, by_name in sizes.items() for name, size in by_name.items() for key in size
    }
    figures |= {
        f"{ground}.{STRATEGIES[strategy]}.{name}.{key}": [one[key] for one in runs]
        for (ground, strategy, name), runs in found.items()
        for key in ("tuned", "last.tuned", "bytes")
    }
    return Result(
        settings={
            "peer": peer,
            "data": "synthetic" if options.extra.data is None else "real",
            "rounds": 3 if options.quick else 10,
            "compression": {name: vars(how) for name, how in codes.items()},
        },
        figures=figures,
        tables=[*byte_tables(sizes, "A small BERT" if options.quick else "BERT-base"), *score_tables(found)],
        targets=targets(sizes, found, options.quick),
        notes=["The peer's bytes do not depend on what is frozen: its application sends the whole state."],
    )


Sizes = dict[str, dict[str, dict[str, float]]]  # by model and option
Scores = dict[tuple[str, str, str], list[dict[str, Any]]]  # by ground, strategy and option, one per seed


def measure_bytes(codes: dict[str, Compression], quick: bool) -> dict[str, Any]:
    """ "sizes": bytes down and up, their ratio to the peer's, and whether the very bits arrive; "peer": its versions."""
    sizes: Sizes = {}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in FROZEN:
            trained = train_a_round(Path(folder), model, quick)
            peer = peer_bytes(trained.tensors)
            versions, theirs = peer["versions"], sum(peer["bytes"].values())
            sizes[model] = {"peer": {"down": theirs - peer["bytes"]["train-up"], "up": peer["bytes"]["train-up"], "ratio": 1.0}}
            for name, how in codes.items():
                one = exchange(trained, how)
                ours = one.down + one.up
                counted = one.counted / ours
                sizes[model][name] = {"down": one.down, "up": one.up, "ratio": ours / theirs, "same": one.same, "counted": counted}
            print(f"bytes, {MODELS[model]}: done", flush=True)
    return {"sizes": sizes, "peer": versions}


def measure_scores(codes: dict[str, Compression], options: Options) -> Scores:
    """Every option in every situation with every seed."""
    extra, quick, trials = options.extra, options.quick, 8 if options.quick else 32
    overrides = [*COMMON, *(QUICK if quick else SYNTHETIC if extra.data is None else REAL)]
    found: Scores = {}
    with tempfile.TemporaryDirectory() as folder:
        work = extra.work or Path(folder)
        movies = read_movies(work, extra.data, 300 if quick else extra.movies, overrides)
        for seed in options.seed_list():
            for setting in GROUNDS[:1] if quick else GROUNDS:
                ground = deal(movies, SETTINGS[setting], seed)
                for strategy in STRATEGIES:
                    for name, how in codes.items():
                        file = work / "wire" / f"{setting}-{strategy}-{name.replace(' ', '_')}-{seed}.json"
                        key = {"overrides": overrides, "rows": len(movies.table), "trials": trials, "how": vars(how)}
                        one = _kept(file, key, functools.partial(scores, ground, strategy, trials, how))
                        found.setdefault((setting, strategy, name), []).append(one)
                print(f"scores, {SETTINGS[setting].title}, seed {seed}: done", flush=True)
    return found


def _kept(file: Path, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file keeps under the key, or what is made now, and kept."""
    one: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if one.get("key") != key:
        one = {"key": key, "run": plain(make())}
        write_json(file, one)
    found: dict[str, Any] = one["run"]
    return found


def byte_tables(sizes: Sizes, bert: str) -> list[Table]:
    """MB down and up, and the part of the peer's."""
    return [
        Table(
            f"{bert} and ResNet-18, {MODELS[model]}: a client's round",
            ("", "MB down", "MB up", "of the peer's", "1 /"),
            [[name, one["down"] / 1e6, one["up"] / 1e6, one["ratio"], 1 / one["ratio"]] for name, one in by_name.items()],
        )
        for model, by_name in sizes.items()
    ]


def differences(found: Scores, ground: str, strategy: str, name: str, score: str = "tuned") -> list[float]:
    """Points of macro-F1 by which runs differ from those that are not packed, seed by seed."""
    pairs = zip(found[ground, strategy, name], found[ground, strategy, "none"], strict=True)
    return [100 * (ours[score] - unpacked[score]) for ours, unpacked in pairs]


def score_tables(found: Scores) -> list[Table]:
    """Macro-F1 with its spread, and the paired difference in points."""
    tables = []
    for ground, strategy in dict.fromkeys((ground, strategy) for ground, strategy, _ in found):
        rows = [
            [
                name,
                spread([one["tuned"] for one in runs]),
                spread(differences(found, ground, strategy, name), 2),
                spread(differences(found, ground, strategy, name, "last.tuned"), 2),
                fmean(one["bytes"] for one in runs) / fmean(one["bytes"] for one in found[ground, strategy, "none"]),
            ]
            for (g, s, name), runs in found.items()
            if (g, s) == (ground, strategy)
        ]
        columns = ("", "macro-F1 of the chosen round", "points, chosen round", "points, last round", "bytes")
        tables.append(Table(f"{STRATEGIES[strategy]}, {SETTINGS[ground].title}", columns, rows))
    return tables


def targets(sizes: Sizes, found: Scores, quick: bool) -> list[Target]:
    """What was stated: bytes, equal bits, and no loss beyond the spread over seeds."""
    whole, frozen = sizes["whole"], sizes["frozen-bert"]
    stated = [
        Target("whole model, lossless: part of the peer's bytes", whole["lossless"]["ratio"], 2 / 3, "<="),
        Target("whole model, lossless: the very bits arrive", whole["lossless"]["same"], 1, "=="),
        Target("whole model, fp16: part of the peer's bytes", whole["fp16"]["ratio"], 1 / 3, "<="),
        Target(
            "results.json counts what travels: worst share", min(s["counted"] for m in sizes.values() for s in list(m.values())[1:]), 0.97
        ),
    ]
    if quick:
        return stated
    stated.append(Target("BERT frozen, int8: part of the peer's bytes", frozen["int8"]["ratio"], 1 / 40, "<="))
    stated.append(Target("both towers frozen, none: part of the peer's bytes", sizes["head"]["none"]["ratio"], 1 / 40, "<="))
    for ground, strategy in dict.fromkeys((ground, strategy) for ground, strategy, _ in found):
        where = f"{STRATEGIES[strategy]}, {SETTINGS[ground].title}"
        unpacked = [100 * one["tuned"] for one in found[ground, strategy, "none"]]
        exact = [abs(d) for d in differences(found, ground, strategy, "lossless")]
        stated.append(Target(f"{where}: lossless changes the score by, points", max(exact), 0, "=="))
        for name in ("fp16", "int8"):
            loss = -fmean(differences(found, ground, strategy, name))
            stated.append(Target(f"{where}: {name} loses, points; stated: the spread over seeds", loss, stdev(unpacked), "<="))
    return stated


def arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--data", type=Path, help="a folder with movies.csv and posters/; synthetic movies without it")
    parser.add_argument("--movies", type=int, help="only so many")
    parser.add_argument("--work", type=Path, help="keep data, features and finished runs here, for the next start")


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    sys.exit(main("wire", measure, seeds=5, quick_seeds=2, description=__doc__ or "", arguments=arguments))
