"""Whole rounds: what is chosen, what is reported, what is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.modality_aware import ModalityAwareAggregation
from fedmap.aggregators.modality_aware.gate import Gate
from fedmap.build import build_aggregator
from fedmap.checkpoint import state_from_bytes, state_to_bytes
from fedmap.config import compose_and_resolve, parse
from fedmap.errors import ConfigError
from fedmap.local.judge import ModelJudge
from fedmap.records import ClientSignals
from tests.toys import PLAIN_SGD, LinearJudge, Net, Rows, same, update

FAST = {"n_trials_per_round": 8}


def aggregator(**options) -> ModalityAwareAggregation:
    return ModalityAwareAggregation(**(FAST | options)).with_judge(LinearJudge())


def start(method):
    return method.init({"w": np.zeros((6, 4), np.float32)})


def clients(*noise: float, sizes=None, seed=0, **more):
    """Clients around the truth, each with so much noise in its model."""
    truth, rng = LinearJudge().truth, np.random.default_rng(seed)
    return [
        update(k, {"w": (truth + level * rng.normal(size=(6, 4))).astype(np.float32)}, (sizes or [10] * len(noise))[k], **more)
        for k, level in enumerate(noise)
    ]


def test_without_a_judge_it_says_what_to_do():
    method = ModalityAwareAggregation()
    with pytest.raises(ConfigError, match="with_judge"):
        method.aggregate(start(method), clients(0.1, 0.1))
    empty = Rows(x=np.zeros((0, 4)), labels=np.zeros((0, 2)))
    with pytest.raises(ConfigError, match=r"server_val\.csv"):
        ModelJudge(Net(), empty, PLAIN_SGD)


@pytest.mark.parametrize("sizes", [[10, 10, 10], [100_000, 10, 10], [3, 5, 9]])
def test_equal_models_fall_to_the_mix_by_examples(sizes):
    method = aggregator()
    state, report = method.aggregate(start(method), clients(0.0, 0.0, 0.0, sizes=sizes))
    expected, plain = FedAvg().aggregate(FedAvg().init(start(method).weights), clients(0.0, 0.0, 0.0, sizes=sizes))
    assert report.client_weights == plain.client_weights
    assert same(state.weights, expected.weights)


def test_one_client_is_taken_as_it_is_without_a_search():
    method = aggregator()
    only = clients(0.5)
    state, report = method.aggregate(start(method), only)
    assert same(state.weights, only[0].weights)
    assert report.client_weights == {0: 1.0}
    assert report.diagnostics == {"evaluations": 0.0}


@pytest.mark.parametrize("seed", range(4))
def test_never_worse_than_the_mix_by_examples_on_the_validation_rows(seed):
    method = aggregator(seed=seed)
    _, report = method.aggregate(start(method), clients(0.5, 1.0, 2.0, 4.0, seed=seed, sizes=[5, 10, 20, 40]))
    assert report.diagnostics["score"] >= report.diagnostics["score-by-examples"]


def test_a_wrong_client_loses_its_weight_whatever_it_claims():
    truth = LinearJudge().truth
    claims = ClientSignals(f1_before=0.0, f1_after=1.0, validation_loss=0.0, gradient_norm=0.0, label_imbalance=0.0, diversity=1.0)
    liar = replace(update(2, {"w": (-truth).astype(np.float32)}, 10_000), signals=claims)
    method = aggregator()
    _, report = method.aggregate(start(method), [*clients(0.3, 0.3), liar])
    assert report.client_weights[2] < 0.05
    assert report.diagnostics["score"] > report.diagnostics["score-by-examples"] + 0.2


def test_a_claim_of_many_examples_has_to_be_borne_out():
    def weight(noise):
        method = aggregator(caution=1e9)
        _, report = method.aggregate(start(method), clients(noise, 0.5, 0.5, 0.5, sizes=[10**9, 10, 10, 10]))
        return report.client_weights[0]

    assert weight(0.01) > 0.999  # its model is as good as it says
    assert weight(3.0) == pytest.approx(10 / 13)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_a_poisoned_model_does_not_spread(poison):
    bad = update(1, {"w": np.full((6, 4), poison, np.float32)}, 1000)
    method = aggregator()
    state, report = method.aggregate(start(method), [*clients(0.2), bad, *[replace(u, client_id=2) for u in clients(0.3)]])
    assert np.isfinite(state.weights["w"]).all()
    assert report.client_weights.get(1, 0.0) == 0.0
    assert np.abs(state.weights["w"]).max() < 10
    assert all(np.isfinite(value) for value in report.diagnostics.values())


def test_nobody_usable_keeps_the_model_and_says_so():
    method = aggregator()
    before = start(method)
    for value, words in ((np.nan, "no client sent a finite model"), (3e38, "no client's model gives finite outputs")):
        bad = [update(k, {"w": np.full((6, 4), value, np.float32)}) for k in range(2)]
        judge = LinearJudge()
        judge.x = judge.x * 1e300
        state, report = method.with_judge(judge).aggregate(before, bad)
        assert same(state.weights, before.weights)
        assert state.round_index == 1
        assert any(words in note for note in report.notes)


def test_the_report_holds_what_a_user_wants_to_see():
    method = aggregator()
    state, report = method.aggregate(start(method), clients(0.2, 1.0, 2.0, signals=ClientSignals(f1_after=float("nan"))))
    state, report = method.aggregate(state, clients(0.2, 1.0, 2.0, seed=1, signals=ClientSignals(f1_after=7.0)))
    assert {"score", "teacher-score", "student-score", "score-by-examples", "evaluations", "candidates", "surrogate-correlation"} <= set(
        report.diagnostics
    )
    assert sum(value for name, value in report.diagnostics.items() if name.startswith("alpha-")) == pytest.approx(1.0)
    assert report.diagnostics["rejected-signals"] == 3
    assert sum("f1_after=7 is outside [0, 1]" in note for note in report.notes) == 3
    assert report.diagnostics["evaluations"] < 20
    assert -1 <= report.diagnostics["surrogate-correlation"] <= 1


def test_evaluations_are_counted_as_they_are_made():
    method = aggregator()
    judge = LinearJudge()
    _, report = method.with_judge(judge).aggregate(start(method), clients(0.2, 1.0, 2.0))
    assert report.diagnostics["evaluations"] == judge.asked


def test_a_poor_surrogate_is_replaced_by_real_evaluations():
    method = aggregator()
    state = replace(start(method), correlation=0.1)
    state, report = method.aggregate(state, clients(0.5, 1.0, 2.0))
    assert report.diagnostics["evaluations"] > 20
    assert any("all are really evaluated" in note for note in report.notes)
    assert state.correlation > 0.1  # a linear model's mixed logits are exact
    assert report.diagnostics["surrogate-correlation"] == pytest.approx(1.0, abs=0.05)


def test_the_student_takes_over_and_the_search_is_skipped():
    method = aggregator(patience=2, tolerance=0.05, audit_every=2, aggregator_lr=0.03, caution=4.0)
    state, notes, led = start(method), [], []
    for index in range(8):
        noise = [0.2, 3.0, 3.0, 0.3]
        state, report = method.aggregate(state, clients(*noise, seed=index, sizes=[5, 40, 40, 5]))
        notes += report.notes
        led.append("student-leads" in report.diagnostics)
        assert report.diagnostics["score"] >= report.diagnostics["score-by-examples"]
        if led[-1]:
            assert "candidates" not in report.diagnostics
    assert any(led)
    assert any("the student leads from the next round on" in note for note in notes)
    assert not all(led[led.index(True) :])  # the teacher looks again
    assert state.gate.matches > 0


def test_a_student_that_fails_gives_way_within_the_round():
    method = aggregator()
    state, _ = method.aggregate(start(method), clients(0.2, 3.0, 3.0))
    spoilt = replace(state.student, parameters={**state.student.parameters, "w2": -5 * state.student.parameters["w2"]})
    state, report = method.aggregate(replace(state, student=spoilt, gate=Gate(leads=True)), clients(0.2, 3.0, 3.0, seed=1))
    assert any(note.startswith("the teacher is back") for note in report.notes)
    assert "candidates" in report.diagnostics
    assert not state.gate.leads


def test_a_run_resumed_from_bytes_gives_the_same_bits():
    method = aggregator(patience=1, tolerance=0.1)
    straight = resumed = start(method)
    for index in range(4):
        sent = clients(0.3, 1.0, 3.0, seed=index)
        straight, report = method.aggregate(straight, sent)
        resumed = state_from_bytes(state_to_bytes(resumed), type(straight))
        resumed, again = aggregator(patience=1, tolerance=0.1).aggregate(resumed, sent)
        assert again == report
        assert state_to_bytes(resumed) == state_to_bytes(straight)


def test_the_student_goes_on_in_the_next_run(tmp_path):
    method = aggregator(aggregator_path=str(tmp_path / "mlp.safetensors"))
    assert method.restore(start(method)).student is None
    state, _ = method.aggregate(start(method), clients(0.2, 1.0))
    method.persist(state)
    again = method.restore(start(method))
    assert np.array_equal(again.student.parameters["w1"], state.student.parameters["w1"])
    assert len(again.lessons) == 1
    assert not again.gate.leads
    other = aggregator(aggregator_path=str(tmp_path / "mlp.safetensors"), hidden_dim=3)
    with pytest.raises(ConfigError, match="hidden_dim"):
        other.restore(start(other))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"input_dim": 7}, "set input_dim=10"),
        ({"n_trials_per_round": 1.5}, "integer"),
        ({"claim_limit": -1}, "claim_limit"),
        ({"fairness": "all"}, "none, label, client"),
        ({"objective": "loss"}, "tuned, decided"),
        ({"custom_features": {"battery": "big"}}, "custom_features.battery"),
    ],
)
def test_options_are_checked(option, words):
    with pytest.raises(ConfigError, match=words):
        ModalityAwareAggregation(**option)


def test_a_signal_of_ones_own_becomes_a_feature():
    method = aggregator(custom_features={"battery": "higher"})
    sent = [
        replace(each, signals=ClientSignals(custom={"battery": level})) for each, level in zip(clients(0.5, 0.6), (0.1, 0.9), strict=True)
    ]
    state, report = method.aggregate(start(method), sent)
    assert "alpha-battery" in report.diagnostics
    assert state.student.shape == (11, 16)


def test_fedops_files_mean_this_strategy():
    raw = compose_and_resolve("config", ["strategy=fedavg", "random_seed=7"])
    raw["server"]["strategy"] = {
        "_target_": "fedops.server.fedmap.strategy.ModalityAwareAggregation",
        "aggregator_path": "aggregator_mlp.pth",
        "input_dim": 10,
        "hidden_dim": 16,
        "aggregator_lr": 0.001,
        "entropy_coeff": 0.01,
        "n_trials_per_round": 4,
        "perf_mix_lambda": 0.7,
        "z_clip": 3.0,
    }
    made = build_aggregator(parse(raw))
    assert isinstance(made, ModalityAwareAggregation)
    assert (made.n_trials_per_round, made.aggregator_path, made.seed) == (4, "aggregator_mlp.pth", 7)


def test_mu_is_fedprox_on_the_clients():
    assert aggregator().broadcast(start(aggregator())).rule == "plain"
    broadcast = aggregator(mu=0.1).broadcast(start(aggregator()))
    assert (broadcast.rule, broadcast.scalars) == ("proximal", {"mu": 0.1})
