"""Privacy: clipping holds, noise has its scale and its secret, epsilon agrees with closed forms, and nothing else is sent."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

from fedmap.aggregators.base import expected_form, with_num_clients
from fedmap.aggregators.judge import with_judge
from fedmap.build import build_aggregator
from fedmap.config import CONF, compose_and_resolve, parse
from fedmap.errors import ConfigError, StorageError
from fedmap.local.client import LocalClient
from fedmap.local.private import check_model_for, check_rule_for
from fedmap.local.rules import Memory, make_rule
from fedmap.local.tensors import get_weights, layout_of
from fedmap.local.training import TrainingOptions
from fedmap.privacy import Privacy
from fedmap.privacy.accounting import Training, epsilon, largest_epsilon
from fedmap.privacy.mechanism import PrivateSteps, clipped, private_weights, steps_per_round
from fedmap.privacy.secret import derived, load_secret, noise_generator
from fedmap.records import Broadcast, ClientSignals, ClientUpdate
from tests.toys import Net, Rows, ToyJudge, same

CLIENT = Privacy("client", max_norm=0.5, noise_multiplier=2.0)
RECORD = Privacy("record", max_norm=0.5, noise_multiplier=2.0)
QUIET = {"noise_multiplier": 1e-9}
STRATEGIES = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
REFUSED = {
    ("fedmap", "record"): "over all of their training rows",
    ("fedmap", "client"): "also send log-likelihood",
    ("fedgma", "client"): "also send last-gradient",
    ("scaffold", "client"): "also send control-delta",
}


class Plain(nn.Module):
    """A small network without statistics of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.layers(batch["x"])


def split(rows: int = 40, seed: int = 0) -> Rows:
    x = np.random.default_rng(seed).normal(size=(rows, 4))
    return Rows(x=x, labels=np.stack([x[:, 0] > 0, x[:, 1] + x[:, 2] > 0], axis=1))


def client(privacy: Privacy, client_id: int = 0, secret: bytes = b"secret", **more: object) -> LocalClient:
    options = TrainingOptions(learning_rate=0.1, optimizer="sgd", batch_size=8, weight_decay=0.0, clip_norm=0.0, num_updates=5)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Plain()
    data = split(seed=client_id)
    splits = {"train": data, "val": data, "test": data}
    return LocalClient(client_id, model, splits, options, seed=3, modality_names=("x",), privacy=privacy, secret=secret, **more)


def broadcast_of(member: LocalClient, round_index: int = 1) -> Broadcast:
    return Broadcast(round_index, get_weights(member.model))


def change(update: ClientUpdate, broadcast: Broadcast) -> np.ndarray:
    return np.concatenate([(update.weights[n].astype(np.float64) - broadcast.weights[n]).ravel() for n in broadcast.weights])


@pytest.mark.parametrize(("length", "expected"), [(100.0, 0.5), (0.5, 0.5), (0.1, 0.1), (0.0, 0.0)])
def test_a_change_is_clipped_as_a_whole_and_a_small_one_is_left(length: float, expected: float) -> None:
    before = {"a": np.full((2, 3), 7.0), "b": np.zeros(2)}
    weights = {"a": before["a"] + length * 0.6 / math.sqrt(6), "b": before["b"] + length * 0.8 / math.sqrt(2)}
    sent = private_weights(weights, before, replace(CLIENT, **QUIET), np.random.default_rng(0))
    moved = {name: sent[name] - before[name] for name in sent}
    assert math.sqrt(sum(float((m**2).sum()) for m in moved.values())) == pytest.approx(expected, abs=1e-7)
    assert length == 0 or moved["b"][0] / moved["a"][0, 0] == pytest.approx(0.8 / math.sqrt(2) / (0.6 / math.sqrt(6)), rel=1e-6)


def test_the_noise_of_a_change_has_the_stated_deviation_and_covers_every_number() -> None:
    before = {"w": np.zeros(200_000)}
    sent = private_weights(before, before, CLIENT, np.random.default_rng(5))["w"]
    assert sent.std() == pytest.approx(1.0, rel=0.01)  # z C; five standard errors of the estimate are 0.8 %
    assert abs(sent.mean()) < 5 / math.sqrt(sent.size)
    assert (sent != 0).all()


def test_each_rows_gradient_is_clipped_before_it_is_added() -> None:
    weight = nn.Parameter(torch.zeros(3))
    directions = torch.tensor([[1000.0, 0, 0], [0, 0.3, 0], [0, 0, -5.0]])
    steps = PrivateSteps(replace(RECORD, **QUIET), np.random.default_rng(0))
    loss = steps.gradient([weight], np.array([0, 1, 2]), 2.0, lambda rows: (directions[rows] * weight).sum() + 1.0)
    assert weight.grad is not None
    assert torch.allclose(weight.grad, torch.tensor([0.25, 0.15, -0.25]), atol=1e-6)  # (0.5, 0.3, -0.5) / 2
    assert loss == pytest.approx(1.0)


def test_clipping_looks_at_all_parameters_together() -> None:
    found = clipped([torch.full((4,), 3.0), torch.full((4,), 4.0)], 1.0)
    assert math.sqrt(sum(float((g**2).sum()) for g in found)) == pytest.approx(1.0, rel=1e-6)
    assert float(found[1][0] / found[0][0]) == pytest.approx(4 / 3, rel=1e-6)


@pytest.mark.parametrize("rows", [np.array([], np.int64), np.array([0])])
def test_the_noise_of_a_step_has_the_stated_deviation_however_many_rows_it_has(rows: np.ndarray) -> None:
    weight = nn.Parameter(torch.zeros(200_000))
    PrivateSteps(RECORD, np.random.default_rng(5)).gradient([weight], rows, 4.0, lambda _: weight.sum() * 1e-12)
    assert weight.grad is not None
    assert float(weight.grad.std()) == pytest.approx(2.0 * 0.5 / 4, rel=0.01)


def test_rows_are_drawn_each_by_itself() -> None:
    batches = list(PrivateSteps(RECORD, np.random.default_rng(1)).batches(100, 20, 2000))
    sizes = np.array([len(rows) for rows in batches])
    assert sizes.mean() == pytest.approx(20, abs=0.5)
    assert sizes.std() == pytest.approx(4, abs=0.4)  # sqrt(n q (1 - q)): the number of rows is not fixed
    assert np.bincount(np.concatenate(batches), minlength=100).min() > 300
    assert [len(rows) for rows in PrivateSteps(RECORD, np.random.default_rng(1)).batches(5, 20, 3)] == [5, 5, 5]
    assert steps_per_round(41, 20, 2, None) == 6
    assert steps_per_round(41, 20, 2, 7) == 7


def exact_delta(noise_multiplier: float, rounds: int, eps: float) -> float:
    """Of rounds of the Gaussian mechanism (Balle and Wang, 2018, arXiv 1805.06530, theorem 8)."""
    sigma, cdf = noise_multiplier / math.sqrt(rounds), NormalDist().cdf
    return cdf(1 / (2 * sigma) - eps * sigma) - math.exp(eps) * cdf(-1 / (2 * sigma) - eps * sigma)


@pytest.mark.parametrize(("noise_multiplier", "rounds"), [(1.0, 1), (4.0, 10), (20.0, 100)])
def test_epsilon_of_clients_lies_between_the_exact_one_and_the_plain_renyi_bound(noise_multiplier: float, rounds: int) -> None:
    privacy = Privacy("client", noise_multiplier=noise_multiplier, delta=1e-5)
    found = epsilon(privacy, Training(8, 1, None), rounds, 10)
    half = noise_multiplier / 2  # two clipped changes lie up to twice the norm apart
    plain = min(a * rounds / (2 * half**2) + math.log(1e5) / (a - 1) for a in np.arange(1.1, 200, 0.1))
    assert exact_delta(half, rounds, found) < 1e-5
    assert found < plain
    assert exact_delta(half, rounds, 0.5 * found) > 1e-5  # it is no wild overestimate


@pytest.mark.parametrize(("noise_multiplier", "epochs", "published"), [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)])
def test_epsilon_of_rows_is_that_of_the_known_runs_on_mnist(noise_multiplier: float, epochs: int, published: float) -> None:
    # the table of TensorFlow Privacy's MNIST tutorial (60,000 rows, batches of 256, delta 1e-5), by an older conversion from Renyi's
    privacy = Privacy("record", noise_multiplier=noise_multiplier, delta=1e-5)
    found = epsilon(privacy, Training(256, 1, epochs * 60_000 // 256), 1, 60_000)
    assert 0.8 * published < found < 1.01 * published


def test_epsilon_grows_with_rounds_and_shrinks_with_noise_and_the_worst_client_counts() -> None:
    training = Training(8, 1, None)
    assert epsilon(RECORD, training, 0, 40) == 0
    assert (
        epsilon(RECORD, training, 1, 40)
        < epsilon(RECORD, training, 2, 40)
        < epsilon(replace(RECORD, noise_multiplier=1.0), training, 2, 40)
    )
    worst = largest_epsilon(RECORD, training, {0: 2, 1: 2, 2: 1, 7: 9}, {0: 400, 1: 16, 2: 400})
    assert worst == epsilon(RECORD, training, 2, 16)  # fewer rows are drawn more often; client 7 never joined


@pytest.mark.parametrize("privacy", [CLIENT, RECORD], ids=["client", "record"])
def test_a_private_client_sends_its_model_and_its_size_alone(privacy: Privacy) -> None:
    def boast(update: ClientUpdate) -> ClientUpdate:
        return replace(
            update, scalars={"age": 41.0}, extras={"rows": {"x": np.ones(3)}}, signals=replace(update.signals, custom={"a": 1.0})
        )

    member = client(privacy, after_round=boast)
    broadcast = broadcast_of(member)
    update, _ = member.train_round(broadcast, Memory())
    assert update.signals == ClientSignals()
    assert (dict(update.extras), dict(update.scalars), dict(update.counts), dict(update.seconds)) == ({}, {}, {}, {})
    assert set(update.weights) == set(broadcast.weights)
    assert (update.num_examples, update.num_steps) == (40, 5)
    with pytest.raises(ConfigError, match=f"privacy={privacy.name}: scores on this client's own rows are not told"):
        member.evaluate_round(broadcast, Memory())


def test_a_private_client_still_learns_when_there_is_little_noise() -> None:
    for privacy in (replace(CLIENT, max_norm=10.0, **QUIET), replace(RECORD, max_norm=10.0, **QUIET)):
        member = client(privacy)
        broadcast = broadcast_of(member)
        update, _ = member.train_round(broadcast, Memory())
        plain, _ = client(Privacy()).train_round(broadcast, Memory())
        together = change(update, broadcast) @ change(plain, broadcast)
        assert together / np.linalg.norm(change(update, broadcast)) / np.linalg.norm(change(plain, broadcast)) > 0.8


@pytest.mark.parametrize("privacy", [CLIENT, RECORD], ids=["client", "record"])
def test_noise_repeats_for_the_same_round_alone_and_not_without_the_secret(privacy: Privacy) -> None:
    first = client(privacy)
    broadcast = broadcast_of(first)

    def sent(member: LocalClient, asked: Broadcast) -> dict[str, np.ndarray]:
        return dict(member.train_round(asked, Memory())[0].weights)

    once = sent(first, broadcast)
    assert same(once, sent(client(privacy), broadcast))
    others = [
        sent(client(privacy, secret=b"another"), broadcast),
        sent(client(privacy), replace(broadcast, round_index=2)),
        sent(client(privacy), replace(broadcast, scalars={"mu": 0.0})),
        sent(client(replace(privacy, max_norm=0.4999999)), broadcast),
        sent(replace(first, options=replace(first.options, weight_decay=1e-9)), broadcast),
    ]
    for other in others:  # not nearly the same either: the noise itself is another
        assert np.abs(change(ClientUpdate(0, 1, other, 1, 1), broadcast) - change(ClientUpdate(0, 1, once, 1, 1), broadcast)).max() > 0.01


def test_a_secret_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "privacy.secret"
    secret = load_secret(path)
    assert len(secret) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_secret(path) == secret
    assert load_secret(tmp_path / "other") != secret
    assert len({derived(secret, "a", 1), derived(secret, "a", 2), derived(secret, "a1"), derived(b"", "a", 1)}) == 4
    assert noise_generator(secret).random() == noise_generator(secret).random()
    path.chmod(0o644)
    with pytest.raises(StorageError, match="can be read by others"):
        load_secret(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(StorageError, match="holds 5 bytes, expected a secret of 32"):
        load_secret(path)


@pytest.mark.parametrize("name", ["record", "client"])
def test_a_model_with_statistics_of_its_rows_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"privacy={name}: the model sends statistics .*use norm=layer and vision_norm=group"):
        check_model_for(Privacy(name), Net())
    check_model_for(Privacy(name), Plain())
    check_model_for(Privacy(), Net())


@cache
def built(strategy: str):
    config = parse(compose_and_resolve("config", [f"strategy={strategy}"]))
    return with_judge(with_num_clients(build_aggregator(config), 5), ToyJudge()), config


@pytest.mark.parametrize("privacy", [CLIENT, RECORD], ids=["client", "record"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_a_private_round_or_refuses(strategy: str, privacy: Privacy) -> None:
    aggregator, config = built(strategy)
    members = [client(privacy, client_id) for client_id in range(5)]
    if config.training.optimizer == "sgd":
        members = [replace(member, options=replace(member.options, learning_rate=config.learning_rate)) for member in members]
    state = aggregator.init(get_weights(members[0].model), layout_of(members[0].model))
    broadcast = aggregator.broadcast(state)
    form = expected_form(aggregator, state, broadcast)

    def refused() -> None:
        check_rule_for(privacy, make_rule(broadcast.rule), broadcast, form.extras, form.scalars)

    if (strategy, privacy.name) in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[strategy, privacy.name]):
            refused()
        with pytest.raises(ConfigError, match="privacy"):  # and a client refuses for itself, whatever its server thinks
            members[0].train_round(broadcast, Memory())
        return
    refused()
    updates = [member.train_round(broadcast, Memory())[0] for member in members]
    new, _ = aggregator.aggregate(state, updates)
    assert new.round_index == 1
    assert all(np.isfinite(array).all() for array in new.weights.values())
    assert all(update.signals == ClientSignals() for update in updates)
    if strategy != "individual":
        assert not same(new.weights, state.weights)


def test_the_first_option_of_scaffold_is_refused_for_rows() -> None:
    broadcast = Broadcast(1, {}, rule="control-variate", scalars={"option": "I"})
    with pytest.raises(ConfigError, match=r"scaffold with server.strategy.option=II"):
        check_rule_for(RECORD, make_rule("control-variate"), broadcast, ["control-delta"], [])
    check_rule_for(RECORD, make_rule("control-variate"), replace(broadcast, scalars={"option": "II"}), ["control-delta"], [])


def test_mistaken_settings_are_all_named() -> None:
    wrong = ["privacy=record", "privacy.max_norm=0", "privacy.noise_multiplier=-1", "privacy.delta=1", "privacy.name=recrod"]
    with pytest.raises(ConfigError) as caught:
        parse(compose_and_resolve("config", wrong))
    for key in ("max_norm", "noise_multiplier", "delta", "name"):
        assert f"privacy.{key}=" in str(caught.value)
    assert "did you mean record?" in str(caught.value)
    assert parse(compose_and_resolve("config")).privacy == Privacy()
