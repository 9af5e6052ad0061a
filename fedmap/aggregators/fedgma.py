"""FedGMA, gradient-masked federated optimisation (Tenison, Francis, Rish, 2021, arXiv 2104.10322, algorithm 1).

    client k: plain local training; send w_k and g_k, the last local gradient                         (rule "last-gradient")
    server:   mask = I{ p K <= |sum_k sign(g_k)| }     per coordinate
              w_{t+1} = sum_k (n_k/n) w_k - eta_s * mask * sum_k (n_k/n) g_k

On top of the mean, the server takes a gradient step along the coordinates on whose direction the clients agree.

The formula and the text disagree: with p = 0.8 the formula asks that 90 % of the clients have the same sign (9 against 1
is |sum| = 8), the text says 80 %. `agreement: sum` is the formula and the default; `agreement: fraction` is the text, a
share of at least p of the clients with the same sign. A gradient of exactly zero agrees with nobody.

Departures: none in the formula. Masks cover trainable parameters; buffers are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedmap.aggregators.base import ServerState, check_choice, check_number, example_shares, extra, in_client_order, mean_weights
from fedmap.aggregators.fedavg import FedAvg
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.weights import Array, Weights, add_scaled, weighted_sum

LAST_GRADIENT = "last-gradient"


@dataclass(frozen=True)
class FedGMA(FedAvg):
    """FedAvg followed by a masked gradient step.

    Attributes:
        p: the agreement a coordinate needs, in [0, 1]; the paper uses 0.8, the seed implementation found 0.7 best.
        server_learning_rate: eta_s, >= 0; the paper tries 0.01, 0.1 and 1. 0 is FedAvg.
        agreement: "sum" (|sum of signs| >= p K) or "fraction" (a share of at least p with the same sign).
    """

    compares_coordinates: ClassVar[bool] = True  # a gradient that was not sent would agree with nobody
    p: float = 0.8
    server_learning_rate: float = 0.1
    agreement: str = "sum"

    def __post_init__(self) -> None:
        check_number("p", self.p, 0, 1, why="it is the share of agreeing clients that opens the mask")
        check_number("server_learning_rate", self.server_learning_rate, 0)
        check_choice("agreement", self.agreement, ("sum", "fraction"))

    def broadcast(self, state: ServerState) -> Broadcast:
        """The global model, trained plainly; the last gradient is asked for."""
        return replace(super().broadcast(state), rule="last-gradient")

    def expected_extras(self, state: ServerState) -> dict[str, Weights]:
        """The last gradient of every trainable parameter."""
        return {LAST_GRADIENT: state.layout.parameters(state.weights)}

    def aggregate(self, state: ServerState, updates: Sequence[ClientUpdate]) -> tuple[ServerState, RoundReport]:
        """The mean of the models minus the masked mean of the gradients.

        Raises:
            UpdateError: a client did not send its last gradient.
        """
        ordered = in_client_order(updates)
        names = [name for name in state.weights if name not in state.layout.buffers]
        sent = [extra(update, LAST_GRADIENT, names, "FedGMA (2021)") for update in ordered]
        shares = example_shares(ordered)
        coefficients = [shares[update.client_id] for update in ordered]
        means = weighted_sum([{name: gradient[name] for name in names} for gradient in sent], coefficients)
        masks = {name: self._mask([gradient[name] for gradient in sent]) for name in names}
        step = {name: np.asarray(mean * masks[name]) for name, mean in means.items()}
        weights = add_scaled(mean_weights(ordered, coefficients, state.weights.keys()), step, -float(self.server_learning_rate))
        done = state.round_index + 1
        opened = sum(int(mask.sum()) for mask in masks.values()) / max(sum(mask.size for mask in masks.values()), 1)
        report = RoundReport(round_index=done, client_weights=shares, diagnostics={"mask-open": opened})
        return replace(state, weights=weights, round_index=done), report

    def _mask(self, gradients: Sequence[Array]) -> npt.NDArray[np.bool_]:
        signs = np.stack([np.sign(gradient) for gradient in gradients])  # [K, ...]
        # divisions of integers round like the decimal numbers of a configuration do, so that equality is met exactly
        if self.agreement == "sum":
            agreeing = np.abs(signs.sum(axis=0, dtype=np.float64))
        else:
            agreeing = np.maximum((signs > 0).sum(axis=0), (signs < 0).sum(axis=0)).astype(np.float64)
        return np.asarray(agreeing / len(gradients) >= self.p)
