"""How the algorithms relate to each other and to closed forms, on real local training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.fedbn import FedBN
from fedmap.aggregators.fedgma import FedGMA
from fedmap.aggregators.fedmap import FedMAP
from fedmap.aggregators.fedprox import FedProx
from fedmap.aggregators.gma import GMA
from fedmap.aggregators.individual import Individual
from fedmap.aggregators.scaffold import Scaffold
from fedmap.checkpoint import Memories
from fedmap.flower.foreign import FlowerAggregator
from fedmap.local.rules import Memory
from fedmap.local.training import TrainingOptions
from tests.toys import PLAIN_SGD, Parabola, net_clients, one_round, parabola, run, same, start

ADAM = TrainingOptions(learning_rate=0.01, batch_size=8)
SGD = replace(PLAIN_SGD, num_updates=4, batch_size=8)


def w(state) -> float:
    return float(state.weights["w"][0])


@pytest.mark.parametrize(
    "aggregator",
    [FedProx(mu=0), GMA(tau=0), FedGMA(server_learning_rate=0), FlowerAggregator("FedAvgM", {"server_momentum": 0.0})],
    ids=["fedprox-mu-0", "gma-tau-0", "fedgma-rate-0", "fedavgm-momentum-0"],
)
def test_is_fedavg_bit_for_bit(aggregator):
    expected, _ = run(FedAvg(), net_clients(ADAM), 3)
    state, _ = run(aggregator, net_clients(ADAM), 3)
    assert same(state.weights, expected.weights)


def test_fedprox_with_mu_is_not_fedavg():
    expected, _ = run(FedAvg(), net_clients(ADAM), 1)
    state, _ = run(FedProx(mu=1.0), net_clients(ADAM), 1)
    assert not np.array_equal(state.weights["head.weight"], expected.weights["head.weight"])


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_control_is_the_mean_of_the_clients_controls_every_round(option):
    aggregator = Scaffold(option=option, num_clients=3)

    def check(result):
        for name, control in result.state.control.items():
            mean = np.mean([result.memories[k].arrays["control"][name] for k in range(3)], axis=0)
            assert control == pytest.approx(mean, abs=1e-6)

    state, _ = run(aggregator, net_clients(SGD), 5, on_round=check)
    assert max(float(np.abs(control).max()) for control in state.control.values()) > 0.01


def test_scaffold_without_heterogeneity_is_fedavg():
    # the same data, full batches: all clients' gradients agree, so controls cancel
    options = replace(SGD, batch_size=64)
    expected, _ = run(FedAvg(), net_clients(options, alike=True), 4)
    state, _ = run(Scaffold(num_clients=3), net_clients(options, alike=True), 4)
    for name, array in expected.weights.items():
        assert state.weights[name] == pytest.approx(array, abs=2e-6)


# two clients: curvatures 1 and 4, optima 4 and -2; the mean loss is least at (1 * 4 + 4 * -2) / 5 = -0.8
OPTIMA, CURVATURES, OPTIMUM = (4.0, -2.0), (1.0, 4.0), -0.8


def two_parabolas(options):
    model = Parabola()
    return [parabola(k, OPTIMA[k], CURVATURES[k], options=options, model=model) for k in (0, 1)]


def fixed_point(options, mu=0.0):
    """Where w = mean_k y_k(w): K steps contract towards (h a + mu w)/(h + mu) by the factor r = (1 - eta (h + mu))^K."""
    slope, offset = 0.0, 0.0
    for a, h in zip(OPTIMA, CURVATURES, strict=True):
        r = (1 - options.learning_rate * (h + mu)) ** options.num_updates
        slope += (r + (1 - r) * mu / (h + mu)) / 2
        offset += (1 - r) * h * a / (h + mu) / 2
    return offset / (1 - slope)


def test_fedavg_settles_where_the_formula_says_and_scaffold_at_the_optimum():
    options = replace(PLAIN_SGD, num_updates=5)
    settled = fixed_point(options)
    assert abs(settled - OPTIMUM) > 0.3
    assert w(run(FedAvg(), two_parabolas(options), 40)[0]) == pytest.approx(settled, abs=1e-4)
    for option in ("I", "II"):
        assert w(run(Scaffold(option=option, num_clients=2), two_parabolas(options), 60)[0]) == pytest.approx(OPTIMUM, abs=1e-3)


def test_fedprox_settles_between_fedavg_and_the_optimum():
    options = replace(PLAIN_SGD, num_updates=5)
    found = w(run(FedProx(mu=2.0), two_parabolas(options), 80)[0])
    assert found == pytest.approx(fixed_point(options, mu=2.0), abs=1e-4)
    assert abs(found - OPTIMUM) < abs(fixed_point(options) - OPTIMUM) - 0.05


def test_scaffold_reaches_the_optimum_although_clients_miss_rounds_and_take_different_numbers_of_steps():
    model = Parabola()
    clients = [
        parabola(k, a, h, options=replace(PLAIN_SGD, learning_rate=0.05, num_updates=2 + k), model=model)
        for k, (a, h) in enumerate([(4.0, 1.0), (-2.0, 2.0), (1.0, 1.0), (-3.0, 2.0)])
    ]
    optimum = (4 - 4 + 1 - 6) / 6
    state, memories = run(Scaffold(num_clients=4), clients, 250, seed=5, clients_per_round=2)
    assert w(state) == pytest.approx(optimum, abs=0.02)
    assert float(state.control["w"][0]) == pytest.approx(np.mean([memories[k].arrays["control"]["w"][0] for k in range(4)]), abs=1e-5)


def test_scaffold_weight_decay_is_part_of_the_objective():
    # with decay d the mean of h/2 (w - a)^2 + d/2 w^2 is least at (4 - 8) / (5 + 2 d)
    for option in ("I", "II"):
        options = replace(PLAIN_SGD, num_updates=5, weight_decay=0.5)
        assert w(run(Scaffold(option=option, num_clients=2), two_parabolas(options), 80)[0]) == pytest.approx(-4 / 6, abs=1e-3)


def test_fedmap_with_equal_likelihoods_is_the_mean():
    clients = net_clients(replace(ADAM, num_epochs=1))
    aggregator = FedMAP()
    state = start(aggregator, clients)
    sent, _ = one_round(aggregator, state, clients)
    level = [replace(u, num_examples=5, scalars={"log-likelihood": -1.0, "prior-energy": 0.2}) for u in sent]
    got, report = aggregator.aggregate(state, level)
    expected, _ = FedAvg().aggregate(start(FedAvg(), clients), level)
    assert same(got.weights, expected.weights)
    assert set(report.client_weights.values()) == {1 / 3}


def test_fedmap_finds_the_maximum_a_posteriori():
    # theta = argmin h/2 (theta - a)^2 + (theta - gamma)^2 / (2 sigma^2) = (h a + gamma / sigma^2) / (h + 1 / sigma^2), gamma = 0
    options = replace(PLAIN_SGD, num_updates=200)
    aggregator = FedMAP(sigma=0.8)
    clients = two_parabolas(options)
    sent, _ = one_round(aggregator, start(aggregator, clients), clients)
    for update, a, h in zip(sent, OPTIMA, CURVATURES, strict=True):
        assert float(update.weights["w"][0]) == pytest.approx(h * a / (h + 1 / 0.64), abs=1e-5)


def test_fedmap_interpolates_between_individual_models_and_one_model():
    clients = two_parabolas(replace(PLAIN_SGD, num_updates=20))
    _, alone = run(Individual(), clients, 3)
    for name, sigma in (("wide", 1e6), ("narrow", 0.25)):
        memories = run(FedMAP(sigma=sigma), two_parabolas(replace(PLAIN_SGD, num_updates=20)), 3)[1]
        thetas = [float(memories[k].arrays["personal"]["w"][0]) for k in (0, 1)]
        if name == "wide":
            assert thetas == pytest.approx([float(alone[k].arrays["personal"]["w"][0]) for k in (0, 1)], abs=1e-5)
        else:
            assert abs(thetas[0] - thetas[1]) < 2.0


def test_fedmap_clients_keep_and_are_scored_with_their_own_model():
    clients = net_clients(ADAM)
    state, memories = run(FedMAP(sigma=0.3), clients, 2)
    broadcast = FedMAP(sigma=0.3).broadcast(state)
    own = clients[0].evaluate_round(broadcast, memories[0])
    other = clients[0].evaluate_round(broadcast, memories[1])
    fresh = clients[0].evaluate_round(broadcast, Memory())
    assert len({own.loss, other.loss, fresh.loss}) == 3
    assert own.loss < fresh.loss


def test_fedmap_prior_over_the_head_shares_the_rest():
    aggregator = FedMAP(sigma=0.3, prior_covers="head")
    clients = net_clients(ADAM)
    state = start(aggregator, clients)
    assert set(state.variances) == {"head.weight", "head.bias"}
    marked = {n: np.full_like(a, 9) for n, a in state.weights.items()}
    rule_memory = {0: Memory(arrays={"personal": marked})}
    for uncovered, expected in (("shared", False), ("personal", True)):
        from fedmap.local.rules import make_rule
        from fedmap.local.tensors import get_weights, set_weights

        chosen = replace(aggregator, uncovered=uncovered)
        model = clients[0].model
        set_weights(model, state.weights)
        broadcast = chosen.broadcast(state)
        make_rule(broadcast.rule).start(model, broadcast, rule_memory[0])
        now = get_weights(model)
        assert (now["head.weight"] == 9).all()
        assert (now["body.0.weight"] == 9).all() == expected
        assert (now["body.1.running_mean"] == 9).all() == expected
        set_weights(model, state.weights)


def test_fedmap_sigma_decays_by_the_round():
    clients = two_parabolas(PLAIN_SGD)
    aggregator = FedMAP(sigma=2.0, sigma_decay=0.5)
    seen = []
    run(aggregator, clients, 2, on_round=lambda r: seen.append(r.report.diagnostics["sigma"]))
    assert seen == pytest.approx([1.0, 0.5])
    state = start(aggregator, clients)
    assert aggregator.broadcast(replace(state, round_index=1)).extras["prior-variance"]["w"][0] == 1.0


def test_individual_is_training_alone_and_never_moves_the_server():
    clients = net_clients(ADAM)
    first = start(Individual(), clients).weights
    state, memories = run(Individual(), clients, 2)
    assert same(state.weights, first)
    lonely, _ = run(Individual(), net_clients(ADAM)[:1], 2)[1], None
    assert same(memories[0].arrays["personal"], lonely[0].arrays["personal"])


def test_fedbn_keeps_normalisation_on_the_client_by_module_type():
    clients = net_clients(ADAM)
    first = start(FedBN(), clients).weights
    state, memories = run(FedBN(), clients, 2)
    kept = {"body.1.weight", "body.1.bias", "body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"}
    assert set(memories[0].arrays["normalisation"]) == kept
    assert all(np.array_equal(state.weights[name], first[name]) for name in kept)
    assert not np.array_equal(memories[0].arrays["normalisation"]["body.1.running_mean"], first["body.1.running_mean"])
    sent, _ = one_round(FedBN(), state, clients, memories)
    assert set(sent[0].weights) == set(first) - kept == FedBN().expected_names(state)


@pytest.mark.parametrize(
    "aggregator", [Individual(), FedBN(), FedMAP(sigma=0.5), Scaffold(num_clients=3)], ids=["individual", "fedbn", "fedmap", "scaffold"]
)
def test_a_clients_memory_survives_a_restart_and_stays_on_the_client(aggregator, tmp_path):
    clients = net_clients(SGD)
    state, memories = run(aggregator, clients, 2)
    for k, memory in memories.items():
        Memories(tmp_path / str(k)).keep(2, memory, oldest=1)
    restarted = {k: Memories(tmp_path / str(k)).before(3) for k in memories}
    sent, _ = one_round(aggregator, state, clients, memories)
    again, _ = one_round(aggregator, state, net_clients(SGD), restarted)
    for before, after in zip(sent, again, strict=True):
        assert same(before.weights, after.weights)
        for group, arrays in before.extras.items():
            assert same(arrays, after.extras[group])
    assert not set(memories[0].arrays) & set(sent[0].extras)


def test_frozen_towers_never_travel():
    for aggregator in (FedAvg(), Scaffold(num_clients=3), FedMAP(), FedGMA()):
        clients = net_clients(SGD)
        state = start(aggregator, clients)
        sent, _ = one_round(aggregator, state, clients)
        broadcast = aggregator.broadcast(state)
        names = {*broadcast.weights, *sent[0].weights, *(n for g in (*broadcast.extras.values(), *sent[0].extras.values()) for n in g)}
        assert names
        assert not [name for name in names if name.startswith("tower")]


def test_flower_moments_in_the_state_equal_flowers_own_object_kept_alive():
    from flwr.app import Array, ArrayRecord, ConfigRecord
    from flwr.serverapp.strategy import FedAdam

    from fedmap.flower.foreign import _reply

    options = {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001}
    clients = net_clients(ADAM)
    names = [name for name in start(FedAvg(), clients).weights if "running" not in name and "tracked" not in name]
    aggregator, kept_alive = FlowerAggregator("FedAdam", options), FedAdam(fraction_evaluate=0.5, **options)
    kept_alive.fraction_train = 0.0
    state = start(aggregator, clients)
    model = {name: state.weights[name].astype(np.float64) for name in names}
    for index in range(1, 4):
        sent, _ = one_round(aggregator, state, clients)
        kept_alive.configure_train(index, ArrayRecord({n: Array(a) for n, a in model.items()}), ConfigRecord(), None)
        record, _ = kept_alive.aggregate_train(index, [_reply(update, names) for update in sent])
        state, _ = aggregator.aggregate(state, sent)
        model = {name: record[name].numpy().astype(np.float32).astype(np.float64) for name in names}
        assert all(np.array_equal(state.weights[name], model[name]) for name in names)
