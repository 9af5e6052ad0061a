"""Multi-label counts and the F1 scores that come from them. Nothing else in the project computes an F1.

Clients and batches report integer counts; counts add up; scores are finished once, at the end. They equal
scikit-learn's `f1_score` (zero_division=0) on the pooled predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedmap.errors import DataError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class MultilabelCounts:
    """True positives, false positives and false negatives of C labels over any number of samples.

    Attributes:
        tp: [C] int64, samples in which the label is present and predicted.
        fp: [C] int64, predicted but absent.
        fn: [C] int64, present but not predicted.
        samples: [C+1, C+1] int64, number of samples with (right labels, wrong labels); it makes the samples-F1 exact
            and additive.
    """

    tp: IntArray
    fp: IntArray
    fn: IntArray
    samples: IntArray = field(repr=False)

    @staticmethod
    def empty(num_labels: int) -> MultilabelCounts:
        """The neutral element of `+` for C labels."""
        zero = np.zeros(num_labels, dtype=np.int64)
        return MultilabelCounts(zero, zero.copy(), zero.copy(), np.zeros((num_labels + 1, num_labels + 1), dtype=np.int64))

    @staticmethod
    def of(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> MultilabelCounts:
        """Count predictions against the truth.

        Args:
            predicted: [n, C] booleans or 0/1.
            truth: [n, C] booleans or 0/1.

        Raises:
            DataError: the two do not have the same two-dimensional shape.
        """
        p, t = np.asarray(predicted).astype(bool), np.asarray(truth).astype(bool)
        if p.ndim != 2 or p.shape != t.shape:
            raise DataError(f"predictions and labels must both be [samples, labels]; got {p.shape} and {t.shape}")
        hit, false_positive, false_negative = p & t, p & ~t, ~p & t
        samples = np.zeros((p.shape[1] + 1, p.shape[1] + 1), dtype=np.int64)
        np.add.at(samples, (hit.sum(1), (false_positive | false_negative).sum(1)), 1)
        return MultilabelCounts(
            hit.sum(0, dtype=np.int64), false_positive.sum(0, dtype=np.int64), false_negative.sum(0, dtype=np.int64), samples
        )

    def __add__(self, other: MultilabelCounts) -> MultilabelCounts:
        if self.tp.shape != other.tp.shape:
            raise DataError(f"counts over {len(self.tp)} and {len(other.tp)} labels cannot be added")
        return MultilabelCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.samples + other.samples)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MultilabelCounts) and all(
            np.array_equal(a, b) for a, b in zip(self._arrays(), other._arrays(), strict=True)
        )

    def _arrays(self) -> tuple[IntArray, ...]:
        return self.tp, self.fp, self.fn, self.samples

    @property
    def num_samples(self) -> int:
        """Number of samples counted."""
        return int(self.samples.sum())

    @property
    def per_label_f1(self) -> npt.NDArray[np.float64]:
        """[C] F1 of each label, 0 where a label neither occurs nor is predicted."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def micro_f1(self) -> float:
        """F1 of the pooled counts. With exactly one true and one predicted label per sample this is the accuracy."""
        tp, fp, fn = int(self.tp.sum()), int(self.fp.sum()), int(self.fn.sum())
        return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0

    @property
    def macro_f1(self) -> float:
        """The plain mean of the labels' F1."""
        return float(self.per_label_f1.mean()) if len(self.tp) else 0.0

    @property
    def weighted_f1(self) -> float:
        """The mean of the labels' F1 weighted by how often each label occurs."""
        support = self.tp + self.fn
        return float((self.per_label_f1 * support).sum() / support.sum()) if support.sum() else 0.0

    @property
    def samples_f1(self) -> float:
        """The mean over samples of the F1 of each sample's label set."""
        right, wrong = np.indices(self.samples.shape, dtype=np.int64)
        f1 = _ratio(2 * right, 2 * right + wrong)
        return float((f1 * self.samples).sum() / self.num_samples) if self.num_samples else 0.0

    def scores(self) -> dict[str, float]:
        """All four averages by name: micro_f1, macro_f1, weighted_f1, samples_f1, each in [0, 1]."""
        return {
            "micro_f1": self.micro_f1,
            "macro_f1": self.macro_f1,
            "weighted_f1": self.weighted_f1,
            "samples_f1": self.samples_f1,
        }

    def to_lists(self) -> dict[str, list[int]]:
        """Plain integer lists for the wire and for JSON; the sample histogram as flat (right, wrong, count) triples."""
        right, wrong = np.nonzero(self.samples)
        triples = np.stack([right, wrong, self.samples[right, wrong]], axis=1).reshape(-1)
        return {
            "tp": self.tp.tolist(),
            "fp": self.fp.tolist(),
            "fn": self.fn.tolist(),
            "samples": [int(v) for v in triples],
        }

    @staticmethod
    def from_lists(lists: Mapping[str, Sequence[int]]) -> MultilabelCounts:
        """The inverse of `to_lists`.

        Raises:
            DataError: the lists are missing, of different lengths, negative, or disagree with one another.
        """
        try:
            tp, fp, fn = (_integers(lists[k]) for k in ("tp", "fp", "fn"))
            triples = _integers(lists["samples"]).reshape(-1, 3)
            counts = MultilabelCounts.empty(len(tp))
            np.add.at(counts.samples, (triples[:, 0], triples[:, 1]), triples[:, 2])
        except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
            raise DataError(f"counts must be integer lists tp, fp, fn and samples: {error}") from error
        if not tp.shape == fp.shape == fn.shape or min(tp.min(initial=0), fp.min(initial=0), fn.min(initial=0), triples.min(initial=0)) < 0:
            raise DataError("counts must be three lists of the same length without negative numbers")
        right, wrong = np.indices(counts.samples.shape)
        if (counts.samples * right).sum() != tp.sum() or (counts.samples * wrong).sum() != (fp + fn).sum():
            raise DataError("the counts per label and the counts per sample disagree")
        return MultilabelCounts(tp, fp, fn, counts.samples)


def pooled(parts: Iterable[MultilabelCounts], num_labels: int) -> MultilabelCounts:
    """The sum of many counts; the empty count if there are none."""
    return sum(parts, MultilabelCounts.empty(num_labels))


def _integers(values: Sequence[int]) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"{values!r:.80} is not a list of integers")
    return array.astype(np.int64)


def _ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> npt.NDArray[np.float64]:
    bottom = np.asarray(denominator, dtype=np.float64)
    result: npt.NDArray[np.float64] = np.divide(numerator, bottom, out=np.zeros_like(bottom), where=bottom > 0)
    return result


def best_label_f1(scores: FloatArray, truth: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """[C] the F1 of each label at the threshold that `tune_thresholds` would choose on these rows, 0 for labels that never occur.

    Args:
        scores: [n, C] finite numbers that rise with the probability, e.g. logits.
        truth: [n, C] booleans or 0/1.
    """
    s, t = np.asarray(scores, dtype=np.float64), np.asarray(truth).astype(bool)
    if s.ndim != 2 or s.shape != t.shape or not len(s):
        raise DataError(f"scores and labels must both be [samples, labels] with at least one sample; got {s.shape} and {t.shape}")
    order = np.argsort(-s, axis=0, kind="stable")
    ranked, hits = np.take_along_axis(s, order, axis=0), np.cumsum(np.take_along_axis(t, order, axis=0), axis=0)
    f1 = _ratio(2 * hits, np.arange(1, len(s) + 1)[:, None] + hits[-1])
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0  # a threshold cannot separate equal scores
    best: npt.NDArray[np.float64] = np.maximum(f1.max(axis=0), 0.0)
    return best


def tune_thresholds(scores: FloatArray, truth: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """For each label the probability threshold with the best F1 on a validation split.

    Only thresholds halfway between neighbouring scores can change a prediction, so all of them are tried. A label that
    never occurs keeps 0.5. Never call this on a test split.

    Args:
        scores: [n, C] probabilities in [0, 1].
        truth: [n, C] booleans or 0/1.

    Returns:
        [C] thresholds in [0, 1]; predict a label where its score is greater than or equal to its threshold.
    """
    s, t = np.asarray(scores, dtype=np.float64), np.asarray(truth).astype(bool)
    if s.ndim != 2 or s.shape != t.shape:
        raise DataError(f"scores and labels must both be [samples, labels]; got {s.shape} and {t.shape}")
    thresholds = np.full(s.shape[1], 0.5)
    for label in range(s.shape[1]):
        positives = int(t[:, label].sum())
        if not positives:
            continue
        order = np.argsort(-s[:, label], kind="stable")
        ranked = s[order, label]
        tp = np.cumsum(t[order, label])
        f1 = 2 * tp / (np.arange(1, len(ranked) + 1) + positives)
        f1[:-1][ranked[:-1] == ranked[1:]] = -1.0  # a threshold cannot separate equal scores
        best = int(np.argmax(f1))
        below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
        middle = (ranked[best] + below) / 2
        thresholds[label] = middle if middle > below else ranked[best]  # between neighbouring floats there is no middle
    return thresholds
