"""Values that a pencil can check.

Two clients on one row with one label, w = 1 and w = -1, logits = w: the label is 1, so client 0 is right and client 1 wrong.
"""

from __future__ import annotations

import numpy as np
import pytest

from fedmap.aggregators.modality_aware import ModalityAwareAggregation
from fedmap.aggregators.modality_aware.features import Features, softmax
from fedmap.aggregators.modality_aware.objective import Objective
from fedmap.aggregators.modality_aware.surrogate import Surrogate
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
