"""Laws of counts: they add up, they equal scikit-learn's scores, and tuned thresholds are the best there are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score

from fedmap.metrics import MultilabelCounts, pooled, tune_thresholds

shapes = st.tuples(st.integers(1, 12), st.integers(1, 5))
tables = shapes.flatmap(lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape)))


@settings(deadline=None, max_examples=60)
@given(tables)
def test_scores_equal_those_of_scikit_learn(table: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = table
    if truth.shape[1] == 1:  # scikit-learn takes one column for a binary task; an empty second label says otherwise
        predicted, truth = (np.hstack([part, np.zeros_like(part)]) for part in table)
    counts = MultilabelCounts.of(predicted, truth)
    for average in ("micro", "macro", "weighted", "samples"):
        expected = f1_score(truth, predicted, average=average, zero_division=0)
        assert abs(counts.scores()[f"{average}_f1"] - expected) < 1e-12
    np.testing.assert_allclose(counts.per_label_f1, f1_score(truth, predicted, average=None, zero_division=0), atol=1e-12)


@settings(deadline=None)
@given(tables, st.lists(st.integers(0, 12), max_size=3), st.randoms(use_true_random=False))
def test_the_sum_of_parts_is_the_whole_in_any_order(table: tuple[np.ndarray, np.ndarray], cuts: list[int], random) -> None:
    predicted, truth = table
    where = sorted(min(cut, len(truth)) for cut in cuts)
    parts = [MultilabelCounts.of(p, t) for p, t in zip(np.split(predicted, where), np.split(truth, where), strict=True)]
    random.shuffle(parts)
    assert pooled(parts, truth.shape[1]) == MultilabelCounts.of(predicted, truth)


@settings(deadline=None)
@given(tables)
def test_lists_and_back_is_the_identity(table: tuple[np.ndarray, np.ndarray]) -> None:
    counts = MultilabelCounts.of(*table)
    lists = counts.to_lists()
    assert all(type(value) is int for values in lists.values() for value in values)
    assert MultilabelCounts.from_lists(lists) == counts


def f1(predicted: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (predicted & truth).sum() / max(predicted.sum() + truth.sum(), 1)


@settings(deadline=None)
@given(
    st.integers(1, 15).flatmap(
        lambda n: st.tuples(
            # a coarse grid gives ties; the float scores give neighbours
            hnp.arrays(np.float64, (n, 2), elements=st.one_of(st.integers(0, 5).map(lambda v: v / 5), st.floats(0, 1))),
            hnp.arrays(np.bool_, (n, 2)),
        )
    )
)
def test_no_other_threshold_does_better(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = case
    thresholds = tune_thresholds(scores, truth)
    assert ((thresholds >= 0) & (thresholds <= 1)).all()
    for label in range(2):
        if not truth[:, label].any():
            assert thresholds[label] == 0.5
            continue
        own = f1(scores[:, label] >= thresholds[label], truth[:, label])
        for other in [*np.linspace(0, 1, 41), *scores[:, label]]:
            assert own >= f1(scores[:, label] >= other, truth[:, label]) - 1e-12
