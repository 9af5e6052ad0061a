"""One round of every algorithm with numbers that a pencil can check, both signs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.fedbn import FedBN
from fedmap.aggregators.fedgma import FedGMA
from fedmap.aggregators.fedmap import FedMAP
from fedmap.aggregators.fedprox import FedProx
from fedmap.aggregators.gma import GMA
from fedmap.aggregators.individual import Individual
from fedmap.aggregators.scaffold import Scaffold
from fedmap.flower.foreign import FlowerAggregator
from fedmap.local.rules import Memory
from fedmap.weights import Layout
from tests.toys import PLAIN_SGD, Parabola, one_round, parabola, start, update

ONE_STEP = replace(PLAIN_SGD, num_updates=1)


def w(state) -> float:
    return float(np.asarray(state.weights["w"]).reshape(-1)[0])


def begin(aggregator, **weights):
    arrays = {name: value if isinstance(value, np.ndarray) else np.array([value], np.float32) for name, value in weights.items()}
    return aggregator.init(arrays, Layout.of(arrays))


def test_fedavg_weighs_by_examples_and_keeps_the_largest_count():
    # (1 * 1 + 3 * -3) / 4 = -2
    state = begin(FedAvg(), w=0.0, n=np.array(0))
    updates = [update(0, {"w": [1.0], "n": np.array(7)}, 1), update(1, {"w": [-3.0], "n": np.array(5)}, 3)]
    state, report = FedAvg().aggregate(state, updates)
    assert w(state) == -2.0
    assert state.weights["n"] == 7
    assert state.weights["n"].dtype == np.int64
    assert report.client_weights == {0: 0.25, 1: 0.75}


def test_fedprox_two_steps():
    # F = (w - 4)^2 / 2 from w_t = 0, eta = 0.1, mu = 1. Step 1: g = -4, w = 0.4. Step 2: g = -3.6 + 0.4 = -3.2, w = 0.72.
    # FedAvg's second step has g = -3.6 and ends at 0.76. A norm that is not squared would add 1 instead of 0.4: w = 0.66.
    for sign in (1, -1):
        client = parabola(0, 4.0 * sign)
        sent, _ = one_round(FedProx(mu=1.0), start(FedProx(mu=1.0), [client]), [client])
        assert sent[0].weights["w"][0] == pytest.approx(0.72 * sign, rel=1e-6)
        client = parabola(0, 4.0 * sign)
        sent, _ = one_round(FedAvg(), start(FedAvg(), [client]), [client])
        assert sent[0].weights["w"][0] == pytest.approx(0.76 * sign, rel=1e-6)


def test_fedbn_averages_what_is_shared_and_keeps_the_rest():
    # (1 * 2 + 1 * -6) / 2 = -2; the normalisation's scale stays 5
    weights = {"w": np.array([0.0], np.float32), "norm.weight": np.array([5.0], np.float32)}
    state = FedBN().init(weights, Layout(normalisation=frozenset({"norm.weight"})))
    state, report = FedBN().aggregate(state, [update(0, {"w": [2.0]}), update(1, {"w": [-6.0]})])
    assert w(state) == -2.0
    assert state.weights["norm.weight"][0] == 5.0
    assert list(state.weights) == ["w", "norm.weight"]
    assert report.notes == ()
    assert "FedBN is FedAvg" in FedBN().aggregate(begin(FedBN(), w=0.0), [update(0, {"w": [2.0]})])[1].notes[0]


def test_individual_counts_rounds_and_moves_nothing():
    state, report = Individual().aggregate(begin(Individual(), w=1.5), [update(0, {})])
    assert (w(state), state.round_index, report.client_weights) == (1.5, 1, {})


def test_scaffold_option_two_two_rounds():
    """Optima 4 and -2, eta_l = 0.1, K = 2, N = 2.

    Round 1, c = c_k = 0: y_0 = 0.4, 0.76; y_1 = -0.2, -0.38. c_0 = (0 - 0.76) / 0.2 = -3.8, c_1 = 1.9, c = -0.95, x = 0.19.
    Round 2, client 0: g = 0.19 - 4 + 3.8 - 0.95 = -0.96, y = 0.286; g = 0.286 - 4 + 2.85 = -0.864, y = 0.3724;
    c_0 = -3.8 + 0.95 + (0.19 - 0.3724) / 0.2 = -3.762. Client 1: g = 0.19 + 2 - 1.9 - 0.95 = -0.66, y = 0.256;
    g = 0.256 + 2 - 2.85 = -0.594, y = 0.3154; c_1 = 1.9 + 0.95 + (0.19 - 0.3154) / 0.2 = 2.223.
    """
    model = Parabola()
    clients = [parabola(0, 4.0, model=model), parabola(1, -2.0, model=model)]
    aggregator = Scaffold(num_clients=2)
    state = start(aggregator, clients)
    sent, memories = one_round(aggregator, state, clients)
    assert [float(u.weights["w"][0]) for u in sent] == pytest.approx([0.76, -0.38])
    assert [float(memories[k].arrays["control"]["w"][0]) for k in (0, 1)] == pytest.approx([-3.8, 1.9])
    state, _ = aggregator.aggregate(state, sent)
    assert w(state) == pytest.approx(0.19)
    assert float(state.control["w"][0]) == pytest.approx(-0.95)
    sent, memories = one_round(aggregator, state, clients, memories)
    assert [float(u.weights["w"][0]) for u in sent] == pytest.approx([0.3724, 0.3154])
    assert [float(memories[k].arrays["control"]["w"][0]) for k in (0, 1)] == pytest.approx([-3.762, 2.223], rel=1e-5)


def test_scaffold_option_one_takes_the_gradient_at_the_servers_model():
    # at x = 0 the gradients are -4 and 2, whatever the local steps did
    model = Parabola()
    clients = [parabola(0, 4.0, model=model), parabola(1, -2.0, model=model)]
    aggregator = Scaffold(option="I", num_clients=2)
    sent, memories = one_round(aggregator, start(aggregator, clients), clients)
    assert [float(memories[k].arrays["control"]["w"][0]) for k in (0, 1)] == [-4.0, 2.0]
    assert [float(u.weights["w"][0]) for u in sent] == pytest.approx([0.76, -0.38])


def test_scaffold_server_steps_scale_with_its_rate_and_with_participation():
    # x = 1 + 0.5 * (mean(3, -2) - 1) = 0.75;  c = 0 + 2/8 * mean(4, -1) = 0.375
    aggregator = Scaffold(server_learning_rate=0.5, num_clients=8)
    sent = [
        update(k, {"w": [value]}, 1 + 9 * k, extras={"control-delta": {"w": np.array([change], np.float32)}})
        for k, (value, change) in enumerate([(3.0, 4.0), (-2.0, -1.0)])
    ]
    state, report = aggregator.aggregate(begin(aggregator, w=1.0), sent)
    assert w(state) == 0.75
    assert float(state.control["w"][0]) == 0.375
    assert report.client_weights == {0: 0.5, 1: 0.5}
    assert report.diagnostics["participation"] == 0.25


@pytest.mark.parametrize("sign", [1, -1])
def test_fedgma_masks_by_the_signs_of_the_last_gradients(sign):
    # five gradients, four of one sign: |sum of signs| = 3, the share of the larger camp is 0.8
    gradients = [1.0, 2.0, 3.0, 4.0, -5.0]
    sent = [update(k, {"w": [10.0]}, extras={"last-gradient": {"w": np.array([sign * g], np.float32)}}) for k, g in enumerate(gradients)]
    for aggregator, opened in (
        (FedGMA(p=0.6, server_learning_rate=0.5), True),
        (FedGMA(p=0.8, server_learning_rate=0.5), False),
        (FedGMA(p=0.8, server_learning_rate=0.5, agreement="fraction"), True),
        (FedGMA(p=0.81, server_learning_rate=0.5, agreement="fraction"), False),
    ):
        state, report = aggregator.aggregate(begin(aggregator, w=0.0), sent)
        assert w(state) == pytest.approx(10.0 - sign * 0.5 * 1.0 * opened)  # the mean gradient is 5 / 5
        assert report.diagnostics["mask-open"] == opened


@pytest.mark.parametrize(("agreement", "camp", "p"), [("sum", 16, 0.28), ("fraction", 14, 0.56)])
def test_fedgma_opens_at_equality_although_p_times_k_is_rounded(agreement, camp, p):
    # 16 against 9 is 7 = 0.28 * 25, but in floats 0.28 * 25 = 7.000000000000001; and so is 0.56 * 25 more than 14
    assert p * 25 > round(p * 25)
    signs = [1.0] * camp + [-1.0] * (25 - camp)
    sent = [update(k, {"w": [0.0]}, extras={"last-gradient": {"w": np.array([s], np.float32)}}) for k, s in enumerate(signs)]
    _, report = FedGMA(p=p, agreement=agreement).aggregate(begin(FedGMA(), w=0.0), sent)
    assert report.diagnostics["mask-open"] == 1.0


def test_fedgma_sends_the_last_gradient():
    # two steps of 0.1 towards 4 from 0: the last gradient is taken at 0.4
    client = parabola(0, 4.0)
    sent, _ = one_round(FedGMA(), start(FedGMA(), [client]), [client])
    assert float(sent[0].extras["last-gradient"]["w"][0]) == pytest.approx(-3.6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("tau", "factor"), [(0.0, 1.0), (0.5, 1.0), (0.6, 0.5), (1.0, 0.5)])
def test_gma_damps_by_agreement_and_is_full_at_equality(sign, tau, factor):
    # changes 1, 1, 1, -2 of the same size: mean sign 0.5, mean change 0.25
    sent = [update(k, {"w": [1.0 + sign * change]}) for k, change in enumerate([1.0, 1.0, 1.0, -2.0])]
    state, _ = GMA(tau=tau).aggregate(begin(GMA(), w=1.0), sent)
    assert w(state) == pytest.approx(1.0 + sign * factor * 0.25)
    state, _ = GMA(tau=tau, server_learning_rate=2.0).aggregate(begin(GMA(), w=1.0), sent)
    assert w(state) == pytest.approx(1.0 + sign * 2 * factor * 0.25)


def fedmap_updates(first: float = 1.0, second: float = -1.0):
    return [
        update(0, {"w": [first]}, 10, scalars={"log-likelihood": -1.0, "prior-energy": 0.5}),
        update(1, {"w": [second]}, 2, scalars={"log-likelihood": -2.0, "prior-energy": 0.0}),
    ]


def test_fedmap_weights_in_log_space():
    # log omega = -1.5 and -2: omega_0 = 1 / (1 + e^-0.5) = 0.6225, gamma = 2 * 0.6225 - 1
    share = 1 / (1 + math.exp(-0.5))
    state, report = FedMAP().aggregate(begin(FedMAP(), w=0.0), fedmap_updates())
    assert report.client_weights[0] == pytest.approx(share)
    assert w(state) == pytest.approx(2 * share - 1)
    # the sum over examples: -10.5 and -4; a temperature of 13 turns the difference of -6.5 into -0.5
    _, report = FedMAP(likelihood="sum", temperature=13.0).aggregate(begin(FedMAP(), w=0.0), fedmap_updates())
    assert report.client_weights[1] == pytest.approx(share)


def test_fedmap_does_not_underflow():
    sent = [update(k, {"w": [float(k)]}, 10_000, scalars={"log-likelihood": -50.0 - k, "prior-energy": 1e5}) for k in range(2)]
    state, report = FedMAP(likelihood="sum").aggregate(begin(FedMAP(), w=0.0), sent)
    assert report.client_weights == {0: 1.0, 1: 0.0}
    assert w(state) == 0.0


def test_fedmap_learns_sigma_from_the_spread():
    # equal weights, theta = 3 and -1: gamma = 1, spread 4; sigma^2 = (nu * 1 + 2 * 4) / (nu + 2) = 3 for nu = 1
    sent = [update(k, {"w": [value]}, scalars={"log-likelihood": -1.0, "prior-energy": 0.0}) for k, value in enumerate([3.0, -1.0])]
    for covariance in ("isotropic", "layer", "diagonal"):
        aggregator = FedMAP(covariance=covariance, learn_sigma=True)
        state, report = aggregator.aggregate(begin(aggregator, w=0.0), sent)
        assert w(state) == 1.0
        assert float(state.variances["w"][0]) == pytest.approx(3.0)
        assert report.diagnostics["sigma"] == pytest.approx(math.sqrt(3.0))


def test_fedmap_shares_the_spread_as_the_covariance_says():
    # gamma = 0 everywhere; spreads: a has 1 and 9, b has 4. Isotropic: 14 / 3; per layer: 5 and 4; diagonal: each its own.
    sent = [
        update(k, {"a": [s * 1.0, s * 3.0], "b": [s * 2.0]}, scalars={"log-likelihood": 0.0, "prior-energy": 0.0})
        for k, s in enumerate([1, -1])
    ]
    expected = {"isotropic": ([14 / 3], [14 / 3]), "layer": ([5.0], [4.0]), "diagonal": ([1.0, 9.0], [4.0])}
    for covariance, (a, b) in expected.items():
        aggregator = FedMAP(covariance=covariance, learn_sigma=True)
        weights = {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}
        state, _ = aggregator.aggregate(aggregator.init(weights), sent)
        assert state.variances["a"] == pytest.approx([(1 + 2 * v) / 3 for v in a])
        assert state.variances["b"] == pytest.approx([(1 + 2 * v) / 3 for v in b])


@pytest.mark.parametrize("sign", [1, -1])
def test_fedmap_client_step_and_terms_of_omega(sign):
    # gamma = 0, theta_k = 2, optimum 4, sigma = 2, eta = 0.1: g = -2 + 2/4 = -1.5, theta = 2.15;
    # energy = 2.15^2 / 8, log-likelihood = -(4 - 2.15)^2 / 2. The data has both signs of the mirror image.
    client = parabola(0, 4.0 * sign, options=ONE_STEP)
    aggregator = FedMAP(sigma=2.0)
    memory = Memory(arrays={"personal": {"w": np.array([2.0 * sign], np.float32)}})
    sent, memories = one_round(aggregator, start(aggregator, [client]), [client], {0: memory})
    assert float(sent[0].weights["w"][0]) == pytest.approx(2.15 * sign)
    assert float(memories[0].arrays["personal"]["w"][0]) == pytest.approx(2.15 * sign)
    assert sent[0].scalars["prior-energy"] == pytest.approx(2.15**2 / 8)
    assert sent[0].scalars["log-likelihood"] == pytest.approx(-(1.85**2) / 2, rel=1e-5)


def test_flower_momentum():
    # from 0: mean 1, m = -1, w = 1; then mean 1.5, m = 0.9 * -1 - 0.5 = -1.4, w = 2.4
    aggregator = FlowerAggregator("FedAvgM", {"server_learning_rate": 1.0, "server_momentum": 0.9})
    state = begin(aggregator, w=0.0)
    for mean, expected in ((1.0, 1.0), (1.5, 2.4)):
        state, _ = aggregator.aggregate(state, [update(0, {"w": [mean - 1]}), update(1, {"w": [mean + 1]})])
        assert w(state) == pytest.approx(expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_flower_adam_first_step(sign):
    # delta = 1: m = 0.1, v = 0.01, Flower's rate 0.1 * sqrt(1 - 0.99^2) / (1 - 0.9^2), step rate * 0.1 / (0.1 + 0.001)
    rate = 0.1 * math.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    aggregator = FlowerAggregator("FedAdam", {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001})
    state, _ = aggregator.aggregate(begin(aggregator, w=0.0), [update(0, {"w": [1.0 * sign]})])
    assert w(state) == pytest.approx(sign * rate * 0.1 / 0.101)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("strategy", "options", "sent", "expected"),
    [
        ("FedAdagrad", {"eta": 0.1, "tau": 0.001}, [2.0], 0.1 * 2 / 2.001),
        # v = 0 - 0.01 * 4 * sign(0 - 4) = 0.04, m = 0.2: 0.1 * 0.2 / (0.2 + 0.001)
        ("FedYogi", {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001}, [2.0], 0.1 * 0.2 / 0.201),
        ("FedMedian", {}, [1.0, 2.0, 100.0], 2.0),
        ("FedTrimmedAvg", {"beta": 0.25}, [-50.0, 1.0, 2.0, 100.0], 1.5),
        # three clients close together, one far away; the middle one has the nearest neighbours
        ("Krum", {"num_malicious_nodes": 1}, [0.0, 0.3, 0.5, 0.6, 100.0], 0.5),
        # f = 1, seven clients: Krum keeps the five closest, the three of them nearest to their median 3 are 2, 3, 4
        ("Bulyan", {"num_malicious_nodes": 1}, [1.0, 2.0, 3.0, 4.0, 5.0, 90.0, -90.0], 3.0),
    ],
)
def test_flower_strategies(strategy, options, sent, expected, sign):
    aggregator = FlowerAggregator(strategy, options)
    updates = [update(k, {"w": [sign * value], "n": np.array(k)}) for k, value in enumerate(sent)]
    state, _ = aggregator.aggregate(begin(aggregator, w=0.0, n=np.array(0)), updates)
    assert w(state) == pytest.approx(sign * expected)
    assert state.weights["n"] == len(sent) - 1
    assert state.weights["n"].dtype == np.int64


def test_penalty_gradient_is_that_of_the_squared_norm():
    # the rule's gradient equals autograd's through mu/2 ||w - w_t||^2
    from fedmap.local.rules.gradients import pull

    parameter = torch.nn.Parameter(torch.tensor([3.0, -1.0]))
    anchor = torch.tensor([1.0, 1.0])
    (0.25 * (parameter - anchor).square().sum()).backward()
    by_autograd = parameter.grad.clone()
    parameter.grad = torch.zeros(2)
    pull([parameter], [anchor], 0.5)
    assert torch.equal(parameter.grad, by_autograd)
    parameter.grad = None
    pull([parameter], [anchor], [torch.tensor([0.5, 2.0])])
    assert parameter.grad.tolist() == [1.0, -4.0]
