"""The ground of the scale benchmark: many small clients, a small MLP or CNN, and data that can be learnt but not at once.

Ours reads it as any user's own model and data (`model._target_`, `dataset._target_`), the peers import the same classes: this
module needs nothing but NumPy, torch and `fedmap.data.base`, which needs no more. Client k's rows follow from (seed, k) alone, so
that no process ever makes more clients than it is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedmap.data.base import Batch
from fedmap.errors import DataError

CLASSES = 10
SHAPES = {"mlp": (64,), "cnn": (1, 16, 16)}
NOISE = {"mlp": 2.0, "cnn": 1.5}
SERVER_ROWS = 1000
_ONE_HOT = torch.eye(CLASSES)
_SERVER = 1 << 20  # the server's place among the clients' numbers


@dataclass
class Rows:
    """A `fedmap.data.base.Split` of tensors in memory; `x` [n, ...] float32, `y` [n] class numbers."""

    x: torch.Tensor
    y: torch.Tensor
    labels: npt.NDArray[np.uint8]
    modalities: npt.NDArray[np.bool_]
    row_ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.row_ids)

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """Inputs [b, ...], class numbers [b], and one-hot labels [b, 10]."""
        chosen = torch.from_numpy(rows)
        y = self.y[chosen]
        return {"x": self.x[chosen], "y": y, "labels": _ONE_HOT[y]}


def rows_of(x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], name: str) -> Rows:
    """A split of these inputs [n, ...] and class numbers [n]."""
    return Rows(
        torch.from_numpy(x),
        torch.from_numpy(y),
        np.eye(CLASSES, dtype=np.uint8)[y],
        np.ones((len(y), 1), dtype=np.bool_),
        _row_ids(name, len(y)),
    )


@functools.cache
def _row_ids(name: str, count: int) -> Sequence[str]:
    """Unique within a split is enough; a list of their own would be a quarter of what a client's rows take."""
    return [f"{name}-{i}" for i in range(count)]


@dataclass(frozen=True)
class Population:
    """Where all rows come from: ten patterns with noise, and for each client its own mixture of classes.

    Attributes:
        task: "mlp" (vectors of 64 numbers) or "cnn" (pictures of 16 x 16 whose pattern lies shifted).
        seed: of the patterns and of every row.
        skew: of the Dirichlet distribution over classes that each client draws its mixture from; small is uneven.
    """

    task: str
    seed: int
    skew: float = 1.0

    def rng(self, *place: int) -> np.random.Generator:
        """A generator for one place."""
        return np.random.default_rng([self.seed, *place])

    def patterns(self) -> npt.NDArray[np.float32]:
        """[10, ...], each of about unit size per number."""
        shape, rng = SHAPES[self.task], self.rng(0)
        if self.task == "mlp":
            return rng.standard_normal((CLASSES, *shape)).astype(np.float32)
        coarse = rng.standard_normal((CLASSES, 1, 4, 4)).astype(np.float32)
        return coarse.repeat(4, axis=2).repeat(4, axis=3)

    def draw(self, client_id: int, count: int, patterns: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """`count` rows of one client (or of the server): inputs [n, ...] and class numbers [n]."""
        rng = self.rng(1, client_id)
        mixture = np.full(CLASSES, 1 / CLASSES) if client_id == _SERVER else rng.dirichlet(np.full(CLASSES, self.skew))
        y = rng.choice(CLASSES, size=count, p=mixture)
        x = patterns[y]
        if self.task == "cnn":
            x = np.stack([np.roll(picture, shift, axis=(1, 2)) for picture, shift in zip(x, rng.integers(-2, 3, (count, 2)), strict=True)])
        return (x + rng.standard_normal(x.shape, dtype=np.float32) * NOISE[self.task]).astype(np.float32), y


class ManyClients:
    """The population dealt to many clients: `fedmap.data.base.FederatedData`.

    Args:
        task: see `Population`.
        num_clients: at least 1.
        rows: of each client's training split.
        validation_rows: of each client's validation and of its test split; they may be 0.
        seed: see `Population`.
    """

    modality_names: Sequence[str] = ["signal"]
    label_names: Sequence[str] = [str(number) for number in range(CLASSES)]

    def __init__(self, task: str, num_clients: int, rows: int = 40, validation_rows: int = 0, seed: int = 0) -> None:
        if task not in SHAPES or num_clients < 1:
            raise DataError(f"task={task!r}, num_clients={num_clients}: expected one of {', '.join(SHAPES)}, and at least 1 client")
        self.population = Population(task, seed)
        self.patterns = self.population.patterns()
        self.num_clients, self.rows, self.validation_rows = num_clients, rows, validation_rows

    def client_ids(self) -> Sequence[int]:
        """All of them."""
        return range(self.num_clients)

    def client(self, client_id: int) -> Mapping[str, Rows]:
        """The client's "train", "val" and "test" splits."""
        more = self.validation_rows
        x, y = self.population.draw(client_id, self.rows + 2 * more, self.patterns)
        cut = {"train": slice(2 * more, None), "val": slice(0, more), "test": slice(more, 2 * more)}
        return {name: rows_of(x[part], y[part], name) for name, part in cut.items()}

    def server(self) -> Mapping[str, Rows]:
        """The server's "val" and "test" splits, each of 1,000 rows with all classes alike."""
        x, y = self.population.draw(_SERVER, 2 * SERVER_ROWS, self.patterns)
        return {"val": rows_of(x[:SERVER_ROWS], y[:SERVER_ROWS], "val"), "test": rows_of(x[SERVER_ROWS:], y[SERVER_ROWS:], "test")}


class Classifier(nn.Module):
    """A small MLP (4,810 parameters) or CNN (9,802); the same module for ours and for the peers.

    Args:
        task: "mlp" or "cnn".
        output_size: number of classes.
    """

    def __init__(self, task: str, output_size: int = CLASSES) -> None:
        super().__init__()
        if task == "mlp":
            self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, output_size))
        else:
            self.net = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(256, 32),
                nn.ReLU(),
                nn.Linear(32, output_size),
            )

    def forward(self, batch: Batch | torch.Tensor) -> torch.Tensor:
        """Logits [b, 10] of a batch, or of its inputs alone, as the peers give them."""
        logits: torch.Tensor = self.net(batch if isinstance(batch, torch.Tensor) else batch["x"])
        return logits

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross-entropy: exactly one class per row."""
        return nn.functional.cross_entropy(logits, batch["y"])

    def decide(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """The most likely class, as one-hot booleans [n, 10]; micro-F1 is then the accuracy."""
        decided: npt.NDArray[np.bool_] = np.eye(logits.shape[1], dtype=bool)[logits.argmax(axis=1)]
        return decided
