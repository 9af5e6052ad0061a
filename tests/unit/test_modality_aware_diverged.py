"""A diverged client is finite, passes every check of form, and would ruin a mix with a few percent of weight."""

from __future__ import annotations

import numpy as np
import pytest

from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.modality_aware import ModalityAwareAggregation
from fedmap.records import ClientUpdate
from tests.toys import LinearJudge, same, update


def _aggregate(models: list[np.ndarray], sizes: list[int]) -> tuple[dict[str, np.ndarray], dict[int, float], tuple[str, ...]]:
    method = ModalityAwareAggregation(n_trials_per_round=8).with_judge(LinearJudge())
    state, report = method.aggregate(method.init({"w": np.zeros((6, 4), np.float32)}), _updates(models, sizes))
    return dict(state.weights), dict(report.client_weights), report.notes


def _updates(models: list[np.ndarray], sizes: list[int]) -> list[ClientUpdate]:
    return [update(k, {"w": model.astype(np.float32)}, size) for k, (model, size) in enumerate(zip(models, sizes, strict=True))]


def test_it_gets_no_weight_and_the_report_says_why() -> None:
    truth, rng = LinearJudge().truth, np.random.default_rng(0)
    honest = [truth + 0.2 * rng.normal(size=truth.shape) for _ in range(4)]
    weights, shares, notes = _aggregate([1e3 * rng.normal(size=truth.shape), *honest], [100, 10, 10, 10, 10])
    assert shares[0] == 0.0
    assert np.abs(weights["w"] - truth).max() < 1.0
    assert any(note.startswith("client 0 gets no weight: its change is") for note in notes)


@pytest.mark.parametrize("factor", [20.0, 1000.0])
def test_far_and_good_is_no_reason(factor: float) -> None:
    truth = LinearJudge().truth
    near = [truth / factor for _ in range(4)]
    _, shares, notes = _aggregate([truth, *near], [100, 10, 10, 10, 10])
    assert shares[0] > 0.0
    assert notes == ()


def test_honest_clients_leave_the_mix_by_examples_bit_for_bit() -> None:
    truth = LinearJudge().truth
    models, sizes = [truth, truth, truth], [3, 5, 9]
    weights, shares, _ = _aggregate(models, sizes)
    plain = FedAvg()
    expected, report = plain.aggregate(plain.init({"w": np.zeros((6, 4), np.float32)}), _updates(models, sizes))
    assert shares == report.client_weights
    assert same(weights, expected.weights)
