"""Processor seconds of one aggregation, search included: ours against the published FedOps strategy, same candidates, one process each.

Frozen towers, the configuration of `benchmarks.modality_aware`: only the head is trained, sent and mixed. The peer is timed
twice: given our prepared features, so that both evaluate with the same code, and as its own application evaluates: it
keeps nothing between candidates, so that every one of them reads the posters, runs the towers and writes a snapshot of the model.
Trained towers: five models of 11.4 million parameters (ResNet-18), the same validation rows, decoded once for both, the same evaluation code.

The processor's clock counts what this process computes, and not what others on the machine do. Needs `python -m benchmarks.make_peer_venv`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Options, Result, Table, Target, main
from benchmarks.modality_runs import Timed, overrides_of, peer_judge
from benchmarks.peer import Peer, PeerJudge, PeerProcess
from fedmap.aggregators.judge import with_judge
from fedmap.build import build_aggregator, build_data, build_model, cache_dir, prepare_split, training_options
from fedmap.config import PROJECT, compose_and_resolve, parse
from fedmap.data.prepare import prepare
from fedmap.local.judge import ModelJudge
from fedmap.local.tensors import get_weights, layout_of
from fedmap.randomness import generator
from fedmap.records import ClientSignals, ClientUpdate
from fedmap.weights import Weights

FROZEN = ("model=minilm_efficientnet_lite0", "model.fusion_output_dim=256", "dataset.image_size=224", "tracking=none")
TRAINED = ("model=minilm_resnet18", "dataset.image_size=64", "tracking=none")
SMALL = ("model=tiny", "model.freeze_bert=true", "model.freeze_vision=true", "dataset.image_size=32", "tracking=none")
STRATEGY = "per-modality"  # the configuration's default
CLIENTS = 5
ROWS = 100  # on the server's validation split, as many as the reference application has
TRIALS = (32, 100)


def measure(options: Options) -> Result:
    """Time both in every situation."""
    torch.set_num_threads(1)  # as the peer's process has
    situations = [("frozen", FROZEN, 32, True), *(("trained", TRAINED, trials, False) for trials in TRIALS)]
    if options.quick:
        situations = [("frozen", SMALL, 4, True), ("trained", SMALL, 4, False)]
    figures: dict[str, list[float]] = {}
    rows: list[list[object]] = []
    stated: list[Target] = []
    process = PeerProcess()
    try:
        for name, model, trials, deployed in situations:
            timed = seconds_of_aggregation(model, trials, process, options.extra.data, deployed=deployed)
            for who, one in timed["seconds"].items():
                figures[f"{name}.{trials}.{who}.seconds"] = one
                title = {"ours": "ours", "peer": "peer, our evaluation", "deployed": "peer, as its application evaluates"}[who]
                rows.append([f"{name} towers, {trials} trials", title, fmean(one), timed["evaluations"][who], f"{timed['parameters']:,}"])
                if who != "ours":
                    ratio = fmean(one) / fmean(timed["seconds"]["ours"])
                    stated.append(Target(f"{name} towers, {trials} trials: {title} / ours, processor seconds", ratio, 10.0))
            print(f"{name} towers, {trials} trials: done", flush=True)
        versions = process.versions
    finally:
        process.close()
    columns = ("", "who", "processor seconds", "models evaluated", "parameters sent")
    return Result(
        settings={"clients": CLIENTS, "rows": ROWS, "peer": versions, "data": "synthetic" if options.extra.data is None else "real"},
        figures=figures,
        tables=[Table("One aggregation, search included", columns, rows)],
        targets=[] if options.quick else stated,
    )


def seconds_of_aggregation(
    settings: tuple[str, ...], trials: int, process: PeerProcess, data: Path | None, *, deployed: bool, rounds: int = 2
) -> dict[str, Any]:
    """Aggregate the same five models with ours and with the peer; the first round of each is a warm-up and is left out.

    Args:
        settings: overrides that choose the model.
        trials: `n_trials_per_round` of both.
        process: where the peer runs.
        data: a folder with movies.csv and posters/; None generates movies.
        deployed: also time the peer as its application evaluates; one round without a warm-up, which would be as long.
        rounds: how many, 2 or more.

    Returns:
        "parameters", and by "ours", "peer" and perhaps "deployed": "seconds", a list, and "evaluations" of the last round.
    """
    with tempfile.TemporaryDirectory() as folder:
        source: dict[str, Any] = {"source": "synthetic", "num_movies": 400}
        if data is not None:
            source = {"path": str(data), "labels": "found", "limit": 400}
        prepare(root=folder, server_val=ROWS / 400, seed=0, plot=False, **source)
        overrides = [*settings, f"dataset.root={folder}", *overrides_of(STRATEGY, trials)]
        config = parse(compose_and_resolve("config", overrides))
        rows = build_data(config)
        model = build_model(config, rows)
        validation = prepare_split(model, rows.server()["val"], Path(cache_dir(config)))
        initial, layout = get_weights(model), layout_of(model)
        evaluation = replace(training_options(config), batch_size=ROWS)
        judge = ModelJudge(model, validation, evaluation)
        updates = [made_up_update(initial, client_id) for client_id in range(CLIENTS)]

        def anew(weights: Weights) -> tuple[float, float]:
            """What the peer's application does for every candidate: a snapshot, the rows from their files, the whole model."""
            with tempfile.TemporaryDirectory() as fresh:
                torch.save(model.state_dict(), Path(fresh) / "snapshot.pth")
                other = parse(compose_and_resolve("config", [*overrides, f"dataset.cache_dir={fresh}/cache"]))
                split = prepare_split(model, build_data(other).server()["val"], Path(fresh) / "cache")
                return peer_judge(ModelJudge(model, split, evaluation))(weights)

        ours = Timed(with_judge(build_aggregator(config), judge), processor=True)
        found: dict[str, Any] = {"parameters": sum(array.size for array in initial.values()), "seconds": {}, "evaluations": {}}

        def drive(who: str, aggregator: Timed | Peer, count: int) -> None:
            state = aggregator.init(initial, layout)
            evaluations = float("nan")
            for index in range(count):
                sent = [replace(update, round_index=index + 1) for update in updates]
                state, report = aggregator.aggregate(replace(state, weights=initial), sent)
                evaluations = report.diagnostics.get("evaluations", float("nan"))
            found["seconds"][who] = aggregator.seconds[1:] or aggregator.seconds
            found["evaluations"][who] = aggregator.evaluations[-1] if isinstance(aggregator, Peer) else evaluations

        def peer(judged: PeerJudge) -> Peer:
            return Peer(process, judged, trials, seed=0, processor=True)

        drive("ours", ours, rounds)
        drive("peer", peer(peer_judge(judge)), rounds)
        if deployed:
            drive("deployed", peer(anew), 1)
    return found


def made_up_update(initial: Weights, client_id: int) -> ClientUpdate:
    """A model a little away from the initial one."""
    rng = generator(0, purpose="timing", client_id=client_id)
    weights = {
        name: np.asarray(array.astype(np.float64) + 0.01 * rng.standard_normal(array.shape), dtype=array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in initial.items()
    }
    signals = ClientSignals(
        f1_before=0.1,
        f1_after=float(rng.uniform(0.1, 0.3)),
        validation_loss=float(rng.uniform(0.3, 0.6)),
        train_loss=0.5,
        update_norm=float(np.sqrt(sum(array.size for array in weights.values())) * 0.01),
        gradient_norm=1.0,
        label_imbalance=float(rng.uniform(0.0, 0.3)),
        diversity=1.0,
        modality_shares={"text": 1.0, "image": 1.0},
        share_complete=1.0,
    )
    return ClientUpdate(client_id, 1, weights, num_examples=100 + 10 * client_id, num_steps=10, signals=signals)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--data", type=Path, help="a folder with movies.csv and posters/; synthetic movies without it")


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    sys.exit(main("modality_timing", measure, seeds=1, description=__doc__ or "", arguments=arguments))
