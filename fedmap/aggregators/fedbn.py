"""FedBN (Li et al., 2021, arXiv 2102.07623, algorithm 1).

    client: trains the whole model; normalisation layers stay, everything else is sent   (rule "keep-normalisation")
    server: w_{t+1, l} = sum_k (n_k / n) w_{k, l}   for every layer l that is not a normalisation layer

Normalisation layers are found by module type, never by name, and their statistics stay with their parameters.

Departures: the paper weights clients equally and speaks of BatchNorm only; here clients count by examples as in FedAvg,
and LayerNorm, GroupNorm and RMSNorm layers stay on the client too. The server keeps the normalisation layers of the
initial model, which new clients start from; a score of the server's own model is therefore of a model that no client
uses, and the clients' scores are the ones to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedmap.aggregators.base import ServerState, example_shares, in_client_order, mean_weights
from fedmap.aggregators.fedavg import FedAvg
from fedmap.records import Broadcast, ClientUpdate, RoundReport


@dataclass(frozen=True)
class FedBN(FedAvg):
    """FedAvg of everything but the normalisation layers."""

    def broadcast(self, state: ServerState) -> Broadcast:
        """The global model; clients put their own normalisation layers into it."""
        return replace(super().broadcast(state), rule="keep-normalisation")

    def expected_names(self, state: ServerState) -> frozenset[str]:
        """The arrays that clients share: all but those of normalisation layers."""
        return frozenset(state.weights) - state.layout.normalisation

    def aggregate(self, state: ServerState, updates: Sequence[ClientUpdate]) -> tuple[ServerState, RoundReport]:
        """The mean of what is shared; the server's normalisation layers stay as they were."""
        ordered = in_client_order(updates)
        shares = example_shares(ordered)
        shared = mean_weights(ordered, [shares[update.client_id] for update in ordered], self.expected_names(state))
        notes = () if state.layout.normalisation else ("the model has no trainable normalisation layers: FedBN is FedAvg here",)
        done = state.round_index + 1
        weights = {name: shared.get(name, array) for name, array in state.weights.items()}
        return replace(state, weights=weights, round_index=done), RoundReport(round_index=done, client_weights=shares, notes=notes)
