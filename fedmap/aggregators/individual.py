"""Individual training: every client for itself, the baseline that any federation has to beat.

    client: w_k <- local training from its own w_k        (rule "individual")
    server: nothing

The clients start from the same initial model, train as often and as long as in a federation, keep their models in their
memory and are scored with them. No trained tensor is sent. The server's model stays the initial one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedmap.aggregators.base import ServerState, in_client_order
from fedmap.aggregators.fedavg import FedAvg
from fedmap.records import Broadcast, ClientUpdate, RoundReport


@dataclass(frozen=True)
class Individual(FedAvg):
    """No communication; the state only counts rounds."""

    def broadcast(self, state: ServerState) -> Broadcast:
        """The initial model, which a client uses in its first round only."""
        return replace(super().broadcast(state), rule="individual")

    def expected_names(self, state: ServerState) -> frozenset[str]:
        """Nothing is shared."""
        return frozenset()

    def aggregate(self, state: ServerState, updates: Sequence[ClientUpdate]) -> tuple[ServerState, RoundReport]:
        """Count the round."""
        in_client_order(updates)
        done = state.round_index + 1
        return replace(state, round_index=done), RoundReport(round_index=done)
