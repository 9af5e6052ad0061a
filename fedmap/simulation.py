"""A federation inside one process, without messages: what an algorithm does, for benchmarks and tests of algorithms.

`runtime=local` runs the real client app over real messages instead; both call the same aggregator and client code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedmap.aggregators.base import Aggregator, ServerState
from fedmap.local.client import LocalClient
from fedmap.local.rules import Memory
from fedmap.randomness import sample_clients
from fedmap.records import ClientUpdate, RoundReport


@dataclass(frozen=True)
class Round:
    """What one simulated round produced."""

    state: ServerState
    updates: Sequence[ClientUpdate]
    report: RoundReport
    memories: Mapping[int, Memory]


def simulate(
    aggregator: Aggregator[ServerState],
    state: ServerState,
    clients: Sequence[LocalClient],
    num_rounds: int,
    *,
    seed: int = 0,
    clients_per_round: int = 0,
    memories: Mapping[int, Memory] | None = None,
    on_round: Callable[[Round], None] | None = None,
) -> tuple[ServerState, dict[int, Memory]]:
    """Run `num_rounds` rounds and return the last state and the clients' memories.

    Args:
        aggregator: the server half of the algorithm.
        state: where to start, e.g. `aggregator.init(weights, layout)`.
        clients: all clients; they may share one model object, which each overwrites when its turn comes.
        num_rounds: how many rounds to run.
        seed: of client sampling.
        clients_per_round: how many clients take part in a round; 0 is all.
        memories: the clients' memories at the start, by client id.
        on_round: called after each round.
    """
    by_id = {client.client_id: client for client in clients}
    kept = dict(memories or {})
    for _ in range(num_rounds):
        broadcast = aggregator.broadcast(state)
        updates = []
        for client_id in sample_clients(seed, broadcast.round_index, list(by_id), clients_per_round):
            update, kept[client_id] = by_id[client_id].train_round(broadcast, kept.get(client_id, Memory()))
            updates.append(update)
        state, report = aggregator.aggregate(state, updates)
        if on_round is not None:
            on_round(Round(state, updates, report, dict(kept)))
    return state, kept
