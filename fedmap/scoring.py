"""The final scores of a model: thresholds tuned on the validation split, applied once to the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedmap.history import FinalResults, LabelResult, RoundScores, Scores
from fedmap.metrics import MultilabelCounts, tune_thresholds

if TYPE_CHECKING:
    from fedmap.local.training import Evaluation


def probabilities(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The logistic function of [n, C] logits, without overflow."""
    halves: npt.NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))
    return halves


def tuned_thresholds(validation: Evaluation) -> npt.NDArray[np.float64] | None:
    """[C] thresholds from the validation split; None if it has no rows."""
    return tune_thresholds(probabilities(validation.logits), validation.labels) if len(validation.labels) else None


def thresholds_by_label(label_names: Sequence[str], validation: Evaluation | None, model: object) -> dict[str, float]:
    """Thresholds tuned on the validation split, by label; none without validation rows, or for a model with a `decide` of its own."""
    thresholds = None if validation is None or callable(getattr(model, "decide", None)) else tuned_thresholds(validation)
    return {} if thresholds is None else dict(zip(label_names, map(float, thresholds), strict=True))


def counts_at(evaluation: Evaluation, thresholds: npt.NDArray[np.float64]) -> MultilabelCounts:
    """The counts of an evaluated split at [C] probability thresholds."""
    return MultilabelCounts.of(probabilities(evaluation.logits) >= thresholds, evaluation.labels)


def round_scores(validation: Evaluation | None, test: Evaluation | None = None, model: object = None) -> RoundScores:
    """The scores that go into a round's record; a model with a `decide` of its own has no thresholds to tune."""
    thresholds = None if validation is None or callable(getattr(model, "decide", None)) else tuned_thresholds(validation)
    tuned = None if validation is None or thresholds is None else counts_at(validation, thresholds)
    counts = tuned if tuned is not None else None if validation is None else validation.counts
    return {
        "validation": None if validation is None else Scores.of(validation.counts, validation.loss),
        "validation_tuned": None if validation is None or tuned is None else Scores.of(tuned, validation.loss),
        "test": None if test is None else Scores.of(test.counts, test.loss),
        "label_f1": () if counts is None else tuple(map(float, counts.per_label_f1)),
    }


def label_results(
    label_names: Sequence[str], counts: MultilabelCounts, thresholds: npt.NDArray[np.float64] | None = None
) -> tuple[LabelResult, ...]:
    """One row per label, in the order of the names."""
    rows = []
    for i, label in enumerate(label_names):
        tp, fp, fn = int(counts.tp[i]), int(counts.fp[i]), int(counts.fn[i])
        rows.append(
            LabelResult(
                label=label,
                support=tp + fn,
                precision=tp / (tp + fp) if tp + fp else 0.0,
                recall=tp / (tp + fn) if tp + fn else 0.0,
                f1=float(counts.per_label_f1[i]),
                threshold=None if thresholds is None else float(thresholds[i]),
            )
        )
    return tuple(rows)


def final_results(
    chosen_round: int,
    label_names: Sequence[str],
    validation: Evaluation | None,
    test: Evaluation | None,
    clients: Mapping[int, MultilabelCounts] | None = None,
    *,
    model: object = None,
) -> FinalResults:
    """The results of the chosen model.

    Args:
        chosen_round: whose model it is.
        label_names: in the order of the model's outputs.
        validation: the model on the server's validation split; the thresholds come from here alone.
        test: the model on the server's test split.
        clients: the counts of the clients' own models on their own test rows, by client.
        model: the model; one with a `decide` of its own (e.g. one label per row) has no thresholds.
    """
    own_decision = callable(getattr(model, "decide", None))
    thresholds = None if own_decision or validation is None else tuned_thresholds(validation)
    counts, tuned = None, None
    if test is not None:
        counts = test.counts
        if thresholds is not None:
            counts = counts_at(test, thresholds)
            tuned = Scores.of(counts)
    scored = {k: Scores.of(c) for k, c in sorted((clients or {}).items())}
    return FinalResults(
        chosen_round=chosen_round,
        validation=None if validation is None else Scores.of(validation.counts, validation.loss),
        test=None if test is None else Scores.of(test.counts, test.loss),
        test_tuned=tuned,
        thresholds={} if thresholds is None else dict(zip(label_names, map(float, thresholds), strict=True)),
        labels=() if counts is None else label_results(label_names, counts, thresholds),
        clients={k: scores for k, scores in scored.items() if scores is not None},
    )
