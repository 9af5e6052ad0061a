"""The synthetic data of the FedMAP paper (Zhang et al., 2024, appendix B.1) and the network that learns it.

A d-dimensional subspace of R^n, spanned by the orthonormal columns of B, carries the signal (n = 30, d = 4):

    class 0   B'x ~ N(0, 2 I_d)
    class 1   B'x = r u,  u uniform on the unit sphere,  r ~ N(8, 2)
    both      the part of x orthogonal to B ~ N(0, 2 I_(n-d)), a nuisance
    client k  sees A_k x + b_k

What the appendix leaves open is in `Generator`, whose values `benchmarks.fedmap_tables` calibrates:
- A_k = I + s f_k G_k / sqrt(n) and b_k = t f_k g_k with standard normal G_k, g_k; f_k rises with the client's number from
  3/4 to 5/4 ("scales with the client index"; the paper's accuracies show no trend over clients, so it is gentle).
- B is one subspace for all clients ("an unknown n x d matrix").
- Class noise: the given share of rows has the features of the other class. The proportions of a client's *given* labels
  are exact, so that a skewed client's scarce label is also its noisiest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedmap.data.base import Batch
from fedmap.randomness import generator

FEATURES, INTRINSIC, CLIENTS = 30, 4, 10
RADIUS, VARIANCE = 8.0, 2.0
SCENARIOS = ("label", "feature", "quantity")
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Generator:
    """The constants that the paper does not give.

    Attributes:
        map_scale: s, >= 0; 0 gives every client the same features.
        shift_scale: t, >= 0.
        class_noise: share of rows with the features of the other class, in [0, 0.5).
        shared_subspace: whether all clients have the same B.
        test_rows: rows of each client's test split, half of them of class 0 whatever the client's own proportions.
    """

    map_scale: float = 5.0
    shift_scale: float = 1.0
    class_noise: float = 0.06
    shared_subspace: bool = True
    test_rows: int = 1000


@dataclass(frozen=True)
class VectorSplit:
    """n labelled vectors as a split; see `fedmap.data.base.Split`."""

    features: torch.Tensor
    targets: torch.Tensor
    labels: npt.NDArray[np.uint8]
    modalities: npt.NDArray[np.bool_]
    row_ids: Sequence[str]

    @staticmethod
    def of(features: Matrix, given: npt.NDArray[np.int64]) -> VectorSplit:
        """A split from [n, 30] features and n labels in {0, 1}."""
        n = len(given)
        labels = given.astype(np.uint8)[:, None]
        return VectorSplit(
            features=torch.from_numpy(features.astype(np.float32)),
            targets=torch.from_numpy(labels.astype(np.float32)),
            labels=labels,
            modalities=np.ones((n, 1), dtype=bool),
            row_ids=range(n),  # type: ignore[arg-type]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """ "x" float32 [B, 30] and "labels" float32 [B, 1]."""
        index = torch.from_numpy(rows)
        return {"x": self.features[index], "labels": self.targets[index]}


class Network(nn.Module):
    """A perceptron with two hidden layers and one logit, that of class 1.

    With `normalised`, BatchNorm stands between each hidden layer's linear map and its ReLU.
    """

    def __init__(self, widths: tuple[int, int] = (64, 32), *, normalised: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, widths[0])
        self.second = nn.Linear(widths[0], widths[1])
        self.head = nn.Linear(widths[1], 1)
        self.first_norm: nn.Module = nn.BatchNorm1d(widths[0]) if normalised else nn.Identity()
        self.second_norm: nn.Module = nn.BatchNorm1d(widths[1]) if normalised else nn.Identity()

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [B, 1]."""
        hidden = torch.relu(self.first_norm(self.first(batch["x"])))
        hidden = torch.relu(self.second_norm(self.second(hidden)))
        logits: torch.Tensor = self.head(hidden)
        return logits


def sizes(scenario: str, client: int) -> tuple[int, float]:
    """Rows and share of class 0 of a client, counted from 1 (section 4.2 of the paper)."""
    second_half = client > CLIENTS // 2
    return 500 if scenario == "quantity" and second_half else 2000, 0.85 if scenario == "label" and second_half else 0.5


def federation(scenario: str, seed: int, settings: Generator) -> list[Mapping[str, VectorSplit]]:
    """The ten clients' splits: 70 % of the rows to train, 30 % to validate, and a balanced test split of their own."""
    subspace = _subspace(generator(seed, purpose="subspace"))
    clients: list[Mapping[str, VectorSplit]] = []
    for client in range(1, CLIENTS + 1):
        rng = generator(seed, purpose=f"client-{scenario}", client_id=client)
        basis = subspace if settings.shared_subspace else _subspace(rng)
        scale = 0.75 + 0.5 * (client - 1) / (CLIENTS - 1)
        matrix = np.eye(FEATURES) + settings.map_scale * scale * rng.standard_normal((FEATURES, FEATURES)) / np.sqrt(FEATURES)
        shift = settings.shift_scale * scale * rng.standard_normal(FEATURES)
        rows, share = sizes(scenario, client)
        features, given = sample(rng, basis, rows, share, settings.class_noise)
        test, test_given = sample(rng, basis, settings.test_rows, 0.5, settings.class_noise)
        order, cut = rng.permutation(rows), round(0.7 * rows)
        features, test = features @ matrix.T + shift, test @ matrix.T + shift
        clients.append(
            {
                "train": VectorSplit.of(features[order[:cut]], given[order[:cut]]),
                "val": VectorSplit.of(features[order[cut:]], given[order[cut:]]),
                "test": VectorSplit.of(test, test_given),
            }
        )
    return clients


def sample(rng: np.random.Generator, basis: Matrix, rows: int, share: float, noise: float) -> tuple[Matrix, npt.NDArray[np.int64]]:
    """Rows before the client's map, and their given labels: `share` of them 0, in this order.

    Args:
        rng: draws.
        basis: B, [30, 4] with orthonormal columns.
        rows: how many.
        share: of the given label 0.
        noise: share of rows that have the features of the other class.
    """
    given = np.ones(rows, dtype=np.int64)
    given[: round(share * rows)] = 0
    true = np.where(rng.random(rows) < noise, 1 - given, given)
    normal = rng.standard_normal((rows, INTRINSIC))
    radius = RADIUS + np.sqrt(VARIANCE) * rng.standard_normal(rows)
    shell = normal / np.linalg.norm(normal, axis=1, keepdims=True) * radius[:, None]
    inner = np.where(true[:, None] == 1, shell, np.sqrt(VARIANCE) * normal)
    ambient = np.sqrt(VARIANCE) * rng.standard_normal((rows, FEATURES))
    return ambient - ambient @ basis @ basis.T + inner @ basis.T, given


def _subspace(rng: np.random.Generator) -> Matrix:
    return np.linalg.qr(rng.standard_normal((FEATURES, INTRINSIC)))[0]
