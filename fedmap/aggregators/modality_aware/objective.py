"""What the search maximises: macro-F1 of logits on the server's validation rows, less a penalty on the worst where asked for.

The loss decides between candidates that F1 cannot tell apart, and guides the gradient search; both are means over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmap.aggregators.judge import Judge
from fedmap.metrics import MultilabelCounts, best_label_f1

FloatArray = npt.NDArray[np.float64]

FAIRNESS = ("none", "label", "client")
OBJECTIVES = ("tuned", "decided")


@dataclass(frozen=True)
class Verdict:
    """How a model did on the validation rows.

    Attributes:
        score: what is maximised: macro-F1 in [0, 1] less the fairness penalty; -inf where logits are not finite.
        loss: mean loss over rows, >= 0; inf where logits are not finite.
        macro_f1: without the penalty, in [0, 1].
        row_losses: [n], whose mean is the loss; None where logits are not finite.
    """

    score: float
    loss: float
    macro_f1: float
    row_losses: FloatArray | None = field(default=None, compare=False, repr=False)

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts verdicts: the higher, the better."""
        return self.score, -self.loss


def clearly_better(verdict: Verdict, other: Verdict, caution: float) -> bool:
    """Whether the rows' losses are lower by more than `caution` standard errors of their mean difference, row by row."""
    if verdict.row_losses is None or other.row_losses is None:
        return verdict.row_losses is not None
    gains = other.row_losses - verdict.row_losses
    return bool(gains.mean() > caution * gains.std() / np.sqrt(len(gains)))


HOPELESS = Verdict(-np.inf, np.inf, 0.0)


@dataclass(frozen=True)
class Objective:
    """Scores logits [n, C] against the judge's labels.

    Attributes:
        judge: labels and decision.
        kind: "tuned": each label's F1 at its best threshold on these rows; "decided": at the model's own decision (probability 0.5).
        fairness: "none"; "label": the penalty is the mean F1 minus the worst label's; "client": minus that of the client whose mix of
            labels the model serves worst.
        penalty: how much of that gap is taken off, >= 0.
        client_labels: [K, C] label shares of each client's validation rows, for "client".
    """

    judge: Judge
    kind: str = "tuned"
    fairness: str = "none"
    penalty: float = 0.0
    client_labels: Sequence[FloatArray] = ()
    _truth: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_truth", self.judge.labels.astype(np.float64))

    def verdict(self, logits: npt.NDArray[np.floating[Any]]) -> Verdict:
        """The verdict on [n, C] logits."""
        if not np.isfinite(logits).all():
            return HOPELESS
        if self.kind == "tuned" and self.judge.tunable:
            f1 = best_label_f1(logits, self.judge.labels)
        else:
            f1 = MultilabelCounts.of(self.judge.decide(logits), self.judge.labels).per_label_f1
        macro = float(f1.mean())
        losses = self.row_losses(logits)
        return Verdict(score=macro - self._penalty(f1), loss=float(losses.mean()), macro_f1=macro, row_losses=losses)

    def _penalty(self, f1: FloatArray) -> float:
        if self.fairness == "none" or self.penalty == 0:
            return 0.0
        occurs = self._truth.any(axis=0)
        if self.fairness == "client" and len(self.client_labels):
            served = [float(shares @ f1) for shares in self.client_labels]
            return self.penalty * max(float(np.mean(served)) - min(served), 0.0)
        return self.penalty * max(float(f1[occurs].mean()) - float(f1[occurs].min()), 0.0) if occurs.any() else 0.0

    def loss(self, logits: npt.NDArray[np.floating[Any]]) -> float:
        """The mean of the rows' losses."""
        return float(self.row_losses(logits).mean())

    def row_losses(self, logits: npt.NDArray[np.floating[Any]]) -> FloatArray:
        """[n] each row's loss: softmax cross-entropy, or the mean of its labels' binary cross-entropies."""
        z = np.asarray(logits, dtype=np.float64)
        if self.judge.exclusive:
            top = z.max(axis=1, keepdims=True)
            losses: FloatArray = np.log(np.exp(z - top).sum(axis=1)) + top[:, 0] - (z * self._truth).sum(axis=1)
            return losses
        losses = (np.logaddexp(0.0, z) - z * self._truth).mean(axis=1)
        return losses

    def loss_gradient(self, logits: FloatArray, label_weights: FloatArray) -> FloatArray:
        """d(weighted loss)/d(logits), [n, C]; `label_weights` [C] says how much each label counts, 1 everywhere is the loss itself."""
        if self.judge.exclusive:
            exps = np.exp(logits - logits.max(axis=1, keepdims=True))
            rows = self._truth @ label_weights  # [n]
            gradient: FloatArray = (exps / exps.sum(axis=1, keepdims=True) - self._truth) * rows[:, None] / len(logits)
            return gradient
        probabilities = 0.5 * (1.0 + np.tanh(0.5 * logits))
        gradient = (probabilities - self._truth) * label_weights / logits.size
        return gradient

    def balanced_label_weights(self) -> FloatArray:
        """[C] weights with mean 1 that let every label that occurs count alike, however rare it is."""
        counts = self._truth.sum(axis=0)
        weights = np.where(counts > 0, 1.0 / np.maximum(counts, 1.0), 0.0)
        balanced: FloatArray = weights / weights.mean() if weights.any() else np.ones_like(weights)
        return balanced
