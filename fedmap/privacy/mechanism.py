"""The two mechanisms: a clipped and noised change of the model, and a clipped and noised sum of rows' gradients.

record: DP-SGD (Abadi et al., 2016, arXiv 1607.00133). Each row is drawn into a step's batch with probability q, by itself; its gradient
    is clipped to C; the step's gradient is (sum + N(0, (z C)^2 I)) / (q n).
client: the client's change d becomes d min(1, C / |d|) + N(0, (z C)^2 I), before it leaves (Geyer et al., 2017, arXiv 1712.07557, with
    the noise added by each client, so that the server need not be trusted with what it receives).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedmap.privacy.settings import Privacy
from fedmap.weights import Array, Weights


def private_weights(weights: Weights, received: Weights, privacy: Privacy, rng: np.random.Generator) -> dict[str, Array]:
    """A client's model as it may leave.

    Args:
        weights: after training, floating-point arrays all.
        received: before training; has at least their names.
        privacy: C and z.
        rng: for the noise.
    """
    changes = {name: array.astype(np.float64) - received[name].astype(np.float64) for name, array in weights.items()}
    norm = math.sqrt(sum(float(np.square(change).sum()) for change in changes.values()))
    scale = min(1.0, privacy.max_norm / norm) if norm > 0 else 1.0
    deviation = privacy.noise_multiplier * privacy.max_norm
    return {
        name: np.asarray(
            received[name].astype(np.float64) + change * scale + rng.normal(scale=deviation, size=change.shape), dtype=weights[name].dtype
        )
        for name, change in changes.items()
    }


@dataclass(frozen=True)
class PrivateSteps:
    """What the training loop does differently under record-level privacy.

    Attributes:
        privacy: C and z.
        rng: draws rows and noise; known to the client alone, as the gain of drawing rows rests on it.
    """

    privacy: Privacy
    rng: np.random.Generator

    def batches(self, num_rows: int, batch_size: int, num_steps: int) -> Iterator[npt.NDArray[np.int64]]:
        """The rows of each step, which may be none."""
        share = sampling_rate(num_rows, batch_size)
        for _ in range(num_steps):
            yield np.flatnonzero(self.rng.random(num_rows) < share)

    def gradient(
        self,
        parameters: list[torch.nn.Parameter],
        rows: npt.NDArray[np.int64],
        expected: float,
        loss_of_row: Callable[[npt.NDArray[np.int64]], torch.Tensor],
    ) -> float:
        """Put a step's private gradient into the parameters; returns the rows' mean loss (0 for none), which must not be sent.

        Args:
            parameters: that are trained.
            rows: of the step.
            expected: q n, by which the sum is divided whatever the number of rows was.
            loss_of_row: the loss of a batch of one row.
        """
        total = [torch.zeros_like(parameter) for parameter in parameters]
        losses = 0.0
        for row in rows:
            loss = loss_of_row(np.array([row]))
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            own = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
            torch._foreach_add_(total, clipped(own, self.privacy.max_norm))
            losses += float(loss.detach())
        deviation = self.privacy.noise_multiplier * self.privacy.max_norm
        for parameter, summed in zip(parameters, total, strict=True):
            noise = torch.from_numpy(self.rng.standard_normal(tuple(summed.shape), dtype=np.float32)).to(summed.device, summed.dtype)
            parameter.grad = (summed + deviation * noise) / expected
        return losses / len(rows) if len(rows) else 0.0


def clipped(gradients: list[torch.Tensor], max_norm: float) -> list[torch.Tensor]:
    """The gradients together scaled down to a norm of at most `max_norm`."""
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).double()))
    if norm <= max_norm:
        return gradients
    return list(torch._foreach_mul(gradients, max_norm / norm))


def sampling_rate(num_rows: int, batch_size: int) -> float:
    """q: with which probability a row is in a step's batch."""
    return min(1.0, batch_size / num_rows)


def expected_rows(num_rows: int, batch_size: int) -> float:
    """q n: how many rows a step has on average."""
    return sampling_rate(num_rows, batch_size) * num_rows


def steps_per_round(num_rows: int, batch_size: int, num_epochs: int, num_updates: int | None) -> int:
    """Optimiser steps of one round of record-level privacy."""
    return num_updates if num_updates is not None else num_epochs * math.ceil(num_rows / batch_size)
