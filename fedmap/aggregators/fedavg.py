"""Federated averaging (McMahan et al., 2017, arXiv 1602.05629, algorithm 1).

    server: w_{t+1} = sum_k (n_k / n) w_k

Float buffers (BatchNorm statistics) are averaged like parameters; integer buffers keep their dtype and take the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedmap.aggregators.base import ServerState, example_shares, in_client_order, mean_weights
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.weights import Layout, Weights


@dataclass(frozen=True)
class FedAvg:
    """The mean of the clients' models, weighted by their numbers of examples."""

    def init(self, weights: Weights, layout: Layout | None = None) -> ServerState:
        """The state before the first round."""
        return ServerState(weights=weights, layout=layout or Layout.of(weights))

    def broadcast(self, state: ServerState) -> Broadcast:
        """The global model, trained locally without any correction."""
        return Broadcast(round_index=state.round_index + 1, weights=state.weights, rule="plain")

    def aggregate(self, state: ServerState, updates: Sequence[ClientUpdate]) -> tuple[ServerState, RoundReport]:
        """w_{t+1} = sum_k (n_k / n) w_k."""
        ordered = in_client_order(updates)
        shares = example_shares(ordered)
        weights = mean_weights(ordered, [shares[update.client_id] for update in ordered], state.weights.keys())
        done = state.round_index + 1
        return replace(state, weights=weights, round_index=done), RoundReport(round_index=done, client_weights=shares)
