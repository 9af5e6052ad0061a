"""Where FedAvg, FedProx and SCAFFOLD settle on quadratic clients, against closed forms.

Client k minimises f_k(x) = h_k/2 (x - a_k)^2 with n_k rows; p_k = n_k/n. The optimum of sum_k p_k f_k is

    x* = sum_k p_k h_k a_k / sum_k p_k h_k

FedAvg. A step of gradient descent multiplies x - a_k by 1 - eta h_k. After K_k steps from w the client stands at
a_k + r_k (w - a_k) with r_k = (1 - eta h_k)^K_k, having moved by (1 - r_k)(a_k - w). The mean of these movements is zero at

    w = sum_k p_k (1 - r_k) a_k / sum_k p_k (1 - r_k)

For K_k = 1 the weights are p_k eta h_k and w = x*; for K_k -> infinity they are p_k and w is the mean of the a_k.

FedProx. The objective h_k/2 (x - a_k)^2 + mu/2 (x - w)^2 has its minimum at b_k = (h_k a_k + mu w)/(h_k + mu), and a step
multiplies x - b_k by 1 - eta (h_k + mu). After K_k steps the client has moved by (1 - r_k)(b_k - w) with
r_k = (1 - eta (h_k + mu))^K_k, and b_k - w = h_k/(h_k + mu) (a_k - w), so that it settles at

    w = sum_k p_k c_k a_k / sum_k p_k c_k,    c_k = (1 - r_k) h_k / (h_k + mu)

With mu = 0 this is FedAvg's point; for large mu and many steps c_k -> h_k / mu, and w -> x*: FedProx lies in between.

SCAFFOLD. At x* with c_k = f_k'(x*) and c = mean_k c_k = 0 every corrected gradient is zero: x* is its fixed point whatever
the K_k, with either option (the paper's unweighted means ask for equal n_k here).

All runs go through the product's clients, rules, training loop and aggregators, in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.harness import Options, Result, Table, Target, main
from fedmap.aggregators.base import Aggregator
from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.fedprox import FedProx
from fedmap.aggregators.scaffold import Scaffold
from fedmap.data.base import Batch
from fedmap.local.client import LocalClient
from fedmap.local.tensors import get_weights, layout_of
from fedmap.local.training import TrainingOptions
from fedmap.simulation import simulate

TOLERANCE = 1e-9
MU = 1.0


@dataclass(frozen=True)
class Quadratic:
    """One client: f(x) = curvature/2 (x - minimum)^2, its number of rows and of local steps."""

    curvature: float
    minimum: float
    steps: int
    rows: int = 2


@dataclass(frozen=True)
class Problem:
    """Clients that disagree, and the step size that they share."""

    name: str
    clients: Sequence[Quadratic]
    learning_rate: float


PROBLEMS = (
    Problem("two clients", (Quadratic(1.0, 0.0, 10), Quadratic(4.0, 1.0, 10)), 0.1),
    Problem("two clients, 2 and 12 steps", (Quadratic(1.0, 0.0, 12), Quadratic(4.0, 1.0, 2)), 0.1),
    Problem("five clients", tuple(Quadratic(h, a, 8) for h, a in ((0.5, -3.0), (1.0, 2.0), (2.0, 0.5), (3.0, -1.0), (6.0, 4.0))), 0.1),
)
WEIGHTED = Problem("two clients, 2 and 6 rows", (Quadratic(1.0, 0.0, 10, rows=2), Quadratic(4.0, 1.0, 10, rows=6)), 0.1)


class Point(nn.Module):
    """One trainable number and a client's quadratic, which comes with the batch."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([start], dtype=torch.float64))

    def forward(self, batch: Batch) -> torch.Tensor:
        """x for every row, [B, 1]."""
        return self.x.expand(len(batch["labels"]), 1)

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean of curvature/2 (x - minimum)^2 over the rows."""
        return (batch["curvature"] / 2 * (logits - batch["minimum"]).square()).mean()


class QuadraticSplit:
    """Rows that all say the same: the client's curvature and minimum."""

    def __init__(self, client: Quadratic, rows: int) -> None:
        self.labels: npt.NDArray[np.uint8] = np.zeros((rows, 1), dtype=np.uint8)
        self.modalities = np.ones((rows, 1), dtype=bool)
        self.row_ids = [f"row {i}" for i in range(rows)]
        self.client = client

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """ "curvature" and "minimum", float64 [B, 1], and labels without meaning."""
        shape = (len(rows), 1)
        return {
            "curvature": torch.full(shape, self.client.curvature, dtype=torch.float64),
            "minimum": torch.full(shape, self.client.minimum, dtype=torch.float64),
            "labels": torch.zeros(shape),
        }


def optimum(problem: Problem) -> float:
    """x* = sum_k n_k h_k a_k / sum_k n_k h_k."""
    return _mean(problem, [client.curvature for client in problem.clients])


def fedprox_point(problem: Problem, mu: float) -> float:
    """Where FedProx settles; FedAvg with mu = 0."""
    moved = []
    for client in problem.clients:
        rest = (1 - problem.learning_rate * (client.curvature + mu)) ** client.steps
        moved.append((1 - rest) * client.curvature / (client.curvature + mu))
    return _mean(problem, moved)


def _mean(problem: Problem, shares: Sequence[float]) -> float:
    weights = [share * client.rows for share, client in zip(shares, problem.clients, strict=True)]
    return sum(w * client.minimum for w, client in zip(weights, problem.clients, strict=True)) / sum(weights)


def settle(problem: Problem, aggregator: Aggregator[Any], rounds: int, start: float = 10.0) -> float:
    """Where the federation stands after `rounds` rounds of the product's own training."""
    model = Point(start)
    clients = [
        LocalClient(
            client_id=k,
            model=model,
            splits={"train": QuadraticSplit(client, client.rows), "val": QuadraticSplit(client, 0)},
            options=TrainingOptions(
                learning_rate=problem.learning_rate,
                num_updates=client.steps,
                batch_size=client.rows,
                optimizer="sgd",
                weight_decay=0.0,
                clip_norm=0.0,
            ),
            seed=0,
        )
        for k, client in enumerate(problem.clients)
    ]
    state, _ = simulate(aggregator, aggregator.init(get_weights(model), layout_of(model)), clients, rounds)
    return float(state.weights["x"][0])


def measure(options: Options) -> Result:
    """Compare every fixed point that is reached with the one that is foretold."""
    rounds = 60 if options.quick else 120
    problems = (*PROBLEMS[:2], WEIGHTED) if options.quick else (*PROBLEMS, WEIGHTED)
    rows: list[tuple[object, ...]] = []
    targets: list[Target] = []
    points: dict[str, dict[str, float]] = {}
    for problem in problems:
        best, size = optimum(problem), len(problem.clients)
        foretold: dict[str, tuple[Aggregator[Any], float]] = {
            "fedavg": (FedAvg(), fedprox_point(problem, 0.0)),
            f"fedprox mu={MU:g}": (FedProx(mu=MU), fedprox_point(problem, MU)),
        }
        if problem is not WEIGHTED:
            foretold["scaffold I"] = (Scaffold(option="I", num_clients=size), best)
            foretold["scaffold II"] = (Scaffold(option="II", num_clients=size), best)
        reached = {name: settle(problem, aggregator, rounds) for name, (aggregator, _) in foretold.items()}
        for name, (_, point) in foretold.items():
            rows.append((problem.name, name, *(f"{value:.9f}" for value in (reached[name], point, reached[name] - best))))
            claim = "reaches the optimum" if name.startswith("scaffold") else "settles where the formula says"
            targets.append(Target(f"{problem.name}: {name} {claim}, distance", abs(reached[name] - point), TOLERANCE, "<="))
        drift, held = abs(reached["fedavg"] - best), abs(reached[f"fedprox mu={MU:g}"] - best)
        targets.append(Target(f"{problem.name}: FedAvg's distance from the optimum", drift, 0.01))
        targets.append(Target(f"{problem.name}: FedProx's distance over FedAvg's", held / drift, 1.0, "<"))
        targets.append(Target(f"{problem.name}: FedProx's distance from the optimum", held, 1e-3))
        points[problem.name] = {"optimum": best, **reached}
    return Result(
        settings={"rounds": rounds, "mu": MU, "start": 10.0, "tolerance": TOLERANCE},
        tables=[Table("Fixed points on quadratic clients", ("problem", "method", "reached", "foretold", "off the optimum"), rows)],
        targets=targets,
        details={"points": points},
        notes=["Nothing is drawn at random here: --seeds changes nothing."],
    )


if __name__ == "__main__":
    sys.exit(main("quadratic", measure, seeds=1, description=(__doc__ or "").partition("\n")[0]))
