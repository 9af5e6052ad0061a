"""Misuse is refused with a sentence that names the setting and says what to do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedmap.aggregators.base import expected_names, with_num_clients
from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.fedgma import FedGMA
from fedmap.aggregators.fedmap import FedMAP
from fedmap.aggregators.fedprox import FedProx
from fedmap.aggregators.gma import GMA
from fedmap.aggregators.scaffold import Scaffold
from fedmap.errors import ConfigError, UpdateError
from fedmap.flower.foreign import FlowerAggregator
from fedmap.local.rules import Memory
from tests.toys import PLAIN_SGD, one_round, parabola, start, update

BAD = [
    (FedProx, {"mu": -0.1}, "mu=-0.1: expected a number of at least 0"),
    (FedProx, {"mu": "strong"}, "mu='strong'"),
    (FedProx, {"mu": float("nan")}, "mu=nan"),
    (GMA, {"tau": 1.1}, "tau=1.1: expected a number of at least 0 and of at most 1"),
    (GMA, {"tau": -0.1}, "tau=-0.1"),
    (GMA, {"server_learning_rate": 0}, "greater than 0"),
    (FedGMA, {"p": 80}, "p=80: .*at most 1"),
    (FedGMA, {"agreement": "majority"}, "expected one of sum, fraction"),
    (FedMAP, {"sigma": 0}, "sigma=0: expected a number greater than 0.*strategy=individual"),
    (FedMAP, {"sigma": -1.0}, "sigma=-1"),
    (FedMAP, {"temperature": 0}, "temperature=0"),
    (FedMAP, {"likelihood": "median"}, "mean, sum"),
    (FedMAP, {"layer_sigma": {"head": 0.5}}, "covariance=layer"),
    (FedMAP, {"covariance": "layer", "layer_sigma": {"head": -1}}, r"layer_sigma\['head'\]=-1"),
    (FedMAP, {"learn_sigma": True, "sigma_decay": 0.9}, "keep one of them"),
    (FedMAP, {"prior_covers": "tail"}, "trainable, all, head"),
    (Scaffold, {"option": "III"}, "expected one of I, II"),
    (Scaffold, {"server_learning_rate": 0}, "greater than 0"),
    (Scaffold, {"num_clients": 0}, "all clients of the federation"),
    (FlowerAggregator, {"strategy": "FedAdam", "options": {"eta": -1}}, "options.eta=-1"),
    (FlowerAggregator, {"strategy": "FedAdam", "options": {"beta_1": 1}}, "options.beta_1=1"),
    (FlowerAggregator, {"strategy": "FedAdam", "options": {"beta1": 0.9}}, "beta1"),
    (FlowerAggregator, {"strategy": "FedTrimmedAvg", "options": {"beta": 0.5}}, r"\[0, 0.5\)"),
    (FlowerAggregator, {"strategy": "Krum", "options": {"num_malicious_nodes": -1}}, "num_malicious_nodes=-1"),
    (FlowerAggregator, {"strategy": "FedNope"}, "FedNope"),
    (FlowerAggregator, {"strategy": "collections.OrderedDict"}, "not a flwr.serverapp.strategy.Strategy"),
]


@pytest.mark.parametrize(("kind", "settings", "sentence"), BAD, ids=[f"{k.__name__}-{'-'.join(map(str, s.values()))}" for k, s, _ in BAD])
def test_hyper_parameters_out_of_range(kind, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        kind(**settings)


@pytest.mark.parametrize(
    ("option", "changes", "advice"),
    [
        ("II", {"optimizer": "adam"}, "training.optimizer=adam .set sgd"),
        ("II", {"optimizer": "adamw"}, "set sgd"),
        ("I", {"momentum": 0.9}, "training.momentum=0.9 .set 0"),
        ("I", {"num_updates": None}, "training.num_updates .set the number"),
        ("II", {"clip_norm": 1.0}, "training.clip_norm=1 .set 0, or server.strategy.option=I"),
    ],
)
def test_scaffold_refuses_training_that_biases_its_controls(option, changes, advice):
    client = parabola(0, 1.0, options=replace(PLAIN_SGD, **changes))
    aggregator = Scaffold(option=option, num_clients=1)
    with pytest.raises(ConfigError, match=advice):
        one_round(aggregator, start(aggregator, [client]), [client])


def test_scaffold_option_one_may_clip():
    client = parabola(0, 1.0, options=replace(PLAIN_SGD, clip_norm=1.0))
    aggregator = Scaffold(option="I", num_clients=1)
    assert one_round(aggregator, start(aggregator, [client]), [client])[0]


def test_scaffold_asks_for_the_number_of_all_clients():
    client = parabola(0, 1.0)
    asked = Scaffold()
    sent, _ = one_round(asked, start(asked, [client]), [client])
    with pytest.raises(ConfigError, match="set num_clients"):
        asked.aggregate(start(asked, [client]), sent)
    told = with_num_clients(asked, 5)
    assert told.num_clients == 5
    assert with_num_clients(told, 9).num_clients == 5
    assert with_num_clients(FedAvg(), 5) == FedAvg()
    few = Scaffold(num_clients=1)
    with pytest.raises(ConfigError, match="2 clients answered"):
        few.aggregate(start(few, [client]), [sent[0], replace(sent[0], client_id=1)])


def test_scaffold_refuses_a_memory_of_another_model():
    client = parabola(0, 1.0)
    aggregator = Scaffold(num_clients=1)
    memory = Memory(arrays={"control": {"other": np.zeros(1, np.float32)}})
    with pytest.raises(ConfigError, match="remembered control does not fit"):
        one_round(aggregator, start(aggregator, [client]), [client], {0: memory})


def test_scaffold_refuses_requires_grad_that_changes_within_the_round():
    client = parabola(0, 1.0, options=replace(PLAIN_SGD, num_updates=1))
    aggregator = Scaffold(num_clients=1)
    with pytest.raises(ConfigError, match="requires_grad changed"):
        client.train_round(aggregator.broadcast(start(aggregator, [client])), Memory(), lambda *_: client.model.w.requires_grad_(False))


@pytest.mark.parametrize(("aggregator", "group"), [(FedGMA(), "last-gradient"), (Scaffold(num_clients=1), "control-delta")])
def test_an_update_without_its_extras(aggregator, group):
    state = aggregator.init({"w": np.zeros(1, np.float32)})
    with pytest.raises(UpdateError, match=f"client 0 did not send '{group}'.*after_round"):
        aggregator.aggregate(state, [update(0, {"w": [1.0]})])


def test_fedmap_needs_both_terms_of_omega():
    state = FedMAP().init({"w": np.zeros(1, np.float32)})
    with pytest.raises(UpdateError, match="client 0 did not send finite prior-energy"):
        FedMAP().aggregate(state, [update(0, {"w": [1.0]}, scalars={"log-likelihood": -1.0})])


def test_fedmap_prior_must_cover_something():
    with pytest.raises(ConfigError, match=r"set prior_covers"):
        FedMAP(prior_covers=["tail"]).init({"w": np.zeros(1, np.float32)})
    with pytest.raises(ConfigError, match=r"layer_sigma names \['tail'\]"):
        FedMAP(covariance="layer", layer_sigma={"tail": 1.0}).init({"w": np.zeros(1, np.float32)})


def test_fedmap_refuses_steps_that_diverge_on_the_prior_alone():
    client = parabola(0, 1.0)
    aggregator = FedMAP(sigma=0.2)
    with pytest.raises(ConfigError, match=r"lower the learning rate below 0.08"):
        one_round(aggregator, start(aggregator, [client]), [client])


@pytest.mark.parametrize(("strategy", "needed"), [("Krum", 5), ("MultiKrum", 5), ("Bulyan", 7)])
def test_too_few_clients_for_the_malicious_ones(strategy, needed):
    aggregator = FlowerAggregator(strategy, {"num_malicious_nodes": 1})
    state = aggregator.init({"w": np.zeros(1, np.float32)})
    updates = [update(k, {"w": [float(k)]}) for k in range(needed)]
    assert aggregator.aggregate(state, updates)[0].round_index == 1
    with pytest.raises(UpdateError, match=f"needs at least {needed} clients, got {needed - 1}; raise clients_per_round"):
        aggregator.aggregate(state, updates[1:])


def test_a_client_that_is_not_finite_is_left_out_of_robust_means():
    aggregator = FlowerAggregator("FedMedian")
    state = aggregator.init({"w": np.zeros(1, np.float32)})
    state, report = aggregator.aggregate(state, [update(0, {"w": [1.0]}), update(1, {"w": [np.nan]}), update(2, {"w": [3.0]})])
    assert float(state.weights["w"][0]) == 2.0
    assert report.notes == ("client 1 was left out: its model holds NaN or infinite numbers",)
    with pytest.raises(UpdateError, match="no client sent a finite model"):
        aggregator.aggregate(state, [update(1, {"w": [np.inf]})])


@pytest.mark.parametrize("aggregator", [FedAvg(), GMA(), Scaffold(num_clients=2), FedMAP(), FlowerAggregator("FedMedian")])
def test_a_round_without_updates_or_with_a_client_twice_or_with_arrays_missing(aggregator):
    state = aggregator.init({"w": np.zeros(1, np.float32)})
    assert expected_names(aggregator, state) == {"w"}
    with pytest.raises(UpdateError, match="no updates"):
        aggregator.aggregate(state, [])
    more = {"scalars": {"log-likelihood": 0.0, "prior-energy": 0.0}, "extras": {"control-delta": {"w": np.zeros(1, np.float32)}}}
    with pytest.raises(UpdateError, match="client 1 appears twice"):
        aggregator.aggregate(state, [update(1, {"w": [1.0]}, **more), update(1, {"w": [2.0]}, **more)])
    with pytest.raises(UpdateError, match=r"client 0 did not send 1 of the expected arrays, first \['w'\]"):
        aggregator.aggregate(state, [update(0, {}, **more)])
