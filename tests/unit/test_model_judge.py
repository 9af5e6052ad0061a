"""The server's judge: several models at once give the bits of one after another, and share what is frozen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmap.aggregators.modality_aware import ModalityAwareAggregation
from fedmap.local.judge import ModelJudge, at_once
from fedmap.local.tensors import get_weights
from fedmap.local.training import TrainingOptions
from tests.toys import PLAIN_SGD, Net, net_clients, one_round, pooled_validation, same, start


def judges() -> tuple[ModelJudge, ModelJudge]:
    clients = net_clients(PLAIN_SGD)
    rows = pooled_validation(clients)
    return ModelJudge(Net(), rows, PLAIN_SGD), ModelJudge(Net(), rows, PLAIN_SGD, 3)


def other(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.abs(array + rng.normal(size=array.shape)).astype(array.dtype) for name, array in get_weights(Net()).items()}


def test_several_at_once_are_one_after_another_bit_for_bit() -> None:
    torch.manual_seed(0)
    alone, together = judges()
    together.model.load_state_dict(alone.model.state_dict())
    models = [other(seed) for seed in range(7)]
    makers = [lambda weights=weights: weights for weights in models]
    makers.insert(2, lambda: None)
    found = together.several(makers)
    assert found[2] is None
    for weights, logits in zip(models, [logits for logits in found if logits is not None], strict=True):
        np.testing.assert_array_equal(alone.logits(weights), logits)
        assert np.isfinite(logits).all()
    for one, many in zip(alone.several(makers), found, strict=True):
        assert one is many is None or np.array_equal(one, many)


def test_copies_share_what_is_frozen_and_nothing_else() -> None:
    _, judge = judges()
    judge.several([lambda: other(0), lambda: other(1), lambda: other(2)])
    first = dict(judge.model.named_parameters())
    assert len(judge._copies) == 2
    for copied in judge._copies:
        for name, parameter in copied.named_parameters():
            assert (parameter is first[name]) == name.startswith("tower")


def test_a_model_that_cannot_be_copied_scores_alone() -> None:
    class Bound(Net):
        def __deepcopy__(self, memo: object) -> Net:
            raise TypeError("holds a connection")

    clients = net_clients(PLAIN_SGD)
    judge = ModelJudge(Bound(), pooled_validation(clients), PLAIN_SGD, 4)
    assert [logits.shape for logits in judge.several([lambda: other(0), lambda: other(1)]) if logits is not None] == [(72, 2)] * 2


def test_an_error_in_one_model_is_raised() -> None:
    _, judge = judges()
    with pytest.raises(ZeroDivisionError):
        judge.several([lambda: other(0), lambda: 1 / 0, lambda: other(1)])  # type: ignore[arg-type, return-value]


def test_a_whole_search_has_the_same_bits() -> None:
    clients = net_clients(replace(PLAIN_SGD, num_updates=8, learning_rate=0.5))
    rows = pooled_validation(clients)
    results = []
    for number in (1, 3):
        torch.manual_seed(1)
        judge = ModelJudge(Net(), rows, PLAIN_SGD, number)
        judge.model.load_state_dict(clients[0].model.state_dict())
        method = ModalityAwareAggregation(n_trials_per_round=8).with_judge(judge)
        clients_model = {name: tensor.clone() for name, tensor in clients[0].model.state_dict().items()}
        state = start(method, clients)
        reports = []
        for _ in range(3):
            updates, _ = one_round(method, state, clients)
            state, report = method.aggregate(state, updates)
            reports.append(report)
        results.append((state.weights, reports))
        clients[0].model.load_state_dict(clients_model)
    (left, first), (right, second) = results
    assert same(left, right)
    assert first == second
    assert first[-1].diagnostics["evaluations"] > 5


def test_how_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    options = TrainingOptions()
    assert [at_once(Net(), options, threads) for threads in (1, 2, 4, 8)] == [4, 3, 1, 1]
    assert at_once(Net(), replace(options, device="cuda"), 1) == 1
    monkeypatch.setattr("fedmap.local.judge._SMALL", 100)
    assert at_once(Net(), options, 1) == 1
