"""One federation of one method on the FedMAP paper's synthetic data, and the search for every method's settings.

All methods have one `BUDGET`: as many rounds, epochs and steps, the same step size and the same initial model (FedBN's has
BatchNorm between each hidden layer's linear map and its ReLU). What is searched besides: weight decay and clipping for all,
mu for FedProx, and for FedMAP sigma, the temperature, and one of: sigma's schedule, a learnt covariance, sigma by layer,
a prior on part of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.fedmap_synthetic import SCENARIOS, Generator, Network, VectorSplit, federation
from fedmap.aggregators.base import Aggregator
from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.fedbn import FedBN
from fedmap.aggregators.fedmap import FedMAP
from fedmap.aggregators.fedprox import FedProx
from fedmap.aggregators.individual import Individual
from fedmap.local.client import LocalClient
from fedmap.local.tensors import get_weights, layout_of
from fedmap.local.training import Evaluation, TrainingOptions
from fedmap.randomness import generator, torch_seed
from fedmap.simulation import Round, simulate

METHODS: dict[str, type[Any]] = {"individual": Individual, "fedmap": FedMAP, "fedbn": FedBN, "fedprox": FedProx, "fedavg": FedAvg}
TUNING_SEEDS = (1000,)
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Budget:
    """How long and how fast everyone trains; part of the calibration."""

    rounds: int = 8
    epochs: int = 1
    learning_rate: float = 1e-3
    batch_size: int = 64


@dataclass(frozen=True)
class Setting:
    """One method's tuned part: the optimiser's and the aggregator's own options."""

    weight_decay: float = 0.0
    clip_norm: float = 0.0
    aggregator: Mapping[str, Any] = field(default_factory=dict)


BUDGET = Budget()
TRIALS = 10
# Found by `--tune`: the best of TRIALS by validation on the federations of TUNING_SEEDS; after each, its validation score.
TUNED: dict[str, dict[str, Setting]] = {
    "label": {
        "individual": Setting(weight_decay=0.00156, clip_norm=1.0),  # 75.20
        "fedmap": Setting(
            weight_decay=0.00622, aggregator={"sigma": 24.6, "temperature": 71.9, "prior_covers": ["head"], "uncovered": "personal"}
        ),  # 74.67
        "fedbn": Setting(weight_decay=3.48e-05, clip_norm=5.0),  # 72.81
        "fedprox": Setting(weight_decay=1.18e-05, aggregator={"mu": 0.00209}),  # 55.13
        "fedavg": Setting(weight_decay=0.00012, clip_norm=5.0),  # 55.16
    },
    "feature": {
        "individual": Setting(weight_decay=0.000535, clip_norm=5.0),  # 82.41
        "fedmap": Setting(
            weight_decay=8.1e-05,
            clip_norm=1.0,
            aggregator={"sigma": 6.63, "temperature": 1.28, "prior_covers": ["first"], "uncovered": "personal"},
        ),  # 82.11
        "fedbn": Setting(weight_decay=3.19e-06, clip_norm=1.0),  # 78.79
        "fedprox": Setting(weight_decay=0.000344, clip_norm=1.0, aggregator={"mu": 0.00374}),  # 64.99
        "fedavg": Setting(weight_decay=0.028, clip_norm=1.0),  # 66.41
    },
    "quantity": {
        "individual": Setting(weight_decay=1.47e-06, clip_norm=1.0),  # 76.80
        "fedmap": Setting(weight_decay=1.01e-06, clip_norm=1.0, aggregator={"sigma": 41.8, "temperature": 2.82}),  # 76.82
        "fedbn": Setting(weight_decay=0.00569),  # 78.70
        "fedprox": Setting(aggregator={"mu": 0.01}),  # 61.78
        "fedavg": Setting(weight_decay=0.00056, clip_norm=1.0),  # 62.35
    },
}


def balanced_accuracy(evaluation: Evaluation) -> float:
    """The mean of both classes' recalls, in percent."""
    predicted, true = evaluation.logits[:, 0] >= 0, evaluation.labels[:, 0] == 1
    return float(50 * (predicted[true].mean() + (~predicted[~true]).mean()))


@lru_cache(maxsize=64)
def _federation(scenario: str, seed: int, settings: Generator) -> list[Mapping[str, VectorSplit]]:
    return federation(scenario, seed, settings)


def run(
    method: str, scenario: str, seed: int, setting: Setting, budget: Budget = BUDGET, settings: Generator | None = None
) -> tuple[Scores, Scores]:
    """Train one federation; validation and test scores [rounds, 10 clients] in percent."""
    aggregator: Aggregator[Any] = METHODS[method](**setting.aggregator)
    with torch_seed(seed, purpose="initial-model"):
        model = Network(normalised=method == "fedbn")
    options = TrainingOptions(
        learning_rate=budget.learning_rate,
        num_epochs=budget.epochs,
        batch_size=budget.batch_size,
        optimizer="adam",
        weight_decay=setting.weight_decay,
        clip_norm=setting.clip_norm,
    )
    splits = _federation(scenario, seed, settings or Generator())
    clients = [LocalClient(k, model, split, options, seed) for k, split in enumerate(splits, start=1)]
    scorers = [replace(client, options=replace(options, batch_size=4096)) for client in clients]
    scores: dict[str, list[list[float]]] = {"val": [], "test": []}

    def score(done: Round) -> None:
        broadcast = aggregator.broadcast(done.state)
        for split, rounds in scores.items():
            rounds.append(
                [balanced_accuracy(client.evaluate_round(broadcast, done.memories[client.client_id], split)) for client in scorers]
            )

    simulate(aggregator, aggregator.init(get_weights(model), layout_of(model)), clients, budget.rounds, seed=seed, on_round=score)
    return np.array(scores["val"]), np.array(scores["test"])


def stopped(validation: Scores) -> int:
    """Early stopping: the round with the best mean validation score."""
    return int(validation.mean(axis=1).argmax())


def reported_scores(
    method: str, scenario: str, seeds: Sequence[int], setting: Setting, budget: Budget = BUDGET, settings: Generator | None = None
) -> Scores:
    """Test scores [seeds, 10 clients] in percent of the round that validation chose."""
    rows = []
    for seed in seeds:
        validation, test = run(method, scenario, seed, setting, budget, settings)
        rows.append(test[stopped(validation)])
    return np.array(rows)


def draw(method: str, rng: np.random.Generator) -> Setting:
    """One random trial of a method."""
    setting = Setting(weight_decay=_log_uniform(rng, 1e-6, 3e-2), clip_norm=float(rng.choice([0.0, 1.0, 5.0])))
    if method == "fedprox":
        return replace(setting, aggregator={"mu": _log_uniform(rng, 1e-3, 1.0)})
    if method == "fedmap":
        return replace(setting, aggregator=_draw_prior(rng))
    return setting


def _draw_prior(rng: np.random.Generator) -> dict[str, Any]:
    prior: dict[str, Any] = {"sigma": _log_uniform(rng, 0.5, 50.0), "temperature": _log_uniform(rng, 0.1, 100.0)}
    kind = str(rng.choice(["isotropic", "schedule", "learnt", "layers", "part"]))
    if kind == "schedule":
        prior["sigma_decay"] = float(rng.choice([0.7, 1.3]))
    if kind == "learnt":
        prior |= {"covariance": str(rng.choice(["layer", "diagonal"])), "learn_sigma": True}
    if kind == "layers":
        prior |= {"covariance": "layer", "layer_sigma": {name: _log_uniform(rng, 0.5, 50.0) for name in ("first", "second", "head")}}
    if kind == "part":
        prior |= {
            "prior_covers": [["head"], ["second", "head"], ["first"]][int(rng.integers(3))],
            "uncovered": str(rng.choice(["personal", "shared"])),
        }
    return prior


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")


def default_setting(method: str) -> Setting:
    """The first trial of a search: no decay, no clipping, a weak prior."""
    return Setting(aggregator={"fedmap": {"sigma": 10.0}, "fedprox": {"mu": 0.01}}.get(method, {}))


def tune(trials: int, seeds: Sequence[int], say: Callable[[str], None] = print) -> dict[str, dict[str, Setting]]:
    """The best of `trials` settings of each method in each scenario, by the mean best validation score over the seeds."""
    winners: dict[str, dict[str, Setting]] = {}
    for scenario in SCENARIOS:
        winners[scenario] = {}
        for method in METHODS:
            rng = generator(0, purpose=f"search-{scenario}-{method}")
            candidates = [default_setting(method), *(draw(method, rng) for _ in range(trials - 1))]
            reached = []
            for setting in candidates:
                validations = [run(method, scenario, seed, setting)[0] for seed in seeds]
                reached.append(float(np.mean([v.mean(axis=1).max() for v in validations])))
            best = int(np.argmax(reached))
            winners[scenario][method] = candidates[best]
            say(
                f'"{scenario}", "{method}": {candidates[best]!r},  # {reached[best]:.2f}; first {reached[0]:.2f}, median {np.median(reached):.2f}'
            )
    return winners
