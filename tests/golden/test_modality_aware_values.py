"""Values that a pencil can check.

Two clients on one row with one label, w = 1 and w = -1, logits = w: the label is 1, so client 0 is right and client 1 wrong.
"""

from __future__ import annotations

import numpy as np
import pytest

from fedmap.aggregators.modality_aware import ModalityAwareAggregation
from fedmap.aggregators.modality_aware.features import Features, softmax
from fedmap.aggregators.modality_aware.mixing import stepped
from fedmap.aggregators.modality_aware.objective import Objective
from fedmap.aggregators.modality_aware.surrogate import Surrogate
from fedmap.weights import Layout
from tests.toys import update


class OneRow:
    labels = np.array([[1]], dtype=np.uint8)
    exclusive, tunable = False, False

    def logits(self, weights):
        return weights["w"].astype(np.float64).reshape(1, 1)

    def decide(self, logits):
        return logits >= 0.0


def test_the_loss_and_score_of_one_row():
    objective = Objective(OneRow())
    right, wrong = objective.verdict(np.array([[1.0]])), objective.verdict(np.array([[-1.0]]))
    assert (right.score, wrong.score) == (1.0, 0.0)
    assert right.loss == pytest.approx(np.log(1 + np.exp(-1)))  # 0.3133
    assert wrong.loss == pytest.approx(1.3133, abs=1e-4)


def test_mixed_logits_of_a_linear_model_are_the_mixed_models():
    surrogate = Surrogate(Objective(OneRow()), [np.array([[1.0]]), np.array([[-1.0]])])
    assert surrogate.mix(np.array([0.75, 0.25])) == pytest.approx(0.5)


def test_the_client_that_is_right_gets_all_the_weight():
    """By examples the mix is w = 0.25 - 0.75 = -0.5, which is wrong; the lowest loss of the right ones is at w = 1."""
    method = ModalityAwareAggregation(n_trials_per_round=0).with_judge(OneRow())
    state = method.init({"w": np.zeros(1, np.float32)})
    state, report = method.aggregate(state, [update(0, {"w": [1.0]}, 10), update(1, {"w": [-1.0]}, 30)])
    assert report.client_weights == {0: 1.0, 1: 0.0}
    assert state.weights["w"] == pytest.approx([1.0])
    assert (report.diagnostics["score"], report.diagnostics["score-by-examples"]) == (1.0, 0.0)


def test_a_claim_of_any_size_is_worth_the_limit():
    """Verified logits 1 and 0; claims of 3 and -3 count as 0.5 and -0.5."""
    verified, claimed = np.array([[1.0], [0.0]]), np.array([[-3.0], [3.0]])
    np.testing.assert_allclose(Features(verified, claimed, 0.5).logits(np.ones(1)), [0.5, 0.5])
    np.testing.assert_allclose(softmax(np.log([1.0, 3.0])), [0.25, 0.75])


class Rows:
    """100 rows of one label, of which the first `ones` are 1."""

    exclusive, tunable = False, True

    def __init__(self, ones):
        self.labels = (np.arange(100) < ones).astype(np.uint8).reshape(-1, 1)

    def logits(self, weights):
        return np.full((100, 1), float(weights["w"][0]))

    def decide(self, logits):
        return logits >= 0.0


@pytest.mark.parametrize(
    ("ones", "rates", "rate", "w"),
    [
        (50, [1.0, 0.5], 0.5, 2.0),  # half of the rows are 1, so that the loss is lowest at w = 0: half the way from 0 to 4 is better
        (50, [1.0, 0.5, 0.25, 0.125], 0.125, 0.5),  # and so on, as long as it falls
        (50, [1.0], 1.0, 4.0),
        (100, [1.0, 0.5], 1.0, 4.0),  # all rows are 1: going further is better, and nothing short of the mean is
        (100, [1.0, 0.5, 1.5], 1.5, 6.0),
    ],
)
def test_the_servers_learning_rate_goes_where_the_loss_is_lower(ones, rates, rate, w):
    """Both clients come from w = 0 with w = 4, so that every mix is w = 4."""
    method = ModalityAwareAggregation(n_trials_per_round=0, server_learning_rates=rates).with_judge(Rows(ones))
    state = method.init({"w": np.zeros(1, np.float32)})
    state, report = method.aggregate(state, [update(0, {"w": [4.0]}, 10), update(1, {"w": [4.0]}, 30)])
    assert report.diagnostics["server-learning-rate"] == rate
    assert state.weights["w"] == pytest.approx([w])


def test_counters_and_statistics_take_no_part_in_the_servers_learning_rate():
    received = {"w": np.zeros(2, np.float32), "mean": np.zeros(1, np.float32), "steps": np.array(3)}
    mixed = {"w": np.array([4.0, -2.0], np.float32), "mean": np.ones(1, np.float32), "steps": np.array(7)}
    moved = stepped(mixed, received, 0.5, Layout(buffers=frozenset({"mean", "steps"})))
    assert moved["w"].tolist() == [2.0, -1.0]
    assert moved["mean"].tolist() == [1.0]
    assert moved["steps"] == 7
    assert stepped(mixed, received, 1.0, Layout()) is mixed
