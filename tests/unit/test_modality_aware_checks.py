"""What clients claim is checked: a bad signal is the round's worst, never its best."""

from __future__ import annotations

import numpy as np
import pytest

from fedmap.aggregators.modality_aware.checks import check_claims
from fedmap.aggregators.modality_aware.features import FEATURES, make_features, z_scores
from fedmap.aggregators.modality_aware.objective import Verdict
from fedmap.metrics import MultilabelCounts
from fedmap.records import ClientSignals
from tests.toys import update


def claims_of(*signals: ClientSignals, custom=None, counts=None):
    return check_claims([update(k, {"w": 0.0}, signals=each, counts=counts or {}) for k, each in enumerate(signals)], custom or {})


@pytest.mark.parametrize(
    ("name", "values", "bad", "worst"),
    [
        ("f1_after", (0.3, 0.6), float("nan"), 0.3),
        ("f1_after", (0.3, 0.6), 1.5, 0.3),
        ("f1_before", (0.2, 0.1), float("inf"), 0.1),
        ("validation_loss", (0.4, 2.0), float("nan"), 2.0),
        ("validation_loss", (0.4, 2.0), -1.0, 2.0),
        ("gradient_norm", (1.0, 3.0), float("inf"), 3.0),
        ("label_imbalance", (0.1, 0.4), -0.1, 0.4),
        ("diversity", (0.5, 0.9), 2.0, 0.5),
        ("share_complete", (0.5, 0.9), "all", 0.5),
        ("diversity", (0.5, 0.9), True, 0.5),
    ],
)
def test_a_bad_signal_is_the_worst_of_the_round_and_is_reported(name, values, bad, worst):
    found = claims_of(*(ClientSignals(**{name: value}) for value in (*values, bad)))
    np.testing.assert_array_equal(found.values[name], [*values, worst])
    assert len(found.rejected) == 1
    assert found.rejected[0].startswith(f"client 2: {name}")


def test_what_was_not_measured_is_the_middle_and_no_mistake():
    found = claims_of(ClientSignals(f1_after=0.2), ClientSignals(), ClientSignals(f1_after=0.4))
    np.testing.assert_allclose(found.values["f1_after"], [0.2, 0.3, 0.4])
    assert found.rejected == ()
    np.testing.assert_array_equal(found.values["diversity"], 0.0)


def test_a_score_must_agree_with_the_counts_sent_beside_it():
    counts = {"val-after": MultilabelCounts.of([[1, 0], [0, 1]], [[1, 0], [1, 1]])}  # F1 of 2/3 and 1
    found = claims_of(ClientSignals(f1_after=5 / 6), ClientSignals(f1_after=1.0), counts=counts)
    np.testing.assert_allclose(found.values["f1_after"], 5 / 6)
    assert "counts sent with it give 0.8333" in found.rejected[0]


def test_shares_and_own_signals_are_checked_too():
    signals = [
        ClientSignals(modality_shares={"text": share}, custom={"battery": level})
        for share, level in ((1.0, 0.8), (0.2, float("nan")), (float("nan"), 0.3))
    ]
    found = claims_of(*signals, custom={"battery": "higher"})
    np.testing.assert_array_equal(found.values["share.text"], [1.0, 0.2, 0.2])
    np.testing.assert_array_equal(found.values["custom.battery"], [0.8, 0.3, 0.3])
    assert len(found.rejected) == 2


def test_small_differences_are_not_blown_up():
    assert np.abs(z_scores(np.array([0.500, 0.501]), 0.05, 3.0)).max() < 0.02
    np.testing.assert_allclose(z_scores(np.array([0.0, 1.0]), 0.05, 3.0), [-1.0, 1.0])
    np.testing.assert_array_equal(z_scores(np.array([7.0]), 0.05, 3.0), [0.0])


def test_a_diverged_client_has_the_lowest_performance_and_loss_features():
    signals = [ClientSignals(f1_before=0.1, f1_after=f1, validation_loss=loss) for f1, loss in ((0.5, 0.3), (0.4, 0.4))]
    claims = claims_of(*signals, ClientSignals(f1_before=0.1, f1_after=float("nan"), validation_loss=float("nan")))
    verdicts = [Verdict(0.5, 0.3, 0.5), Verdict(0.4, 0.4, 0.4), Verdict(0.1, 9.0, 0.1)]
    features = make_features(claims, [10, 10, 10], verdicts, [1, 1, 50], perf_mix_lambda=0.7, z_clip=3, claim_limit=0.5, custom={})
    for name in ("performance", "loss"):
        column = FEATURES.index(name)
        assert np.argmin(features.claimed[:, column]) in (1, 2)
        assert features.claimed[2, column] == features.claimed[:, column].min()
        assert np.argmin(features.verified[:, column]) == 2


def test_log_size_alone_gives_fedavg_within_the_limit_of_claims():
    claims = claims_of(ClientSignals(), ClientSignals())
    verdicts = [Verdict(0.5, 0.5, 0.5)] * 2
    features = make_features(claims, [30, 10], verdicts, [1, 1], perf_mix_lambda=0.7, z_clip=3, claim_limit=9.0, custom={})
    weights = np.exp(features.logits(np.eye(len(FEATURES))[FEATURES.index("log-size")]))
    np.testing.assert_allclose(weights / weights.sum(), [0.75, 0.25])
