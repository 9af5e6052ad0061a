"""The interface of an aggregator: pure state in, state and report out.

An aggregator is the server half of an algorithm. It holds only its hyper-parameters; everything that must survive a
round is in its state, a frozen dataclass, so that checkpointing, replay and tests come for free. The client half is
a local rule (`fedmap.local.rules`) which the broadcast names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from fedmap.errors import UpdateError
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.weights import Layout, Weights


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


def in_client_order(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """The updates sorted by client, so that the order of arrival never changes a bit of the result.

    Raises:
        UpdateError: there are none, or one client appears twice.
    """
    ordered = sorted(updates, key=lambda update: update.client_id)
    if not ordered:
        raise UpdateError("no updates to aggregate; keep the state of the round before")
    for left, right in zip(ordered, ordered[1:], strict=False):
        if left.client_id == right.client_id:
            raise UpdateError(f"client {left.client_id} appears twice in one round; count each client once")
    return ordered


def example_shares(updates: Sequence[ClientUpdate]) -> dict[int, float]:
    """n_k / n for each client."""
    total = sum(update.num_examples for update in updates)
    return {update.client_id: update.num_examples / total for update in updates}
