"""Objective, surrogate, teacher and gates per modality."""

from __future__ import annotations

import numpy as np
import pytest

from fedmap.aggregators.modality_aware import teacher
from fedmap.aggregators.modality_aware.mixing import Mix, apply_mix, gated
from fedmap.aggregators.modality_aware.objective import HOPELESS, Objective
from fedmap.aggregators.modality_aware.surrogate import Surrogate, greedy, rank_correlation
from fedmap.metrics import MultilabelCounts, best_label_f1, tune_thresholds
from fedmap.weights import Layout, ModalityPart
from tests.toys import LinearJudge


def test_tuned_f1_is_that_of_the_tuned_thresholds():
    rng = np.random.default_rng(0)
    scores, truth = np.round(rng.random((50, 5)), 1), rng.random((50, 5)) > 0.7
    truth[:, 4] = False
    counts = MultilabelCounts.of(scores >= tune_thresholds(scores, truth), truth)
    np.testing.assert_allclose(best_label_f1(scores, truth), counts.per_label_f1)


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_loss_gradient_is_the_losses(exclusive):
    judge = LinearJudge()
    judge.exclusive = exclusive
    if exclusive:
        judge.labels = np.eye(4, dtype=np.uint8)[judge.labels.sum(axis=1) % 4]
    objective = Objective(judge)
    logits = judge.logits({"w": judge.truth})
    gradient = objective.loss_gradient(logits, np.ones(4))
    for index in ((0, 0), (7, 3), (59, 2)):
        values = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[index] += sign * 1e-5
            values.append(objective.loss(moved))
        assert gradient[index] == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)


def test_logits_that_are_not_finite_are_hopeless():
    judge = LinearJudge()
    logits = judge.logits({"w": judge.truth})
    logits[3, 1] = np.nan
    assert Objective(judge).verdict(logits) == HOPELESS


def test_fairness_takes_off_a_share_of_the_gap_to_the_worst():
    judge = LinearJudge()
    logits = judge.logits({"w": judge.truth * [1, 1, 1, -1]})
    plain = Objective(judge, kind="decided").verdict(logits)
    fair = Objective(judge, kind="decided", fairness="label", penalty=0.5).verdict(logits)
    assert plain.score == pytest.approx(0.75)
    assert fair.score == pytest.approx(0.75 - 0.5 * 0.75)
    served = [np.array([0, 0, 0, 1.0]), np.array([0.5, 0.5, 0, 0])]
    client = Objective(judge, kind="decided", fairness="client", penalty=1.0, client_labels=served).verdict(logits)
    assert client.score == pytest.approx(0.75 - 0.5)
    assert client.macro_f1 == plain.macro_f1


def test_the_gradient_search_finds_the_client_that_is_right():
    judge = LinearJudge()
    rng = np.random.default_rng(3)
    models = [judge.truth, rng.normal(size=(6, 4)), rng.normal(size=(6, 4))]
    surrogate = Surrogate(Objective(judge), [judge.logits({"w": w}) for w in models])
    points = list(surrogate.descend(np.array([0.1, 0.6, 0.3]), np.ones(4)))
    losses = [surrogate.verdict(point).loss for point in points]
    assert losses == sorted(losses, reverse=True)
    assert points[-1][0] > 0.9
    assert greedy(surrogate.verdict, np.full(3, 1 / 3))[0] == 1.0


def test_rank_correlation_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 5, 12).tolist(), rng.integers(0, 5, 12).tolist()
    assert rank_correlation(left, right) == pytest.approx(stats.spearmanr(left, right).statistic)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_the_teacher_goes_on_from_its_past_and_repeats_itself_bit_for_bit():
    def gain(alphas):
        return float(alphas[2])

    draws, gains = teacher.search(gain, np.zeros((0, 7)), np.zeros(0), num_trials=20, seed=1, round_index=1)
    assert draws.shape == (20, 7)
    alphas = teacher.on_simplex(draws)
    np.testing.assert_allclose(alphas.sum(axis=1), 1.0)
    assert alphas.min() >= 0
    again, _ = teacher.search(gain, np.zeros((0, 7)), np.zeros(0), num_trials=20, seed=1, round_index=1)
    assert np.array_equal(draws, again)
    later, later_gains = teacher.search(gain, draws, gains, num_trials=20, seed=1, round_index=2)
    assert np.array_equal(later[0], draws[np.argmax(gains)])  # the best so far is where it starts
    assert later_gains.mean() > gains.mean()
    assert not np.array_equal(later, again)


def test_no_trials_are_no_trials():
    draws, gains = teacher.search(lambda alphas: 0.0, np.zeros((0, 7)), np.zeros(0), num_trials=0, seed=1, round_index=1)
    assert draws.shape == (0, 7)
    assert gains.shape == (0,)


PARTS = {
    "text": (ModalityPart("text"),),
    "missing": (ModalityPart("text", without=True),),
    "fusion": (ModalityPart("text", 0, 1), ModalityPart("image", 1, 3)),
}


def test_gates_keep_a_client_without_text_out_of_the_text_tower():
    layout = Layout(modality_parts=PARTS)
    models = [
        {name: np.full(shape, k, np.float32) for name, shape in (("text", 2), ("missing", 1), ("fusion", (2, 3)), ("head", 2))}
        for k in (1.0, 2.0, 4.0)
    ]
    shares = np.array([0.5, 0.25, 0.25])
    text, image = np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 1.0])
    mix = gated(shares, layout, {"text": text, "image": image})
    np.testing.assert_allclose(mix.by_part["text"], [2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(mix.by_part["no text"], [0, 0, 1])
    mixed = apply_mix(models, mix, layout)
    np.testing.assert_allclose(mixed["text"], 4 / 3)
    np.testing.assert_allclose(mixed["missing"], 4.0)
    np.testing.assert_allclose(mixed["fusion"], [[4 / 3, 3.0, 3.0]] * 2)
    np.testing.assert_allclose(mixed["head"], 0.5 + 0.5 + 1.0)
    assert list(mixed) == list(models[0])
    assert models[0]["fusion"][0, 0] == 1.0  # inputs stay as they were


def test_gates_that_tell_nobody_apart_change_nothing():
    layout = Layout(modality_parts=PARTS)
    shares = np.array([0.5, 0.5])
    assert gated(shares, layout, {"text": np.zeros(2), "image": np.ones(2)}).by_part == {}
    assert gated(shares, layout, {"text": np.full(2, 0.3)}).by_part == {}
    models = [{"fusion": np.ones((2, 3), np.float32)}, {"fusion": np.zeros((2, 3), np.float32)}]
    np.testing.assert_array_equal(apply_mix(models, Mix(shares), layout)["fusion"], 0.5)
