"""What every file of conf/strategy must do, through the configuration and real local training."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedmap.aggregators.base import expected_form, expected_names, with_num_clients
from fedmap.aggregators.judge import with_judge
from fedmap.checkpoint import state_from_bytes, state_to_bytes
from fedmap.config import CONF, compose_and_resolve, parse
from fedmap.guard import Defence, Ladder
from fedmap.local.judge import ModelJudge
from fedmap.local.rules import RULES, Memory, make_rule
from fedmap.local.training import TrainingOptions
from tests.toys import PLAIN_SGD, ToyJudge, net_clients, one_round, parabola, pooled_validation, run, same, start

STRATEGIES = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
NUM_CLIENTS = 5

# five clients whose one step of rate 1 leads from 0 to 1, so that every average is 1
ALL_AT_ONE = {
    "bulyan": 1.0,
    "fedavg": 1.0,
    "fedavgm": 0.1,  # the first momentum is the change itself, times the server's rate
    "fedbn": 1.0,
    "fedgma": 1.1,  # all five last gradients are -1: the mask is open, and 0.1 goes on top
    "fedmap": 1.0,
    "fedmedian": 1.0,
    "fedprox": 1.0,  # the spring has no force in the first step
    "fedtrimmedavg": 1.0,
    "gma": 1.0,
    "individual": 0.0,  # the server's model is nobody's
    "krum": 1.0,
    "modality_aware": 1.0,
    "scaffold": 1.0,
    # rate * m / (sqrt(v) + tau) with m = 0.1, v = 0.01, tau = 0.001; Flower corrects FedAdam's rate for its bias only
    "fedadagrad": 0.01 / 1.001,
    "fedadam": 0.01 * (1 - 0.99**2) ** 0.5 / (1 - 0.9**2) * 0.1 / 0.101,
    "fedyogi": 0.01 * 0.1 / 0.101,
}


@cache
def configured(name: str):
    return parse(compose_and_resolve("config", [f"strategy={name}"]))


def built(name: str, num_clients: int = NUM_CLIENTS):
    from fedmap.build import build_aggregator

    return with_judge(with_num_clients(build_aggregator(configured(name)), num_clients), ToyJudge())


def options_of(name: str) -> TrainingOptions:
    """The training options that the strategy's configuration brings, at the size of a toy."""
    config = configured(name)
    training = config.training
    return TrainingOptions(
        learning_rate=config.learning_rate if training.optimizer == "sgd" else 0.02,
        num_updates=8,
        batch_size=8,
        optimizer=training.optimizer,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
    )


@pytest.fixture(params=STRATEGIES)
def name(request) -> str:
    return request.param


def test_composes_with_every_setting_in_the_file(name):
    content = yaml.safe_load((CONF / "strategy" / f"{name}.yaml").read_text())
    aggregator = built(name)
    fields = {field.name for field in dataclasses.fields(aggregator)}
    assert set(content) - {"_target_"} == fields
    assert f"{type(aggregator).__module__}.{type(aggregator).__qualname__}" == content["_target_"]
    assert (CONF / "strategy" / f"{name}.yaml").read_text().startswith("# @package server.strategy\n")


def test_has_a_page_and_a_docstring_with_its_source(name):
    page = Path(CONF).parent / "docs" / "algorithms" / f"{name}.md"
    assert page.is_file(), f"write {page}"
    assert f"strategy={name}" in page.read_text()
    module = inspect.getmodule(type(built(name)))
    assert len(module.__doc__.splitlines()) >= 3


def test_broadcast_names_a_rule_and_carries_the_whole_model(name):
    clients = net_clients(options_of(name), NUM_CLIENTS)
    aggregator = built(name)
    state = start(aggregator, clients)
    broadcast = aggregator.broadcast(state)
    assert broadcast.round_index == 1
    assert same(broadcast.weights, state.weights)
    assert broadcast.rule in RULES
    make_rule(broadcast.rule)
    assert all(isinstance(value, (bool, int, float, str)) for value in broadcast.scalars.values())


def test_first_round_value(name):
    one_step = replace(PLAIN_SGD, learning_rate=1.0, num_updates=1)
    clients = [parabola(k, 1.0, options=one_step) for k in range(NUM_CLIENTS)]
    aggregator = built(name)
    state = start(aggregator, clients)
    sent, _ = one_round(aggregator, state, clients)
    state, _ = aggregator.aggregate(state, sent)
    assert float(state.weights["w"][0]) == pytest.approx(ALL_AT_ONE[name], rel=1e-5)


def test_a_round_without_change_changes_nothing(name):
    at_optimum = replace(PLAIN_SGD, num_updates=1)
    clients = [parabola(k, 0.0, options=at_optimum) for k in range(NUM_CLIENTS)]
    aggregator = built(name)
    state, _ = run(aggregator, clients, 2)
    assert float(state.weights["w"][0]) == 0.0


def test_aggregate_keeps_the_form_of_the_state_and_reports(name):
    clients = net_clients(options_of(name), NUM_CLIENTS)
    aggregator = built(name)
    state = start(aggregator, clients)
    sent, _ = one_round(aggregator, state, clients)
    broadcast = aggregator.broadcast(state)
    ladder = Ladder(Defence(), broadcast, expected_form(aggregator, state, broadcast), state.layout.buffers)
    for update in sent:
        ladder.admit(update)
    after, report = aggregator.aggregate(state, sent)
    assert type(after) is type(state)
    assert (after.round_index, report.round_index, after.layout) == (1, 1, state.layout)
    assert list(after.weights) == list(state.weights)
    for key, array in state.weights.items():
        assert (after.weights[key].shape, after.weights[key].dtype) == (array.shape, array.dtype)
        assert np.isfinite(after.weights[key]).all()
    counter = "body.1.num_batches_tracked"
    expected = max(update.weights[counter] for update in sent) if counter in expected_names(aggregator, state) else 0
    assert after.weights[counter] == expected
    assert (after.weights["body.1.running_var"] > 0).all()
    if report.client_weights:
        assert set(report.client_weights) == set(range(NUM_CLIENTS))
        assert sum(report.client_weights.values()) == pytest.approx(1.0)
        assert min(report.client_weights.values()) >= 0
    assert all(np.isfinite(value) for value in report.diagnostics.values())


def test_reply_order_changes_no_bit_and_nothing_is_mutated(name):
    clients = net_clients(options_of(name), NUM_CLIENTS)
    aggregator = built(name)
    state = start(aggregator, clients)
    sent, _ = one_round(aggregator, state, clients)
    frozen = pickle.dumps((state, sent))
    expected = state_to_bytes(aggregator.aggregate(state, sent)[0])
    for seed in range(3):
        shuffled = list(sent)
        random.Random(seed).shuffle(shuffled)
        assert state_to_bytes(aggregator.aggregate(state, shuffled)[0]) == expected
    assert pickle.dumps((state, sent)) == frozen


def test_a_saved_run_goes_on_bit_for_bit(name):
    aggregator = built(name)
    clients = net_clients(options_of(name), NUM_CLIENTS)
    straight, _ = run(aggregator, clients, 3)
    clients = net_clients(options_of(name), NUM_CLIENTS)
    state, memories = run(aggregator, clients, 2)
    state = state_from_bytes(state_to_bytes(state), type(start(aggregator, clients)))
    memories = {k: state_from_bytes(state_to_bytes(memory), Memory) for k, memory in memories.items()}
    sent, _ = one_round(built(name), state, net_clients(options_of(name), NUM_CLIENTS), memories)
    assert state_to_bytes(built(name).aggregate(state, sent)[0]) == state_to_bytes(straight)


def test_learns_while_clients_miss_rounds(name):
    clients = net_clients(options_of(name), NUM_CLIENTS)
    aggregator = with_judge(built(name), ModelJudge(clients[0].model, pooled_validation(clients), clients[0].options))
    state = start(aggregator, clients)
    initial = copy.deepcopy(aggregator.broadcast(state))
    before = np.mean([client.evaluate_round(initial, Memory()).loss for client in clients])
    state, memories = run(aggregator, clients, 12, seed=1, clients_per_round=4)
    broadcast = aggregator.broadcast(state)
    after = np.mean([client.evaluate_round(broadcast, memories.get(client.client_id, Memory())).loss for client in clients])
    assert after < 0.92 * before
