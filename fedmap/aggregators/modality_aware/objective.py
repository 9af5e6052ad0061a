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
from fedmap.records import ClientUpdate

FloatArray = npt.NDArray[np.float64]

FAIRNESS = ("none", "label", "client")
_GROUPS = 10  # of rows, left out one at a time to see how sure a score is

OBJECTIVES = ("tuned", "decided")


@dataclass(frozen=True)
class Verdict:
    """How a model did on the validation rows.

    Attributes:
        score: what is maximised: macro-F1 in [0, 1] less the fairness penalty; -inf where logits are not finite.
        loss: mean loss over rows, >= 0; inf where logits are not finite.
        macro_f1: without the penalty, in [0, 1].
        logits: [n, C] that were scored; None where they are not finite.
    """

    score: float
    loss: float
    macro_f1: float
    logits: FloatArray | None = field(default=None, compare=False, repr=False)

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts verdicts: the higher, the better."""
        return self.score, -self.loss


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
        f1 = self._label_f1(logits, self.judge.labels)
        macro = float(f1.mean())
        kept = np.asarray(logits, dtype=np.float64)
        return Verdict(score=macro - self._penalty(f1), loss=self.loss(logits), macro_f1=macro, logits=kept)

    def _label_f1(self, logits: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.uint8]) -> FloatArray:
        if self.kind == "tuned" and self.judge.tunable:
            return best_label_f1(logits, labels)
        return MultilabelCounts.of(self.judge.decide(logits), labels).per_label_f1

    def clearly_better(self, verdict: Verdict, other: Verdict, caution: float) -> bool:
        """Whether the loss is lower, or the score higher, by more than `caution` standard errors of the difference.

        The loss' error comes from its rows; the score's from leaving out a tenth of the rows at a time (jackknife).
        """
        if verdict.logits is None or other.logits is None:
            return verdict.logits is not None
        gains = self.row_losses(other.logits) - self.row_losses(verdict.logits)
        if gains.mean() > caution * gains.std() / np.sqrt(len(gains)):
            return True
        gain = verdict.score - other.score
        return gain > 0 and gain > caution * self._score_error(verdict.logits, other.logits)

    def _score_error(self, left: FloatArray, right: FloatArray) -> float:
        groups = np.arange(len(left)) % min(_GROUPS, len(left))
        gains = []
        for group in range(int(groups.max()) + 1):
            rows = groups != group
            if rows.any():
                labels = self.judge.labels[rows]
                scores = [f1.mean() - self._penalty(f1) for f1 in (self._label_f1(logits[rows], labels) for logits in (left, right))]
                gains.append(scores[0] - scores[1])
        return float(np.std(gains) * np.sqrt(len(gains) - 1)) if len(gains) > 1 else 0.0

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


def client_labels(updates: Sequence[ClientUpdate]) -> list[FloatArray]:
    """[C] label shares of each client's validation rows, from the counts it sent; clients without counts are left out."""
    shares = []
    for update in updates:
        counts = update.counts.get("val-after")
        if counts is not None and (counts.tp + counts.fn).sum() > 0:
            support = (counts.tp + counts.fn).astype(np.float64)
            shares.append(support / support.sum())
    return shares
