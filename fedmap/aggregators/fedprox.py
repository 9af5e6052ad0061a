"""FedProx (Li et al., 2020, arXiv 1812.06127, algorithm 2 with equation 2).

    client: w_k ~ argmin_w h_k(w; w_t) = F_k(w) + mu/2 ||w - w_t||^2        (rule "proximal")
    server: w_{t+1} = sum_k (n_k / n) w_k

The norm is squared: the gradient of the term is mu (w - w_t). mu = 0 is FedAvg bit for bit.

Departures: the paper samples clients with probability n_k / n and averages them uniformly; here, as in FedAvg, clients
are sampled uniformly and averaged by examples. Its gamma-inexactness is the number of local epochs or updates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedmap.aggregators.base import ServerState, check_number
from fedmap.aggregators.fedavg import FedAvg
from fedmap.records import Broadcast


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg whose clients are held back by a spring to the global model.

    Attributes:
        mu: the spring's strength, >= 0; useful values are 0.001, 0.01, 0.1, 0.5 and 1.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        check_number("mu", self.mu, 0, why="0 is FedAvg, useful values are 0.001 to 1")

    def broadcast(self, state: ServerState) -> Broadcast:
        """The global model and mu."""
        return replace(super().broadcast(state), rule="proximal", scalars={"mu": float(self.mu)})
