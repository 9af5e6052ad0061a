"""The surrogate: candidates are scored by mixing the clients' logits instead of their models.

K forward passes give L_k, [n, C] logits of each client's own model; sum_k a_k L_k stands in for the logits of the model
sum_k a_k w_k. Hundreds of candidates then cost a few milliseconds. The loss of mixed logits is convex in a, so a
gradient search on the simplex finds its minimum; the points on the way there, from the size-weighted mix on, are candidates
that fit the validation rows less and less cautiously.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmap.aggregators.modality_aware.objective import Objective, Verdict

FloatArray = npt.NDArray[np.float64]

_STOPS = (3, 10, 30, 100)  # steps after which the gradient search leaves a candidate
_STEP = 0.3  # the largest change of a log-weight in one step


class Surrogate:
    """Scores weights [K] by mixed logits.

    Args:
        objective: scores logits.
        logits: K arrays [n, C], the clients' own models'.
    """

    def __init__(self, objective: Objective, logits: Sequence[npt.NDArray[np.floating[Any]]]) -> None:
        self.objective = objective
        self.logits: FloatArray = np.stack([np.asarray(each, dtype=np.float64) for each in logits])  # [K, n, C]

    def mix(self, weights: FloatArray) -> FloatArray:
        """[n, C] sum_k a_k L_k."""
        mixed: FloatArray = np.tensordot(weights, self.logits, axes=1)
        return mixed

    def verdict(self, weights: FloatArray) -> Verdict:
        """How the mix is expected to do."""
        return self.objective.verdict(self.mix(weights))

    def descend(self, start: FloatArray, label_weights: FloatArray) -> Iterator[FloatArray]:
        """Exponentiated gradient on the simplex from `start` [K], whose entries should not be zero; yields some points on the way."""
        logs = np.log(np.maximum(start, 1e-4))
        for step in range(1, _STOPS[-1] + 1):
            weights = np.exp(logs - logs.max())
            weights /= weights.sum()
            outer = self.objective.loss_gradient(self.mix(weights), label_weights)
            gradient = np.tensordot(self.logits, outer, axes=2)  # [K]
            gradient -= weights @ gradient
            size = float(np.abs(gradient).max())
            if size < 1e-12:
                return
            logs -= _STEP / (1.0 + step / 30.0) * gradient / size
            logs = np.maximum(logs - logs.max(), -12.0)
            if step in _STOPS:
                point = np.exp(logs)
                point[point < 1e-3] = 0.0
                yield point / point.sum()


def anchors(sizes: FloatArray) -> Iterator[FloatArray]:
    """Candidates that need no search: the size-weighted mix without each client in turn."""
    for k in np.flatnonzero(sizes):
        rest = sizes.copy()
        rest[k] = 0.0
        if rest.sum() > 0:
            yield rest / rest.sum()


def greedy(score: Callable[[FloatArray], Verdict], sizes: FloatArray) -> FloatArray:
    """Clients join a size-weighted mix one after the other, best first, as long as that does not lower the score."""
    best: tuple[float, float] = (-np.inf, -np.inf)
    chosen = np.zeros(len(sizes))
    left = [int(k) for k in np.flatnonzero(sizes)]
    while left:
        trials = []
        for k in left:
            weights = chosen.copy()
            weights[k] = sizes[k]
            trials.append((score(weights / weights.sum()).rank, -k))
        rank, minus_k = max(trials)
        if rank < best:
            break
        best, k = rank, -minus_k
        chosen[k] = sizes[k]
        left.remove(k)
    final: FloatArray = chosen / chosen.sum()
    return final


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's correlation of ranks, ties sharing their mean rank; None where one side is constant or has fewer than three values."""
    if len(left) < 3:
        return None
    a, b = _ranks(left), _ranks(right)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else None


def _ranks(values: Sequence[float]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    less = (array[None, :] < array[:, None]).sum(axis=1)
    equal = (array[None, :] == array[:, None]).sum(axis=1)
    ranks: FloatArray = less + (equal - 1) / 2.0
    return ranks
