"""GMA, gradient masked averaging (Tenison et al., 2022, arXiv 2201.11986, algorithm 1).

    client k: plain local training, D_k = w_k - w_t                                                            (rule "plain")
    server:   A = |mean_k sign(D_k)|;   m = 1 where A >= tau, else A     per coordinate
              w_{t+1} = w_t + eta * m * sum_k (n_k/n) D_k

Coordinates on whose direction the clients agree move as in FedAvg, the others are damped by their agreement. At equality
the mask is 1. tau = 0 with eta = 1 is FedAvg bit for bit.

Departures: none in the formula. Masks cover trainable parameters; buffers are averaged. The paper's server learning rate
may come with server momentum, which is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedmap.aggregators.base import ServerState, check_number, example_shares, in_client_order, mean_weights
from fedmap.aggregators.fedavg import FedAvg
from fedmap.records import ClientUpdate, RoundReport


@dataclass(frozen=True)
class GMA(FedAvg):
    """FedAvg with a soft mask on the clients' mean change.

    Attributes:
        tau: the agreement from which on a coordinate moves in full, in [0, 1]; 0 is FedAvg.
        server_learning_rate: eta, > 0.
    """

    compares_coordinates: ClassVar[bool] = True  # a change that was not sent would count as a vote
    tau: float = 0.4
    server_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        check_number("tau", self.tau, 0, 1, why="it is the mean sign from which on the mask is 1; 0 is FedAvg")
        check_number("server_learning_rate", self.server_learning_rate, above=0)

    def aggregate(self, state: ServerState, updates: Sequence[ClientUpdate]) -> tuple[ServerState, RoundReport]:
        """w_t plus the masked mean change."""
        ordered = in_client_order(updates)
        shares = example_shares(ordered)
        coefficients = [shares[update.client_id] for update in ordered]
        weights = mean_weights(ordered, coefficients, state.weights.keys())
        opened, total = 0, 0
        for name in state.weights:
            if name in state.layout.buffers:
                continue
            start = state.weights[name].astype(np.float64)
            signs = sum(np.sign(update.weights[name].astype(np.float64) - start) for update in ordered)
            agreement = np.abs(signs) / len(ordered)
            mask = np.where(agreement >= self.tau, 1.0, agreement)
            mean = weights[name]
            step = float(self.server_learning_rate) * mask
            # a full step is the mean itself, to the bit, and not w_t + (mean - w_t)
            weights[name] = np.where(step == 1, mean, (start + step * (mean.astype(np.float64) - start)).astype(mean.dtype))
            opened, total = opened + int((mask == 1).sum()), total + mask.size
        done = state.round_index + 1
        report = RoundReport(round_index=done, client_weights=shares, diagnostics={"mask-open": opened / max(total, 1)})
        return replace(state, weights=weights, round_index=done), report
