"""Processor seconds of one aggregation, search included, at the size of a real model: ours against the peer, same candidates, one process each.

The model trains its image tower (ResNet-18, 11.4 million parameters), so that averaging and evaluating cost what they cost in
the application. Both are given the same five models, the same validation rows, decoded once, and the same evaluation
code; the peer's own application decodes every picture anew and writes a snapshot for each candidate.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.modality_runs import OURS, Timed, overrides_of, peer_judge
from benchmarks.peer import Peer, PeerProcess
from fedmap.aggregators.judge import with_judge
from fedmap.build import build_aggregator, build_data, build_model, cache_dir, prepare_split, training_options
from fedmap.config import compose_and_resolve, parse
from fedmap.data.prepare import prepare
from fedmap.local.judge import ModelJudge
from fedmap.local.tensors import get_weights, layout_of
from fedmap.randomness import generator
from fedmap.records import ClientSignals, ClientUpdate
from fedmap.weights import Weights

MODEL = ("model=minilm_resnet18", "dataset.image_size=64", "tracking=none")
SMALL = ("model=tiny", "dataset.image_size=32", "tracking=none")
CLIENTS = 5
ROWS = 100  # on the server's validation split, as many as the reference application has


def seconds_of_aggregation(strategy: str, trials: int, process: PeerProcess, *, small: bool = False, rounds: int = 2) -> dict[str, Any]:
    """Aggregate the same five models with ours and with the peer; the first round of each is a warm-up and is left out.

    Args:
        strategy: which of ours, a key of `benchmarks.modality_runs.STRATEGIES`.
        trials: `n_trials_per_round` of both.
        process: where the peer runs.
        small: take a tiny model.
        rounds: how many, 2 or more.

    Returns:
        "parameters", and for "ours" and "peer" the processor seconds of each round but the first, and the models evaluated in the last.
    """
    assert strategy in OURS
    with tempfile.TemporaryDirectory() as folder:
        prepare(root=folder, source="synthetic", num_movies=400, server_val=ROWS / 400, seed=0, plot=False)
        base = [*(SMALL if small else MODEL), f"dataset.root={folder}"]
        config = parse(compose_and_resolve("config", [*base, *overrides_of(strategy, trials)]))
        data = build_data(config)
        model = build_model(config, data)
        validation = prepare_split(model, data.server()["val"], Path(cache_dir(config)))
        initial, layout = get_weights(model), layout_of(model)
        judge = ModelJudge(model, validation, replace(training_options(config), batch_size=ROWS))
        updates = [_update(initial, client_id) for client_id in range(CLIENTS)]
        ours = Timed(with_judge(build_aggregator(config), judge), processor=True)

        theirs = Peer(process, peer_judge(judge), trials, seed=0, processor=True)
        evaluations = 0.0
        for aggregator in (ours, theirs):
            state = aggregator.init(initial, layout)
            for index in range(rounds):
                sent = [replace(update, round_index=index + 1) for update in updates]
                state, report = aggregator.aggregate(replace(state, weights=initial), sent)
                if aggregator is ours:
                    evaluations = report.diagnostics.get("evaluations", float("nan"))
    return {
        "parameters": int(sum(array.size for array in initial.values())),
        "ours": {"seconds": ours.seconds[1:], "evaluations": evaluations},
        "peer": {"seconds": theirs.seconds[1:], "evaluations": theirs.evaluations[-1]},
    }


def _update(initial: Weights, client_id: int) -> ClientUpdate:
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
