"""Laws that hold for every aggregator and any updates."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.fedgma import FedGMA
from fedmap.aggregators.fedmap import FedMAP
from fedmap.aggregators.fedprox import FedProx
from fedmap.aggregators.gma import GMA
from fedmap.aggregators.scaffold import Scaffold
from fedmap.checkpoint import state_from_bytes, state_to_bytes
from fedmap.flower.foreign import FlowerAggregator
from fedmap.records import ClientUpdate
from fedmap.weights import Layout
from tests.toys import same

AVERAGES = (
    FedAvg(),
    FedProx(mu=0.1),
    FedMAP(),
    FedMAP(likelihood="sum", learn_sigma=True, covariance="diagonal"),
    Scaffold(num_clients=50),
    FlowerAggregator("FedMedian"),
    FlowerAggregator("FedTrimmedAvg", {"beta": 0.2}),
    FlowerAggregator("Krum"),
)
OTHERS = (
    FedGMA(),
    FedGMA(agreement="fraction", p=0.6),
    GMA(tau=0.5),
    FlowerAggregator("FedAdam", {"eta": 0.01}),
    FlowerAggregator("FedAvgM", {"server_momentum": 0.9}),
)
ALL = AVERAGES + OTHERS

numbers = st.floats(-1e3, 1e3, width=32).map(lambda x: 0.0 if abs(x) < 1e-6 else x)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LAYOUT = Layout(buffers=frozenset({"mean", "count"}))


def arrays(draw, values=numbers):
    return {
        "w": np.array(draw(st.lists(values, min_size=4, max_size=4)), np.float32).reshape(2, 2),
        "b": np.array(draw(values), np.float64),
        "mean": np.array([draw(values)], np.float32),
        "count": np.array(draw(st.integers(0, 2**40))),
    }


@st.composite
def rounds(draw, least=3):
    """(initial weights, updates of the first round)."""
    initial = arrays(draw)
    updates = []
    for client_id in draw(st.lists(st.integers(0, 1000), min_size=least, max_size=6, unique=True)):
        parameters = {name: array for name, array in arrays(draw).items() if name in ("w", "b")}
        updates.append(
            ClientUpdate(
                client_id=client_id,
                round_index=1,
                weights=arrays(draw),
                num_examples=draw(st.integers(1, 10_000)),
                num_steps=1,
                extras={"last-gradient": parameters, "control-delta": parameters},
                scalars={"log-likelihood": -draw(st.floats(0, 50)), "prior-energy": draw(st.floats(0, 50))},
            )
        )
    return initial, updates


@quick
@given(rounds(), st.randoms(use_true_random=False))
def test_the_order_of_replies_changes_no_bit_and_inputs_stay_as_they_were(drawn, rng):
    initial, updates = drawn
    before = pickle.dumps((initial, updates))
    for aggregator in ALL:
        state = aggregator.init(initial, LAYOUT)
        expected, report = aggregator.aggregate(state, updates)
        shuffled = list(updates)
        rng.shuffle(shuffled)
        got, again = aggregator.aggregate(state, shuffled)
        assert state_to_bytes(got) == state_to_bytes(expected)
        assert again == report
    assert pickle.dumps((initial, updates)) == before


@quick
@given(rounds())
def test_names_shapes_and_dtypes_are_kept_and_counters_take_the_maximum(drawn):
    initial, updates = drawn
    for aggregator in ALL:
        state, report = aggregator.aggregate(aggregator.init(initial, LAYOUT), updates)
        assert list(state.weights) == list(initial)
        for name, array in initial.items():
            assert (state.weights[name].dtype, state.weights[name].shape) == (array.dtype, array.shape)
        heard = [update for update in updates if report.client_weights.get(update.client_id, 1.0) > 0]
        assert state.weights["count"] == max(update.weights["count"] for update in heard)


@quick
@given(rounds())
def test_means_stay_inside_the_hull_of_the_clients(drawn):
    initial, updates = drawn
    for aggregator in AVERAGES:
        state, _ = aggregator.aggregate(aggregator.init(initial, LAYOUT), updates)
        for name in ("w", "b", "mean"):
            stack = np.stack([update.weights[name].astype(np.float64) for update in updates])
            slack = 1e-6 * np.abs(stack).max() + 1e-12
            assert (state.weights[name] >= stack.min(axis=0) - slack).all()
            assert (state.weights[name] <= stack.max(axis=0) + slack).all()


@quick
@given(rounds())
def test_identical_updates_are_a_fixed_point_of_every_mean(drawn):
    initial, updates = drawn
    alike = [replace(update, weights=updates[0].weights) for update in updates]
    for aggregator in (*AVERAGES, GMA(tau=1.0)):
        state, _ = aggregator.aggregate(aggregator.init(initial, LAYOUT), alike)
        for name in ("w", "b", "mean"):
            assert np.allclose(state.weights[name], updates[0].weights[name], rtol=1e-6, atol=1e-9)


@quick
@given(rounds())
def test_shares_of_the_aggregate_sum_to_one(drawn):
    initial, updates = drawn
    for aggregator in ALL:
        _, report = aggregator.aggregate(aggregator.init(initial, LAYOUT), updates)
        if report.client_weights:
            assert set(report.client_weights) == {update.client_id for update in updates}
            assert abs(sum(report.client_weights.values()) - 1) < 1e-9
            assert min(report.client_weights.values()) >= 0


@quick
@given(rounds(), rounds())
def test_state_to_bytes_to_state_is_the_identity_and_the_next_round_is_the_same(first, second):
    initial, updates = first
    for aggregator in ALL:
        state, _ = aggregator.aggregate(aggregator.init(initial, LAYOUT), updates)
        data = state_to_bytes(state)
        loaded = state_from_bytes(data, type(state))
        assert state_to_bytes(loaded) == data
        assert same(loaded.weights, state.weights)
        assert loaded.layout == state.layout
        straight, _ = aggregator.aggregate(state, second[1])
        resumed, _ = aggregator.aggregate(loaded, second[1])
        assert state_to_bytes(straight) == state_to_bytes(resumed)


@quick
@given(rounds(), st.floats(-20, 20))
def test_fedmap_depends_on_differences_of_log_omega_only(drawn, shift):
    initial, updates = drawn
    moved = [replace(update, scalars={**update.scalars, "prior-energy": update.scalars["prior-energy"] + shift}) for update in updates]
    state = FedMAP().init(initial, LAYOUT)
    one, two = FedMAP().aggregate(state, updates)[1], FedMAP().aggregate(state, moved)[1]
    for client_id, share in one.client_weights.items():
        assert abs(share - two.client_weights[client_id]) < 1e-9


@quick
@given(rounds(), st.floats(0, 1), st.floats(0, 1))
def test_a_stricter_mask_never_opens_more(drawn, one, two):
    initial, updates = drawn
    loose, strict = sorted((one, two))
    for make in (lambda level: GMA(tau=level), lambda level: FedGMA(p=level), lambda level: FedGMA(p=level, agreement="fraction")):
        opened = [
            make(level).aggregate(make(level).init(initial, LAYOUT), updates)[1].diagnostics["mask-open"] for level in (loose, strict)
        ]
        assert opened[0] >= opened[1]
