"""SCAFFOLD (Karimireddy et al., 2020, arXiv 1910.06378, algorithm 1).

    client k: y <- x;  K times: y <- y - eta_l (g_k(y) - c_k + c)                                     (rule "control-variate")
              option I : c_k+ = g_k(x), one extra pass over the local data at the server's model
              option II: c_k+ = c_k - c + (x - y) / (K eta_l)
              send y and c_k+ - c_k, keep c_k+
    server:   x <- x + eta_g mean_{k in S} (y_k - x)
              c <- c + |S|/N mean_{k in S} (c_k+ - c_k)

S are the round's clients, N is the number of ALL clients, c and c_k start at zero, and K is the number of optimiser steps
that the client really took. With full participation c is the mean of the c_k after every round.

Departures: controls cover trainable parameters only; float buffers (BatchNorm statistics) are averaged by examples and
integer buffers take the maximum. A client's `num_updates` fixes K; the clients' means are unweighted, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fedmap.aggregators.base import ServerState, check_choice, check_number, example_shares, extra, in_client_order, mean_weights
from fedmap.errors import ConfigError
from fedmap.records import Broadcast, ClientUpdate, RoundReport
from fedmap.weights import Layout, Weights, add_scaled, difference, norm, weighted_sum, zeros_like

CONTROL = "control"
CONTROL_DELTA = "control-delta"


@dataclass(frozen=True)
class ScaffoldState(ServerState):
    """The global model and the server's control.

    Attributes:
        control: c, one array per trainable parameter.
    """

    control: Weights = field(default_factory=dict)


@dataclass(frozen=True)
class Scaffold:
    """Averaging whose clients correct their drift with control variates.

    Attributes:
        option: "I" or "II", how a client's control is renewed.
        server_learning_rate: eta_g, > 0.
        num_clients: N, all clients of the federation, whether or not they take part in a round; None: to be told by
            `fedmap.aggregators.base.with_num_clients` before the first round.
    """

    option: str = "II"
    server_learning_rate: float = 1.0
    num_clients: int | None = None

    def __post_init__(self) -> None:
        check_choice("option", self.option, ("I", "II"))
        check_number("server_learning_rate", self.server_learning_rate, above=0)
        if self.num_clients is not None:
            check_number("num_clients", self.num_clients, 1, why="it counts all clients of the federation")

    def init(self, weights: Weights, layout: Layout | None = None) -> ScaffoldState:
        """The initial model and c = 0."""
        layout = layout or Layout.of(weights)
        return ScaffoldState(weights=weights, layout=layout, control=zeros_like(layout.parameters(weights)))

    def broadcast(self, state: ScaffoldState) -> Broadcast:
        """x, c and the option."""
        return Broadcast(
            round_index=state.round_index + 1,
            weights=state.weights,
            rule="control-variate",
            extras={CONTROL: state.control},
            scalars={"option": self.option},
        )

    def expected_extras(self, state: ScaffoldState) -> dict[str, Weights]:
        """The change of each client's control, like the server's own control."""
        return {CONTROL_DELTA: state.control}

    def aggregate(self, state: ScaffoldState, updates: Sequence[ClientUpdate]) -> tuple[ScaffoldState, RoundReport]:
        """One step of x and of c.

        Raises:
            ConfigError: the number of all clients is not known, or more clients answered than there are.
            UpdateError: an update lacks its control.
        """
        ordered = in_client_order(updates)
        total = self._total(len(ordered))
        names = state.control.keys()
        mean = [1 / len(ordered)] * len(ordered)
        shares = example_shares(ordered)
        trained = mean_weights(ordered, mean, names)
        buffers = mean_weights(ordered, [shares[update.client_id] for update in ordered], [n for n in state.weights if n not in names])
        if self.server_learning_rate != 1:
            parameters = {name: state.weights[name] for name in names}
            trained = add_scaled(parameters, difference(trained, parameters), float(self.server_learning_rate))
        deltas = [extra(update, CONTROL_DELTA, names, "SCAFFOLD") for update in ordered]
        step = weighted_sum([{name: delta[name] for name in names} for delta in deltas], [1 / total] * len(ordered))
        control = add_scaled(state.control, step)
        done = state.round_index + 1
        weights = {name: trained[name] if name in names else buffers[name] for name in state.weights}
        report = RoundReport(
            round_index=done,
            client_weights={update.client_id: 1 / len(ordered) for update in ordered},
            diagnostics={"control-norm": norm(control), "control-change": norm(step), "participation": len(ordered) / total},
        )
        return replace(state, weights=weights, control=control, round_index=done), report

    def _total(self, answered: int) -> int:
        if self.num_clients is None:
            raise ConfigError(
                "SCAFFOLD needs the number of all clients, which scales the server's control; set num_clients, "
                "or server.strategy.num_clients for this strategy alone"
            )
        if answered > self.num_clients:
            raise ConfigError(f"num_clients={self.num_clients}, but {answered} clients answered; it counts all clients of the federation")
        return self.num_clients
