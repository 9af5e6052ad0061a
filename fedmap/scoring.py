"""The final scores of a model: thresholds tuned on the validation split, applied once to the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedmap.history import FinalResults, LabelResult, Scores
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


def counts_at(evaluation: Evaluation, thresholds: npt.NDArray[np.float64]) -> MultilabelCounts:
    """The counts of an evaluated split at [C] probability thresholds."""
    return MultilabelCounts.of(probabilities(evaluation.logits) >= thresholds, evaluation.labels)


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
    label_names: Sequence[str],
    chosen_round: int,
    validation: Evaluation,
    test: Evaluation,
    clients: Mapping[int, Evaluation] | None = None,
    *,
    tune: bool = True,
) -> FinalResults:
    """The results of the chosen model.

    Args:
        label_names: in the order of the model's outputs.
        chosen_round: whose model it is.
        validation: the model on the server's validation split; the thresholds come from here alone.
        test: the model on the server's test split.
        clients: the clients' own models on their own test rows, where they have some.
        tune: False for a model with a `decide` of its own (e.g. one label per row), to which no threshold applies.
    """
    thresholds = tuned_thresholds(validation) if tune else None
    counts = test.counts if thresholds is None else counts_at(test, thresholds)
    scored = {k: Scores.of(e.counts, e.loss) for k, e in sorted((clients or {}).items())}
    return FinalResults(
        chosen_round=chosen_round,
        validation=Scores.of(validation.counts, validation.loss),
        test=Scores.of(test.counts, test.loss),
        test_tuned=None if thresholds is None else Scores.of(counts),
        thresholds={} if thresholds is None else dict(zip(label_names, map(float, thresholds), strict=True)),
        labels=label_results(label_names, counts, thresholds),
        clients={k: scores for k, scores in scored.items() if scores is not None},
    )
