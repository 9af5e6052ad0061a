"""Counts and F1 scores: known answers, refusals, and thresholds."""

import numpy as np
import pytest

from fedmap.errors import DataError
from fedmap.metrics import MultilabelCounts, pooled, tune_thresholds


def one_label(right: int, false_positive: int, false_negative: int) -> MultilabelCounts:
    truth = np.array([1] * right + [0] * false_positive + [1] * false_negative).reshape(-1, 1)
    predicted = np.array([1] * (right + false_positive) + [0] * false_negative).reshape(-1, 1)
    return MultilabelCounts.of(predicted, truth)


def test_two_clients_are_scored_together_and_not_one_by_one() -> None:
    """(90, 10, 10) and (1, 9, 9): F1 0.9 and 0.1, whose mean is 0.50; pooled 2*91 / (2*91 + 19 + 19) = 182/220 = 0.83."""
    large, small = one_label(90, 10, 10), one_label(1, 9, 9)
    assert (large.micro_f1 + small.micro_f1) / 2 == pytest.approx(0.5)
    assert (large + small).micro_f1 == pytest.approx(182 / 220)
    assert pooled([large, small], 1) == large + small


def test_counts_of_a_table_by_hand() -> None:
    predicted = [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    truth = [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    counts = MultilabelCounts.of(predicted, truth)
    assert (counts.tp.tolist(), counts.fp.tolist(), counts.fn.tolist()) == ([1, 1, 0], [0, 1, 0], [0, 0, 1])
    assert counts.num_samples == 3
    assert counts.per_label_f1.tolist() == pytest.approx([1.0, 2 / 3, 0.0])
    assert counts.scores() == pytest.approx(
        {"micro_f1": 4 / 6, "macro_f1": 5 / 9, "weighted_f1": (1 + 2 / 3) / 3, "samples_f1": (2 / 3 + 2 / 3 + 0) / 3}
    )


def test_no_rows_score_zero_and_are_neutral() -> None:
    empty = MultilabelCounts.empty(3)
    assert set(empty.scores().values()) == {0.0}
    counts = MultilabelCounts.of([[1, 0, 1]], [[1, 1, 0]])
    assert empty + counts == counts
    assert pooled([], 3) == empty


def test_with_one_label_per_row_micro_f1_is_the_accuracy() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(5, size=40), rng.integers(5, size=40)
    counts = MultilabelCounts.of(np.eye(5)[predicted], np.eye(5)[truth])
    assert counts.micro_f1 == pytest.approx((truth == predicted).mean())


@pytest.mark.parametrize(("predicted", "truth"), [([[1, 0]], [[1]]), ([1, 0], [1, 0]), ([[1], [0]], [[1]])])
def test_tables_of_other_shapes_are_refused(predicted: object, truth: object) -> None:
    with pytest.raises(DataError, match=r"must both be \[samples, labels\]"):
        MultilabelCounts.of(predicted, truth)


def test_counts_over_other_labels_do_not_add_up() -> None:
    with pytest.raises(DataError, match="counts over 2 and 3 labels cannot be added"):
        MultilabelCounts.empty(2) + MultilabelCounts.empty(3)


GOOD = MultilabelCounts.of([[1, 1], [0, 1]], [[1, 0], [0, 1]]).to_lists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tp": None}, "integer lists"),
        ({"tp": ["many", 1]}, "integer lists"),
        ({"tp": [1.5, 1]}, "integer lists"),
        ({"tp": [[1, 1]]}, "same length|integer lists"),
        ({"samples": [1, 0]}, "integer lists"),
        ({"samples": [9, 0, 1]}, "integer lists"),
        ({"samples": [-1, 0, 1]}, "integer lists|negative"),
        ({"tp": [1]}, "same length|disagree"),
        ({"fn": [0, 0, 0]}, "same length"),
        ({"fp": [-1, 2]}, "negative"),
        ({"tp": [5, 1]}, "disagree"),
        ({"fp": [0, 0]}, "disagree"),
        ({"samples": [1, 1, 3, 1, 0, -1]}, "negative"),
    ],
)
def test_malformed_lists_are_refused(change: dict[str, object], message: str) -> None:
    assert MultilabelCounts.from_lists(GOOD).to_lists() == GOOD
    with pytest.raises(DataError, match=message):
        MultilabelCounts.from_lists({**GOOD, **change})  # type: ignore[dict-item]


def test_a_missing_list_is_refused() -> None:
    with pytest.raises(DataError, match="samples"):
        MultilabelCounts.from_lists({name: GOOD[name] for name in ("tp", "fp", "fn")})


def test_thresholds_by_hand() -> None:
    """Scores .9 .8 .3 .2 with truth 1 0 1 0: predicting three is best, F1 4/5; the threshold lies halfway from .3 to .2."""
    assert tune_thresholds(np.array([[0.9], [0.8], [0.3], [0.2]]), [[1], [0], [1], [0]]) == pytest.approx([0.25])


def test_a_threshold_never_cuts_through_equal_scores() -> None:
    """Three rows score .5, one of them positive: they are predicted together or not at all."""
    scores, truth = np.array([[0.9], [0.5], [0.5], [0.5], [0.1]]), np.array([[1], [1], [0], [0], [0]])
    threshold = tune_thresholds(scores, truth)[0]
    assert threshold == pytest.approx(0.7)
    predicted = scores[:, 0] >= threshold
    assert predicted.tolist() == [True, False, False, False, False]


def test_a_label_that_never_occurs_keeps_one_half_and_one_that_always_does_is_always_predicted() -> None:
    scores = np.array([[0.9, 0.2, 0.0], [0.1, 0.7, 0.0]])
    thresholds = tune_thresholds(scores, np.array([[0, 1, 1], [0, 1, 1]]))
    assert thresholds[0] == 0.5
    assert (scores[:, 1:] >= thresholds[1:]).all()


def test_neighbouring_floats_are_told_apart() -> None:
    """The mean of two neighbouring floats rounds to one of them; the threshold must still exclude the lower one."""
    for low in (0.3, np.nextafter(0.3, 1), np.nextafter(0.3, 0), 5e-324, 0.0):
        scores = np.array([[np.nextafter(low, 1)], [low]])
        assert (scores >= tune_thresholds(scores, [[1], [0]])).tolist() == [[True], [False]]


def test_thresholds_need_tables_of_one_shape() -> None:
    with pytest.raises(DataError, match="scores and labels"):
        tune_thresholds(np.zeros((2, 3)), np.zeros((3, 2)))
