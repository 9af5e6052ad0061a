"""One federation of the attacks benchmark: hostile clients, what stands against them, and what the models score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.modality_ground import Ground, Table
from benchmarks.modality_runs import SCORING_BATCH
from fedmap.aggregators.base import Aggregator, ServerState, expected_form
from fedmap.aggregators.judge import with_judge
from fedmap.build import build_aggregator
from fedmap.errors import UpdateError
from fedmap.guard import Defence, GuardState, Ladder, climb
from fedmap.guard.measuring import check_model
from fedmap.local.client import LocalClient
from fedmap.local.judge import ModelJudge
from fedmap.local.tensors import get_weights, layout_of, set_weights
from fedmap.local.training import Evaluation, evaluate
from fedmap.metrics import MultilabelCounts
from fedmap.randomness import generator
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.scoring import counts_at, tuned_thresholds
from fedmap.simulation import Round, simulate
from fedmap.weights import Array, Layout, Weights, is_float

HOSTILE = (0, 1)  # of ten clients
BOAST = 100  # times the rows that a boaster has


@dataclass(frozen=True)
class Scene:
    """What a hostile client sees of a round when it changes its update.

    Attributes:
        received: the broadcast's weights.
        updates: everybody's updates of this round, before anything was changed.
        first: the hostile client's own update of the first round.
        rng: its random numbers.
    """

    received: Weights
    updates: Mapping[int, ClientUpdate]
    first: ClientUpdate
    rng: np.random.Generator


Change = Callable[[ClientUpdate, Scene], ClientUpdate]


@dataclass(frozen=True)
class Attack:
    """What hostile clients do.

    Attributes:
        title: for tables.
        change: what they make of their update.
        shuffled: whether they train on rows whose labels have been dealt out anew.
        joined: by what a hostile client multiplies its rows when it joins.
    """

    title: str
    change: Change = lambda update, scene: update
    shuffled: bool = False
    joined: int = 1


def _floats(update: ClientUpdate, change: Callable[[str, Array], Array]) -> ClientUpdate:
    weights = {n: np.asarray(change(n, a), dtype=a.dtype) if is_float(a) else a for n, a in update.weights.items()}
    return replace(update, weights=weights)


def _one_number(value: float) -> Change:
    def change(update: ClientUpdate, scene: Scene) -> ClientUpdate:
        name = next(name for name, array in update.weights.items() if is_float(array))
        poisoned = update.weights[name].copy()
        poisoned.reshape(-1)[0] = value
        return replace(update, weights={**update.weights, name: poisoned})

    return change


def _all(value: float) -> Change:
    return lambda update, scene: _floats(update, lambda _, array: np.full_like(array, value))


def _times(factor: float) -> Change:
    """The change from what was received, times a factor."""
    return lambda update, scene: _floats(update, lambda name, array: scene.received[name] + factor * (array - scene.received[name]))


def _noise(update: ClientUpdate, scene: Scene) -> ClientUpdate:
    """Random numbers of the size of the honest change."""

    def noise(name: str, array: Array) -> Array:
        size = float(np.linalg.norm(array - scene.received[name])) / math.sqrt(max(array.size, 1))
        return scene.received[name] + scene.rng.normal(0.0, size, array.shape)

    return _floats(update, noise)


def _stale(update: ClientUpdate, scene: Scene) -> ClientUpdate:
    return replace(update, weights=scene.first.weights)


def _copied(update: ClientUpdate, scene: Scene) -> ClientUpdate:
    """The model of the honest client with the highest number."""
    return replace(update, weights=scene.updates[max(scene.updates)].weights)


def _truncated(update: ClientUpdate, scene: Scene) -> ClientUpdate:
    names = list(update.weights)
    return replace(update, weights={name: update.weights[name] for name in names[: len(names) // 2]})


def _misshapen(update: ClientUpdate, scene: Scene) -> ClientUpdate:
    return replace(update, weights={name: array.reshape(-1)[:1] for name, array in update.weights.items()})


def _boast(update: ClientUpdate, scene: Scene) -> ClientUpdate:
    return replace(update, num_examples=BOAST * update.num_examples)


def _lie(update: ClientUpdate, scene: Scene) -> ClientUpdate:
    """The best value of every signal, with counts that agree."""
    supports = update.counts["val-after"].tp + update.counts["val-after"].fn
    nothing = np.zeros_like(supports)
    perfect = replace(update.counts["val-after"], tp=supports, fp=nothing, fn=nothing)
    worst = replace(update.counts["val-before"], tp=nothing, fp=nothing, fn=supports)
    signals = replace(
        update.signals,
        f1_before=worst.macro_f1,
        f1_after=perfect.macro_f1,
        validation_loss=0.0,
        train_loss=0.0,
        gradient_norm=0.0,
        label_imbalance=0.0,
        diversity=1.0,
        share_complete=1.0,
        modality_shares=dict.fromkeys(update.signals.modality_shares, 1.0),
    )
    return replace(update, signals=signals, counts={"val-before": worst, "val-after": perfect})


HONEST = Attack("nobody is hostile")
ATTACKS: dict[str, Attack] = {
    "none": HONEST,
    "nan": Attack("one NaN", _one_number(math.nan)),
    "inf": Attack("one infinite number", _one_number(math.inf)),
    "1e30": Attack("every number 1e30", _all(1e30)),
    "truncated": Attack("half of the arrays are missing", _truncated),
    "misshapen": Attack("arrays that would be broadcast", _misshapen),
    "times10": Attack("change x 10", _times(10.0)),
    "times100": Attack("change x 100", _times(100.0)),
    "flipped": Attack("change x -1", _times(-1.0)),
    "flipped10": Attack("change x -10", _times(-10.0)),
    "noise": Attack("random numbers of the change's size", _noise),
    "stale": Attack("the first round's update, for ever", _stale),
    "copied": Attack("another client's update", _copied),
    "shuffled": Attack("trained on shuffled labels", shuffled=True),
    "boasting": Attack(f"shuffled labels, and {BOAST} times its rows", _boast, shuffled=True),
    "boasting-early": Attack(f"shuffled labels, and {BOAST} times its rows from joining on", _boast, shuffled=True, joined=BOAST),
    "lying": Attack("shuffled labels, and the best of every signal", _lie, shuffled=True),
}


@dataclass
class Besieged:
    """An aggregator whose clients are attacked, behind a ladder or behind nothing.

    Attributes:
        inner: the aggregator.
        attack: what the hostile clients do.
        rows: by client, what it said when it joined.
        seed: of the hostile clients' random numbers.
        defence: the ladder; None leaves everything to the aggregator.
        codes: how often which reason was given.
        failed: rounds without a new model.
    """

    inner: Aggregator[ServerState]
    attack: Attack
    rows: Mapping[int, int]
    seed: int
    defence: Defence | None
    codes: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    _guard: GuardState = field(default_factory=GuardState)
    _first: dict[int, ClientUpdate] = field(default_factory=dict)

    def init(self, weights: Weights, layout: Layout | None = None) -> ServerState:
        """See `Aggregator`."""
        return self.inner.init(weights, layout)

    def broadcast(self, state: ServerState) -> Broadcast:
        """See `Aggregator`."""
        return self.inner.broadcast(state)

    def aggregate(self, state: ServerState, updates: Sequence[ClientUpdate]) -> tuple[ServerState, RoundReport]:
        """See `Aggregator`. What a real server would not survive costs the round here, too: the model is kept."""
        sent = self.inner.broadcast(state)
        arrived = self._tampered(sent, updates)
        settled = None
        try:
            if self.defence is not None:
                form = expected_form(self.inner, state, sent)
                settled = climb(Ladder(self.defence, sent, form, state.layout.buffers, self._guard, self.rows), arrived)
                arrived = list(settled.updates)
                for code in [*(r.code for r in settled.refused), *(f"marked-{c}" for marks in settled.remarks.values() for c in marks)]:
                    self.codes[code] = self.codes.get(code, 0) + 1
            with np.errstate(all="ignore"):
                new, report = self.inner.aggregate(state, arrived)
            if settled is not None:
                check_model(new.weights)
                self._guard = settled.state
            return new, report
        except (UpdateError, ValueError, KeyError, IndexError, FloatingPointError) as error:
            self.failed += 1
            done = state.round_index + 1
            return replace(state, round_index=done), RoundReport(round_index=done, notes=(repr(error),))

    def _tampered(self, sent: Broadcast, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        if self.attack is HONEST:
            return list(updates)
        by_id = {update.client_id: update for update in updates}
        for client_id in HOSTILE:
            self._first.setdefault(client_id, by_id[client_id])
        found = []
        for update in updates:
            if update.client_id in HOSTILE:
                rng = generator(self.seed, purpose="attack", round_index=sent.round_index, client_id=update.client_id)
                with np.errstate(all="ignore"):
                    update = self.attack.change(update, Scene(sent.weights, by_id, self._first[update.client_id], rng))
            found.append(update)
        return found


def clients_under(ground: Ground, attack: Attack | None, seed: int) -> list[LocalClient]:
    """The clients: without the hostile ones where there is no attack, and these with shuffled labels where it says so."""
    if attack is None:
        return [client for client in ground.clients if client.client_id not in HOSTILE]
    if not attack.shuffled:
        return ground.clients
    clients = []
    for client in ground.clients:
        if client.client_id in HOSTILE:
            rng = generator(seed, purpose="shuffled-labels", client_id=client.client_id)
            splits: dict[str, Any] = dict(client.splits)
            for name in ("train", "val"):
                splits[name] = replace(splits[name], labels=rng.permutation(splits[name].labels))
            client = replace(client, splits=splits)
        clients.append(client)
    return clients


def run(ground: Ground, overrides: Sequence[str], attack: Attack | None, defence: Defence | None) -> dict[str, Any]:
    """One federation: test macro-F1 of the chosen model and of the last one, and what the ladder said. None: the honest clients alone."""
    seed, num_rounds = ground.config.random_seed, ground.config.num_rounds
    options = replace(ground.options, batch_size=SCORING_BATCH)
    initial = get_weights(ground.model)
    judge = ModelJudge(ground.model, ground.validation, options)
    inner = with_judge(build_aggregator(ground.movies.config(seed, *overrides)), judge)
    rows = {c.client_id: len(c.splits["train"]) * (attack.joined if attack and c.client_id in HOSTILE else 1) for c in ground.clients}
    besieged = Besieged(inner, attack or HONEST, rows, seed, defence)
    wishes: list[tuple[float, float]] = []

    def score(split: Table, weights: Weights) -> Evaluation:
        set_weights(ground.model, weights)
        return evaluate(ground.model, split, options)

    def follow(done: Round) -> None:
        wishes.append(_scores(done.state.weights, score, ground))

    simulate(
        besieged,
        besieged.init(initial, layout_of(ground.model)),
        clients_under(ground, attack, seed),
        num_rounds,
        seed=seed,
        on_round=follow,
    )
    set_weights(ground.model, initial)
    chosen = max(range(num_rounds), key=lambda index: (wishes[index][0], -index))
    return {
        "tuned": wishes[chosen][1],
        "last": wishes[-1][1],
        "curve": [test for _, test in wishes],
        "codes": besieged.codes,
        "failed": besieged.failed,
    }


def _scores(weights: Weights, score: Callable[[Table, Weights], Evaluation], ground: Ground) -> tuple[float, float]:
    """Macro-F1 on the server's validation and test rows at thresholds tuned on the former; 0 of a model that gives no numbers."""
    with np.errstate(all="ignore"):
        if not all(np.isfinite(array).all() for array in weights.values() if is_float(array)):
            return 0.0, 0.0
        validation, test = score(ground.validation, weights), score(ground.test, weights)
    if not math.isfinite(validation.loss):
        return 0.0, 0.0
    thresholds = tuned_thresholds(validation)
    assert thresholds is not None
    found: list[MultilabelCounts] = [counts_at(validation, thresholds), counts_at(test, thresholds)]
    return found[0].macro_f1, found[1].macro_f1
