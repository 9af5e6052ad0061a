"""What a search of 200 candidates costs in strategy=modality_aware, in full evaluations.

Five clients, models of 11.4 million parameters (ResNet-18 is trained, the text tower frozen), 100 validation and 100 test rows. Two currencies, both in
processor seconds: one evaluation of a mixed model on the validation rows (mix, load, forward pass, score), and what the server does with every
round's model: its validation and its test rows. The price is everything that `aggregate` does. Five evaluations of it are of the clients' own models: signals
that a round measures whatever is searched for. So the price beyond them is stated, too, and what the same rounds take without a candidate of Optuna's. On the wall the server scores as many models
at once as it has processors: that round is timed again, and must end with the same bits.

`--profile` prints where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Options, Result, Table, Target, main, median
from benchmarks.modality_runs import overrides_of
from benchmarks.modality_timing import CLIENTS, ROWS, STRATEGY, TRAINED, made_up_update
from fedmap.aggregators.judge import with_judge
from fedmap.aggregators.modality_aware import teacher
from fedmap.aggregators.modality_aware.bench import Bench
from fedmap.aggregators.modality_aware.mixing import Mix
from fedmap.aggregators.modality_aware.objective import Objective
from fedmap.build import build_aggregator, build_data, build_model, cache_dir, prepare_split, training_options
from fedmap.config import PROJECT, compose_and_resolve, parse
from fedmap.data.prepare import prepare
from fedmap.errors import FederationError
from fedmap.local.judge import ModelJudge, at_once
from fedmap.local.tensors import get_weights, layout_of, set_weights
from fedmap.local.training import evaluate

CANDIDATES = 200
MOVIES = 400


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Processor seconds of all threads, or those of another clock."""
    started = clock()
    work()
    return clock() - started


def measure(options: Options) -> Result:
    """Rounds with a search, each between evaluations that it is compared with."""
    torch.set_num_threads(1)
    rounds = 1 if options.quick else 6
    with tempfile.TemporaryDirectory() as folder:
        prepare(root=folder, server_val=ROWS / MOVIES, server_test=ROWS / MOVIES, seed=0, plot=False, source="synthetic", num_movies=MOVIES)
        overrides = [*TRAINED, f"dataset.root={folder}", *overrides_of(STRATEGY, CANDIDATES)]
        config = parse(compose_and_resolve("config", overrides))
        data = build_data(config)
        model = build_model(config, data)
        splits = {name: prepare_split(model, split, Path(cache_dir(config))) for name, split in data.server().items()}
        training = replace(training_options(config), batch_size=ROWS)
        initial, layout = get_weights(model), layout_of(model)
        judge = ModelJudge(model, splits["val"], training)
        aggregator: Any = with_judge(build_aggregator(config), judge)
        together = replace(judge, at_once=at_once(model, training, threads=1))
        parallel: Any = with_judge(build_aggregator(config), together)
        without: Any = with_judge(replace(build_aggregator(config), n_trials_per_round=0), judge)
        updates = [made_up_update(initial, client_id) for client_id in range(CLIENTS)]

        def one() -> None:
            Bench(Objective(judge), updates, initial, layout).verdict(Mix(np.full(CLIENTS, 1 / CLIENTS)))

        def server() -> None:
            set_weights(model, initial)
            for name in ("val", "test"):
                evaluate(model, splits[name], training)

        state = aggregator.init(initial, layout)
        figures: dict[str, list[float]] = {
            "aggregate": [],
            "evaluation": [],
            "server_evaluation": [],
            "without": [],
            "evaluations": [],
            "optuna": [],
            "wall": [],
            "wall_evaluation": [],
        }
        digest = hashlib.sha256()
        for index in range(rounds + 1):  # the first warms up
            sent = [replace(update, round_index=index + 1) for update in updates]
            before = state
            profile = cProfile.Profile(time.process_time) if options.extra.profile and index == rounds else None
            around = [(seconds(one), seconds(server))]
            started = time.process_time()
            if profile is not None:
                profile.enable()
            state, report = aggregator.aggregate(replace(state, weights=initial), sent)
            if profile is not None:
                profile.disable()
                pstats.Stats(profile).sort_stats("cumulative").print_stats(40)
            taken = time.process_time() - started
            around.append((seconds(one), seconds(server)))
            for array in (*state.weights.values(), state.trial_draws, state.trial_gains):
                digest.update(np.ascontiguousarray(array).tobytes())
            if index:
                figures["without"].append(
                    seconds(lambda before=before, sent=sent: without.aggregate(replace(before, weights=initial), sent))
                )
                same: list[Any] = []

                def at_the_same_time(before: Any = before, sent: Any = sent, same: list[Any] = same) -> None:
                    same.append(parallel.aggregate(replace(before, weights=initial), sent)[0])

                figures["wall"].append(seconds(at_the_same_time, time.perf_counter))
                figures["wall_evaluation"].append(seconds(one, time.perf_counter))
                if any(not np.array_equal(array, same[0].weights[name]) for name, array in state.weights.items()):
                    raise FederationError("several models at once gave other bits than one after another")
                figures["aggregate"].append(taken)
                figures["evaluation"].append(sum(pair[0] for pair in around) / 2)
                figures["server_evaluation"].append(sum(pair[1] for pair in around) / 2)
                figures["evaluations"].append(report.diagnostics["evaluations"])
                figures["optuna"].append(seconds(lambda before=before, index=index: _optuna_alone(before, index)))
    price = [a / b for a, b in zip(figures["aggregate"], figures["evaluation"], strict=True)]
    beyond = [each - CLIENTS for each in price]
    candidates = [(a - b) / c for a, b, c in zip(figures["aggregate"], figures["without"], figures["evaluation"], strict=True)]
    in_rounds = [a / b for a, b in zip(figures["aggregate"], figures["server_evaluation"], strict=True)]
    optuna = [a / b for a, b in zip(figures["optuna"], figures["evaluation"], strict=True)]
    on_the_wall = [a / b for a, b in zip(figures["wall"], figures["wall_evaluation"], strict=True)]
    rows: list[list[object]] = [
        ["aggregate, search included, processor seconds", median(figures["aggregate"])],
        ["one evaluation on the validation rows, processor seconds", median(figures["evaluation"])],
        ["the server's evaluation of a round, processor seconds", median(figures["server_evaluation"])],
        ["forward passes over the validation rows", median(figures["evaluations"])],
        ["Optuna alone, in evaluations on the validation rows", median(optuna)],
        ["price, in evaluations on the validation rows", median(price)],
        ["the same beyond the clients' own models", median(beyond)],
        [f"the {CANDIDATES} candidates alone: against rounds without them", median(candidates)],
        ["price, in the server's evaluations of a round", median(in_rounds)],
        [f"{together.at_once} models at once: aggregate, seconds on the wall", median(figures["wall"])],
        ["the same in evaluations on the validation rows, on the wall", median(on_the_wall)],
    ]
    return Result(
        settings={
            "clients": CLIENTS,
            "candidates": CANDIDATES,
            "models_at_once": together.at_once,
            "rows": {"val": ROWS, "test": ROWS},
            "parameters": sum(map(np.size, initial.values())),
        },
        figures={
            **figures,
            "price": price,
            "price_beyond_own": beyond,
            "price_of_candidates": candidates,
            "price_on_the_wall": on_the_wall,
            "price_in_server_evaluations": in_rounds,
            "optuna_in_evaluations": optuna,
        },
        tables=[Table(f"A search of {CANDIDATES} candidates", ("", "median"), rows)],
        targets=[
            Target(
                "price of 200 candidates, in the server's evaluations of a round (validation and test rows)", median(in_rounds), 10, "<="
            ),
            Target(
                "price of 200 candidates, in evaluations on the validation rows, beyond the clients' own models", median(beyond), 10, "<="
            ),
            Target("price of 200 candidates, in evaluations on the validation rows alone", median(price), 10, "<="),
            Target("price of 200 candidates, in evaluations on the validation rows, seconds on the wall", median(on_the_wall), 10, "<="),
        ],
        details={"digest": digest.hexdigest()},
        notes=[f"Models, draws and gains of all rounds: sha256 {digest.hexdigest()[:16]}."],
    )


def _optuna_alone(state: Any, index: int) -> None:
    """The same number of trials around the same past, with a score that costs nothing."""
    teacher.search(
        lambda alphas: float(alphas[0]), state.trial_draws, state.trial_gains, num_trials=CANDIDATES, seed=0, round_index=index + 1
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("--profile", action="store_true", help="print where the last round's processor time goes")


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    sys.exit(main("search", measure, seeds=1, description=__doc__ or "", arguments=arguments))
