"""One of five clients sends what it should not: the server's ladder and each strategy, with real updates of a small network.

Whatever comes, there is no exception but an UpdateError, the round goes on with the others, and the model stays finite and
as near to where the honest clients alone would have brought it as their own spread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from fedmap.aggregators.base import expected_form, with_num_clients
from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.fedmap import FedMAP
from fedmap.aggregators.judge import with_judge
from fedmap.aggregators.modality_aware import ModalityAwareAggregation
from fedmap.aggregators.scaffold import Scaffold
from fedmap.errors import UpdateError
from fedmap.guard import Defence, GuardState, Ladder, Settled, climb
from fedmap.guard.measuring import check_model
from fedmap.local.training import TrainingOptions
from fedmap.records import ClientSignals, ClientUpdate
from fedmap.weights import difference, norm
from tests.toys import ToyJudge, net_clients, one_round, start

SGD = TrainingOptions(learning_rate=0.05, optimizer="sgd", weight_decay=0.0, clip_norm=0.0, num_updates=4, batch_size=8)
STRATEGIES: dict[str, Callable[[], object]] = {
    "fedavg": FedAvg,
    "modality_aware": lambda: ModalityAwareAggregation(n_trials_per_round=4),
    "scaffold": Scaffold,
    "fedmap": FedMAP,
}
HOSTILE = 2
BODY = "head.weight"  # [2, 8]
Case = Callable[[ClientUpdate], ClientUpdate]


@cache
def scene(name: str):
    """The aggregator, its state, and everybody's honest updates of the first round."""
    aggregator = with_judge(with_num_clients(STRATEGIES[name](), 5), ToyJudge())
    clients = net_clients(SGD, 5)
    state = start(aggregator, clients)
    updates, _ = one_round(aggregator, state, clients)
    return aggregator, state, tuple(updates)


def ladder(aggregator, state, /, **settings) -> Ladder:
    broadcast = aggregator.broadcast(state)
    form = expected_form(aggregator, state, broadcast)
    rows = {k: 16 + 8 * k for k in range(5)}
    return Ladder(Defence(), broadcast, form, state.layout.buffers, **{"rows": rows, **settings})


def array(change: Callable[[np.ndarray], np.ndarray], name: str = BODY) -> Case:
    return lambda update: replace(update, weights={**update.weights, name: change(update.weights[name])})


def everywhere(change: Callable[[np.ndarray], np.ndarray]) -> Case:
    def changed(update: ClientUpdate) -> ClientUpdate:
        with np.errstate(all="ignore"):
            weights = {n: np.asarray(change(a), a.dtype) if a.dtype.kind == "f" else a for n, a in update.weights.items()}
        return replace(update, weights=weights)

    return changed


def one_number(value: float, name: str = BODY) -> Case:
    def poisoned(found: np.ndarray) -> np.ndarray:
        found = found.copy()
        found.reshape(-1)[-1] = value
        return found

    return array(poisoned, name)


def short_list(update: ClientUpdate) -> ClientUpdate:
    return replace(update, weights=dict(list(update.weights.items())[:2]))


def renamed(update: ClientUpdate) -> ClientUpdate:
    weights = dict(update.weights)
    return replace(update, weights={("x" if name == BODY else name): found for name, found in weights.items()})


CASES: dict[str, tuple[Case, str]] = {
    "NaN": (one_number(np.nan), "finite"),
    "infinite": (one_number(np.inf), "finite"),
    "minus infinite": (one_number(-np.inf), "finite"),
    "NaN in a buffer": (one_number(np.nan, "body.1.running_var"), "finite"),
    "all NaN": (everywhere(lambda found: np.full_like(found, np.nan)), "finite"),
    "1e30": (everywhere(lambda found: np.full_like(found, 1e30)), "norm"),
    "one 1e30": (one_number(1e30), "norm"),
    "largest float32": (everywhere(lambda found: np.full_like(found, np.finfo(np.float32).max)), "norm"),
    "1e30 in a buffer": (one_number(1e30, "body.1.running_var"), "norm"),
    "no rows": (lambda update: replace(update, num_examples=0), "examples"),
    "negative rows": (lambda update: replace(update, num_examples=-5), "examples"),
    "float rows": (lambda update: replace(update, num_examples=10.0), "examples"),
    "bool rows": (lambda update: replace(update, num_examples=True), "examples"),
    "huge rows": (lambda update: replace(update, num_examples=10**12), "examples"),
    "more rows than it has": (lambda update: replace(update, num_examples=update.num_examples + 1), "examples"),
    "no steps": (lambda update: replace(update, num_steps=0), "steps"),
    "huge steps": (lambda update: replace(update, num_steps=10**9), "steps"),
    "wrong shape": (array(lambda found: np.zeros((3, 3), np.float32)), "shape"),
    "broadcastable shape": (array(lambda found: found[:1]), "shape"),
    "transposed": (array(lambda found: np.ascontiguousarray(found.T)), "shape"),
    "scalar": (array(lambda found: np.float32(1) * np.ones((), np.float32)), "shape"),
    "empty array": (array(lambda found: found[:0]), "shape"),
    "short list": (short_list, "names"),
    "extra key": (lambda update: replace(update, weights={**update.weights, "x": np.zeros(1, np.float32)}), "names"),
    "renamed key": (renamed, "names"),
    "empty update": (lambda update: replace(update, weights={}), "names"),
    "float64": (array(lambda found: found.astype(np.float64)), "dtype"),
    "float16": (array(lambda found: found.astype(np.float16)), "dtype"),
    "integers": (array(lambda found: found.astype(np.int32)), "dtype"),
    "a float counter": (array(lambda found: found.astype(np.float32), "body.1.num_batches_tracked"), "dtype"),
    "a counter that overflows": (array(lambda found: np.array(2**63 - 1), "body.1.num_batches_tracked"), "norm"),
    "unknown group": (lambda update: replace(update, extras={**update.extras, "more": update.weights}), "names"),
    "another round": (lambda update: replace(update, round_index=0), "round"),
    "NaN among its numbers": (lambda update: replace(update, scalars={**update.scalars, "x": np.nan}), "finite"),
    "infinite among its numbers": (lambda update: replace(update, scalars={**update.scalars, "x": np.inf}), "finite"),
    "thousands of signals": (
        lambda update: replace(update, signals=ClientSignals(custom={str(i): 1.0 for i in range(5000)})),
        "size",
    ),
}

UNMAKEABLE = {"no rows", "negative rows", "float rows", "bool rows", "no steps", "NaN among its numbers"}

SIGNALS: dict[str, ClientSignals] = {
    "missing": ClientSignals(),
    "NaN": ClientSignals(f1_before=np.nan, f1_after=np.nan, validation_loss=np.nan, train_loss=np.nan, gradient_norm=np.nan),
    "infinite": ClientSignals(f1_after=np.inf, validation_loss=np.inf, gradient_norm=np.inf, diversity=np.inf),
    "negative": ClientSignals(f1_after=-1.0, validation_loss=-1.0, gradient_norm=-1.0, diversity=-1.0, label_imbalance=-1.0),
    "huge": ClientSignals(f1_after=1e30, validation_loss=1e30, gradient_norm=1e30, diversity=1e30, label_imbalance=1e30),
    "contradicting": ClientSignals(f1_before=0.0, f1_after=0.999),
}


def settled_with(name: str, updates) -> tuple[Settled, object]:
    """What the ladder makes of the updates, and the state after aggregating what is left."""
    aggregator, state, _ = scene(name)
    settled = climb(ladder(aggregator, state), updates)
    after, report = aggregator.aggregate(state, settled.updates)
    check_model(after.weights)
    assert {update.client_id for update in settled.updates} >= set(report.client_weights)
    return settled, after


def distance(left, right) -> float:
    return norm(difference(left.weights, right.weights), [n for n in left.weights if left.weights[n].dtype.kind == "f"])


@cache
def honest(name: str):
    """The state that the four honest clients come to."""
    _, _, updates = scene(name)
    return settled_with(name, [update for update in updates if update.client_id != HOSTILE])[1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_honest_updates_pass_and_stay_as_they_are(name: str) -> None:
    _, _, updates = scene(name)
    settled, _ = settled_with(name, updates[::-1])
    assert settled.refused == ()
    assert settled.remarks == {}
    assert all(left is right for left, right in zip(settled.updates, updates, strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_broken_update_is_refused_with_its_code_and_the_others_go_on(name: str, case: str) -> None:
    change, code = CASES[case]
    _, _, updates = scene(name)
    if case in UNMAKEABLE:  # it fails where the server makes an update of what it has read
        with pytest.raises(UpdateError) as caught:
            change(updates[HOSTILE])
        assert caught.value.code == code
        return
    broken = change(updates[HOSTILE])
    settled, after = settled_with(name, [broken if update.client_id == HOSTILE else update for update in updates])
    assert [(refusal.update.client_id, refusal.code) for refusal in settled.refused] == [(HOSTILE, code)]
    assert settled.refused[0].reason.startswith("client 2")
    assert distance(after, honest(name)) == 0, "bit for bit what the others alone come to"


@pytest.mark.parametrize("signals", SIGNALS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_bad_signal_degrades_itself_and_not_the_update(name: str, signals: str) -> None:
    _, _, updates = scene(name)
    sent = [replace(update, signals=SIGNALS[signals]) if update.client_id == HOSTILE else update for update in updates]
    settled, after = settled_with(name, sent)
    assert settled.refused == ()
    assert set(settled.remarks) == (set() if signals == "missing" else {HOSTILE})
    assert all(set(marks) == {"signal"} for marks in settled.remarks.values())
    spread = max(distance(after, replace(after, weights=update.weights)) for update in updates)
    assert distance(after, honest(name)) <= spread


@pytest.mark.parametrize("factor", [-1000.0, -10.0, 10.0, 1000.0])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_change_that_is_blown_up_moves_the_model_no_further_than_three_usual_ones(name: str, factor: float) -> None:
    _, state, updates = scene(name)
    received = state.weights
    blown = replace(
        updates[HOSTILE],
        weights={
            n: np.asarray(received[n] + factor * (a - received[n]), a.dtype) if a.dtype.kind == "f" else a
            for n, a in updates[HOSTILE].weights.items()
        },
    )
    settled, after = settled_with(name, [blown if update.client_id == HOSTILE else update for update in updates])
    said = {refusal.code for refusal in settled.refused} | {code for marks in settled.remarks.values() for code in marks}
    assert said & {"norm", "direction"}
    largest = max(distance(state, replace(state, weights=update.weights)) for update in updates)
    assert distance(after, state) <= 3 * largest


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_copy_of_another_clients_model_counts_once_and_so_does_one_of_an_earlier_round(name: str) -> None:
    aggregator, state, updates = scene(name)
    copy = replace(updates[HOSTILE], weights=updates[4].weights)
    settled, _ = settled_with(name, [copy if update.client_id == HOSTILE else update for update in updates])
    assert [(r.update.client_id, r.code) for r in settled.refused] == [(4, "replay")], "who copied whom cannot be known: the first stays"
    assert "bit for bit client 2's of this round" in settled.refused[0].reason
    later = replace(state, round_index=1, weights={n: a + np.ones_like(a) if n == BODY else a for n, a in state.weights.items()})
    stale = [replace(update, round_index=2) for update in updates[3:]]
    again = climb(ladder(aggregator, later, state=settled.state), [replace(stale[0], client_id=0, num_examples=1), *stale])
    others = {(refusal.update.client_id, refusal.code) for refusal in again.refused}
    assert (0, "replay") in others, "another client's of an earlier round"
    assert ((3, "replay") in others) == (name != "fedmap"), "its own; who goes on from its own model may have arrived"


@pytest.mark.parametrize("name", STRATEGIES)
def test_all_refused_or_none_sent_keeps_the_old_model_by_an_update_error(name: str) -> None:
    aggregator, state, updates = scene(name)
    for sent in ([], [everywhere(lambda found: np.full_like(found, np.nan))(update) for update in updates]):
        settled = climb(ladder(aggregator, state), sent)
        assert settled.updates == ()
        with pytest.raises(UpdateError, match="no updates"):
            aggregator.aggregate(state, settled.updates)


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_client_alone_and_one_that_answers_twice(name: str) -> None:
    _, _, updates = scene(name)
    settled, _ = settled_with(name, updates[:1])
    assert settled.updates == updates[:1]
    settled, _ = settled_with(name, [*updates, updates[0]])
    assert [(refusal.update.client_id, refusal.code) for refusal in settled.refused] == [(0, "duplicate")]


@pytest.mark.parametrize("name", STRATEGIES)
def test_memory_layout_does_not_matter(name: str) -> None:
    _, _, updates = scene(name)
    strange = [replace(update, weights={n: a.copy(order="F") for n, a in update.weights.items()}) for update in updates]
    assert distance(settled_with(name, strange)[1], settled_with(name, updates)[1]) == 0


def test_a_client_that_lacks_what_the_strategy_needs_does_not_cost_the_others_their_round() -> None:
    for name, code, change in [
        ("scaffold", "names", lambda update: replace(update, extras={})),
        ("fedmap", "scalar", lambda update: replace(update, scalars={})),
        ("fedmap", "scalar", lambda update: replace(update, scalars={**update.scalars, "log-likelihood": 1e9})),
    ]:
        _, _, updates = scene(name)
        settled, _ = settled_with(name, [change(update) if update.client_id == HOSTILE else update for update in updates])
        assert [(refusal.update.client_id, refusal.code) for refusal in settled.refused] == [(HOSTILE, code)]


def test_what_is_remembered_survives_a_checkpoint() -> None:
    from fedmap.checkpoint import state_from_bytes, state_to_bytes

    aggregator, state, updates = scene("fedavg")
    guard = climb(ladder(aggregator, state), updates).state
    back = state_from_bytes(state_to_bytes(guard), GuardState)
    assert (back.rows, back.norms, back.directions) == (guard.rows, guard.norms, guard.directions)
    assert back.counted.tobytes() == guard.counted.tobytes()
    assert len(back.counted) == 5
