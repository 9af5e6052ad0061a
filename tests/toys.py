"""Small models and data with known answers, for tests of algorithms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from fedmap.aggregators.base import Aggregator
from fedmap.local.client import LocalClient
from fedmap.local.rules import Memory
from fedmap.local.tensors import get_weights, layout_of
from fedmap.local.training import TrainingOptions
from fedmap.records import ClientUpdate
from fedmap.simulation import simulate

PLAIN_SGD = TrainingOptions(learning_rate=0.1, optimizer="sgd", weight_decay=0.0, clip_norm=0.0, num_updates=2, batch_size=64)


class Rows:
    """A split from named arrays, one row each; "labels" [n, C] among them."""

    def __init__(self, **columns: np.ndarray) -> None:
        self.columns = {name: torch.as_tensor(np.asarray(column, dtype=np.float32)) for name, column in columns.items()}
        self.labels = columns["labels"].astype(np.uint8)
        self.modalities = np.ones((len(self.labels), 1), dtype=bool)
        self.row_ids = [str(i) for i in range(len(self.labels))]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {name: column[rows] for name, column in self.columns.items()}


class ToyJudge:
    """A judge that needs no model: 12 rows with three labels, and logits that are linear in the means of the arrays."""

    exclusive, tunable = False, True

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.directions = rng.normal(size=(12, 3))
        self.labels = (self.directions + rng.normal(size=(12, 3)) > 0).astype(np.uint8)

    def logits(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            means = [float(array.astype(np.float64).mean()) for array in weights.values() if array.dtype.kind == "f"]
            return self.directions * sum(means) + np.roll(self.directions, 1, axis=0) * sum(m * (i + 1) for i, m in enumerate(means))

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return logits >= 0


class LinearJudge:
    """60 rows x [n, 6] whose four labels are x @ truth > 0; the model is one array "w" [6, 4] and its logits are x @ w."""

    exclusive, tunable = False, True

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.x, self.truth = rng.normal(size=(60, 6)), rng.normal(size=(6, 4))
        self.labels = (self.x @ self.truth > 0).astype(np.uint8)
        self.asked = 0

    def logits(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        self.asked += 1
        with np.errstate(over="ignore", invalid="ignore"):
            return self.x @ weights["w"].astype(np.float64)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        return logits >= 0


class Parabola(nn.Module):
    """One parameter w and the loss curvature/2 (w - optimum)^2."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([start]))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.w.expand(len(batch["labels"]), 1)

    def loss(self, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (batch["curvature"] * (logits[:, 0] - batch["optimum"]) ** 2).mean() / 2


def parabola(
    client_id: int,
    optimum: float,
    curvature: float = 1.0,
    rows: int = 2,
    options: TrainingOptions = PLAIN_SGD,
    model: nn.Module | None = None,
) -> LocalClient:
    """A client whose loss is curvature/2 (w - optimum)^2."""
    split = Rows(labels=np.ones((rows, 1)), optimum=np.full(rows, optimum), curvature=np.full(rows, curvature))
    return LocalClient(client_id, model or Parabola(), {"train": split, "val": split, "test": split}, options, seed=0)


class Net(nn.Module):
    """A frozen tower with BatchNorm, a trained body with BatchNorm (float and integer buffers) and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.tower.requires_grad_(False)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.tower.eval()
        return self.head(self.body(self.tower(batch["x"])))


def net_clients(options: TrainingOptions, count: int = 3, *, alike: bool = False) -> list[LocalClient]:
    """Clients with data of different sizes and means (or all the same data), around one `Net`."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Net()
    clients = []
    for k in range(count):
        rng = np.random.default_rng(0 if alike else k)
        shift, rows = (0.0, 24) if alike else (0.4 * k, 16 + 8 * k)
        x = rng.normal(size=(rows, 4)) + shift
        split = Rows(x=x, labels=np.stack([x[:, 0] > shift, x[:, 1] + x[:, 2] > 2 * shift], axis=1))
        clients.append(LocalClient(k, model, {"train": split, "val": split, "test": split}, options, seed=3))
    return clients


def pooled_validation(clients: Sequence[LocalClient]) -> Rows:
    """All clients' validation rows in one split."""
    splits = [client.splits["val"] for client in clients]
    return Rows(**{name: np.concatenate([split.columns[name].numpy() for split in splits]) for name in splits[0].columns})


def start(aggregator: Aggregator, clients: Sequence[LocalClient]):
    """The state before the first round, around the clients' (common) model as it is."""
    return aggregator.init(get_weights(clients[0].model), layout_of(clients[0].model))


def run(aggregator: Aggregator, clients: Sequence[LocalClient], num_rounds: int, **options):
    """(last state, memories) after some rounds from the start."""
    return simulate(aggregator, start(aggregator, clients), clients, num_rounds, **options)


def one_round(aggregator: Aggregator, state, clients: Sequence[LocalClient], memories: Mapping[int, Memory] | None = None):
    """The updates of one round and the memories after it."""
    broadcast = aggregator.broadcast(state)
    answers = {client.client_id: client.train_round(broadcast, (memories or {}).get(client.client_id, Memory())) for client in clients}
    return [update for update, _ in answers.values()], {k: memory for k, (_, memory) in answers.items()}


def update(client_id: int, weights: Mapping[str, object], num_examples: int = 1, **more) -> ClientUpdate:
    """An update with float32 weights given as plain numbers or lists."""
    arrays = {name: value if isinstance(value, np.ndarray) else np.asarray(value, dtype=np.float32) for name, value in weights.items()}
    return ClientUpdate(client_id=client_id, round_index=1, weights=arrays, num_examples=num_examples, num_steps=1, **more)


def same(left, right) -> bool:
    """Whether two mappings hold the same names and the same bits."""
    return set(left) == set(right) and all(
        left[n].dtype == right[n].dtype and left[n].shape == right[n].shape and left[n].tobytes() == right[n].tobytes() for n in left
    )
