"""Laws of ModalityAwareAggregation, for any clients."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmap.aggregators.modality_aware import ModalityAwareAggregation
from fedmap.aggregators.modality_aware.checks import check_claims
from fedmap.aggregators.modality_aware.features import FEATURES, make_features, softmax
from fedmap.aggregators.modality_aware.objective import Verdict
from fedmap.checkpoint import state_from_bytes, state_to_bytes
from fedmap.records import ClientSignals
from tests.toys import LinearJudge, update

any_number = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 1))
signals = st.builds(
    ClientSignals,
    f1_before=any_number,
    f1_after=any_number,
    validation_loss=any_number,
    gradient_norm=any_number,
    label_imbalance=any_number,
    diversity=any_number,
    modality_shares=st.dictionaries(st.sampled_from(["text", "image"]), st.floats(allow_nan=True)),
    share_complete=any_number,
)


@st.composite
def rounds(draw):
    """2 to 5 updates of a small linear model."""
    count = draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return [
        update(k, {"w": rng.normal(scale=2, size=(6, 4)).astype(np.float32)}, draw(st.integers(1, 500)), signals=draw(signals))
        for k in range(count)
    ]


def method():
    return ModalityAwareAggregation(n_trials_per_round=3).with_judge(LinearJudge())


def start():
    return method().init({"w": np.zeros((6, 4), np.float32)})


@settings(max_examples=25, deadline=None)
@given(rounds(), st.randoms(use_true_random=False))
def test_a_round(sent, random):
    frozen = pickle.dumps(sent)
    state, report = method().aggregate(start(), sent)
    assert pickle.dumps(sent) == frozen
    shares = np.array(list(report.client_weights.values()))
    assert shares.min() >= 0
    assert abs(shares.sum() - 1) < 1e-9
    assert all(np.isfinite(value) for value in report.diagnostics.values())
    assert report.diagnostics["score"] >= report.diagnostics["score-by-examples"]
    # inside the hull of the clients' models and the one they started from, for the server may go part of the way
    stacked = np.stack([start().weights["w"], *(each.weights["w"] for each in sent)])
    assert (state.weights["w"] <= stacked.max(axis=0) + 1e-5).all()
    assert (state.weights["w"] >= stacked.min(axis=0) - 1e-5).all()
    shuffled = list(sent)
    random.shuffle(shuffled)
    other, _ = method().aggregate(start(), shuffled)
    data = state_to_bytes(state)
    assert state_to_bytes(other) == data
    assert state_to_bytes(state_from_bytes(data, type(state))) == data


def features_of(sent, limit, verdicts):
    claims = check_claims(sent, {})
    norms = [1.0 + update.client_id for update in sent]
    sizes = [update.num_examples for update in sent]
    return make_features(claims, sizes, verdicts, norms, perf_mix_lambda=0.7, z_clip=3, claim_limit=limit, custom={})


@settings(max_examples=100, deadline=None)
@given(rounds(), signals, st.integers(1, 10**9), st.floats(0, 2), st.integers(0, 99))
def test_what_a_client_claims_moves_its_odds_by_a_bounded_factor(sent, lie, size, limit, seed):
    rng = np.random.default_rng(seed)
    verdicts = [Verdict(float(x), float(y), float(x)) for x, y in zip(rng.random(len(sent)), rng.random(len(sent)), strict=True)]
    alphas = rng.dirichlet(np.ones(len(FEATURES)))
    honest = softmax(features_of(sent, limit, verdicts).logits(alphas))
    lying = [replace(sent[0], signals=lie, num_examples=size), *sent[1:]]
    claimed = softmax(features_of(lying, limit, verdicts).logits(alphas))
    change = np.log(claimed[0] / (1 - claimed[0])) - np.log(honest[0] / (1 - honest[0]))
    assert abs(change) <= 4 * limit + 1e-6
