"""The interface of an aggregator: pure state in, state and report out.

An aggregator is the server half of an algorithm. It holds only its hyper-parameters; everything that must survive a
round is in its state, a frozen dataclass, so that checkpointing, replay and tests come for free. The client half is
a local rule (`fedmap.local.rules`) which the broadcast names.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from fedmap.errors import ConfigError, UpdateError
from fedmap.guard.form import Form
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.weights import Array, Layout, Weights, weighted_sum


@dataclass(frozen=True)
class ServerState:
    """The least an aggregator keeps; algorithms with more memory extend it.

    Attributes:
        weights: the global model's shared arrays by name.
        round_index: how many rounds have been aggregated; the next broadcast is for round_index + 1.
        layout: which arrays are buffers and which belong to normalisation layers.
    """

    weights: Weights
    round_index: int = 0
    layout: Layout = field(default_factory=Layout)


S = TypeVar("S", bound=ServerState)


class Aggregator(Protocol[S]):
    """The server half of a federated algorithm."""

    def init(self, weights: Weights, layout: Layout | None = None) -> S:
        """The state before the first round, around the initial global model."""
        ...

    def broadcast(self, state: S) -> Broadcast:
        """What every client of the next round receives."""
        ...

    def aggregate(self, state: S, updates: Sequence[ClientUpdate]) -> tuple[S, RoundReport]:
        """Fold one round's updates into the state. Neither the state nor the updates are changed.

        Raises:
            UpdateError: no updates, or updates the algorithm cannot use.
        """
        ...


def expected_names(aggregator: Aggregator[Any], state: ServerState) -> frozenset[str]:
    """The names of the arrays that every client's update must carry.

    All of the global model's, unless the aggregator has a method `expected_names(state)` that says otherwise because
    some tensors stay on the clients.
    """
    own = getattr(aggregator, "expected_names", None)
    return frozenset(own(state)) if callable(own) else frozenset(state.weights)


def expected_form(aggregator: Aggregator[Any], state: ServerState, broadcast: Broadcast) -> Form:
    """What every client's answer to the broadcast has to look like.

    Besides `expected_names` an aggregator may have two further methods: `expected_extras(state)` names the groups of further arrays
    that it needs from every client, each with arrays like which the client's must be, and `expected_scalars(state)` the numbers, each
    with its least and its greatest value. Without them no further arrays may come, and any finite number. An attribute `own_start`
    that is true says that clients train on from models of their own.
    """
    extras, scalars = (getattr(aggregator, name, None) for name in ("expected_extras", "expected_scalars"))
    return Form.of(
        broadcast.weights,
        expected_names(aggregator, state),
        extras(state) if callable(extras) else None,
        scalars(state) if callable(scalars) else None,
        own_start=bool(getattr(aggregator, "own_start", False)),
    )


def restored(aggregator: Aggregator[Any], state: S) -> S:
    """The state before the first round, with what the aggregator keeps in a file of its own between runs, if it has `restore(state)`."""
    own = getattr(aggregator, "restore", None)
    full: S = own(state) if callable(own) else state
    return full


def persist(aggregator: Aggregator[Any], state: ServerState) -> None:
    """Let the aggregator write what it keeps between runs, if it has `persist(state)`; called after every round."""
    own = getattr(aggregator, "persist", None)
    if callable(own):
        own(state)


A = TypeVar("A")


def with_num_clients(aggregator: A, num_clients: int) -> A:
    """The aggregator, told how many clients the federation has in all, if it asks for that and does not know it yet.

    An aggregator asks by being a dataclass with a field `num_clients` that is None.
    """
    if dataclasses.is_dataclass(aggregator) and not isinstance(aggregator, type) and getattr(aggregator, "num_clients", 0) is None:
        return dataclasses.replace(aggregator, num_clients=num_clients)
    return aggregator


def in_client_order(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """The updates sorted by client, so that the order of arrival never changes a bit of the result.

    Raises:
        UpdateError: there are none, or one client appears twice.
    """
    ordered = sorted(updates, key=lambda update: update.client_id)
    if not ordered:
        raise UpdateError("no updates to aggregate; keep the state of the round before")
    for left, right in itertools.pairwise(ordered):
        if left.client_id == right.client_id:
            raise UpdateError(f"client {left.client_id} appears twice in one round; count each client once")
    return ordered


def example_shares(updates: Sequence[ClientUpdate]) -> dict[int, float]:
    """n_k / n for each client."""
    total = sum(update.num_examples for update in updates)
    return {update.client_id: update.num_examples / total for update in updates}


def mean_weights(
    updates: Sequence[ClientUpdate], shares: Sequence[float], names: Collection[str], dtype: npt.DTypeLike | None = None
) -> dict[str, Array]:
    """sum_k a_k w_k over the named arrays, in their own dtypes unless float arrays get one; integer arrays take the maximum.

    Raises:
        UpdateError: an update lacks one of the arrays.
    """
    for update in updates:
        missing = sorted(name for name in names if name not in update.weights)
        if missing:
            raise UpdateError(f"client {update.client_id} did not send {len(missing)} of the expected arrays, first {missing[:3]}")
    return weighted_sum([{name: update.weights[name] for name in names} for update in updates], shares, dtype)


def extra(update: ClientUpdate, group: str, names: Collection[str], needed_by: str) -> Weights:
    """A group of arrays that the update must carry besides the model.

    Raises:
        UpdateError: the group, or one of its arrays, is missing.
    """
    arrays = update.extras.get(group)
    missing = sorted(names) if arrays is None else sorted(name for name in names if name not in arrays)
    if arrays is None or missing:
        raise UpdateError(
            f"client {update.client_id} did not send {group!r} for {len(missing)} arrays, first {missing[:3]}; {needed_by} needs it from "
            "every client: let the clients train by the rule that the broadcast names, and keep its extras in an after_round hook"
        )
    return arrays


def check_number(
    name: str, value: object, least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf, why: str = ""
) -> None:
    """Refuse a hyper-parameter that is not a finite number in [least, most] and greater than `above`.

    Raises:
        ConfigError: names the hyper-parameter, its value, the range and, if given, why.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not least <= value <= most
        or value <= above
    ):
        limits = [f"greater than {above:g}"] if above > -math.inf else []
        limits += [f"of at least {least:g}"] if least > -math.inf else []
        limits += [f"of at most {most:g}"] if most < math.inf else []
        raise ConfigError(f"{name}={value!r}: expected a number {' and '.join(limits)}" + (f"; {why}" if why else ""))


def check_choice(name: str, value: object, options: Sequence[str]) -> None:
    """Refuse a hyper-parameter that is not one of the options.

    Raises:
        ConfigError: names the hyper-parameter, its value and the options.
    """
    if value not in options:
        raise ConfigError(f"{name}={value!r}: expected one of {', '.join(options)}")
