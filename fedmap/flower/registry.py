"""Which clients have joined: their numbers, nodes and cards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedmap.errors import QuorumError, UpdateError
from fedmap.flower.exchange import exchange
from fedmap.flower.wire import ClientCard, RunInfo, content_to_card, run_to_content

_POLL_SECONDS = 0.5


def quorum_of(count: int, quorum: float) -> int:
    """How many of `count` clients make the quorum: at least one."""
    return max(1, math.ceil(count * quorum - 1e-9))


@dataclass
class Registry:
    """The clients of a run. Clients may join late, leave, and come back on another node.

    Attributes:
        grid: Flower's grid.
        run: the run that clients join.
        label_names: the server's labels; a client must have the same.
        model_names: the names of the tensors the server shares; a client must have the same.
        fingerprint: of the server's frozen towers; a client must have the same.
        note: told whenever a client joins, leaves or cannot take part.
        waiting: told who has joined, of how many, while they are waited for.
        before: training rows of each client that was there when the run was stopped.
    """

    grid: Grid
    run: RunInfo
    label_names: Sequence[str]
    model_names: Sequence[str]
    fingerprint: str
    note: Callable[[str], None]
    before: Mapping[int, int] = field(default_factory=dict)
    waiting: Callable[[Sequence[int], int], None] = lambda joined, expected: None
    cards: dict[int, ClientCard] = field(default_factory=dict)
    nodes: dict[int, int] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)

    def client_ids(self) -> list[int]:
        """The clients that have joined and are there, ascending."""
        return sorted(self.nodes)

    def rows(self) -> dict[int, int]:
        """Training rows of each client that is there."""
        return {client_id: self.cards[client_id].num_train for client_id in self.client_ids()}

    def refresh(self, seconds: float) -> None:
        """Drop clients whose node has left; ask new nodes who they are, for at most `seconds`."""
        online = set(self.grid.get_node_ids())
        for client_id, node in list(self.nodes.items()):
            if node not in online:
                del self.nodes[client_id]
                self.note(f"client {client_id} has left")
        for node in set(self.problems) - online:
            del self.problems[node]
        known = set(self.nodes.values()) | set(self.problems)
        new = sorted(online - known)
        if not new:
            return
        content = run_to_content(self.run)
        messages = {node: Message(content, node, MessageType.QUERY, ttl=seconds + 60, group_id="join") for node in new}
        for node, answer in exchange(self.grid, messages, seconds).items():
            try:
                if answer.content is None:
                    raise UpdateError(answer.failure)
                self._admit(node, content_to_card(answer.content))
            except UpdateError as error:
                if node in set(self.grid.get_node_ids()):
                    self.problems[node] = str(error)
                    self.note(f"a client cannot take part: {error}")

    def _admit(self, node: int, card: ClientCard) -> None:
        who = f"client {card.client_id}"
        if tuple(card.label_names) != tuple(self.label_names):
            raise UpdateError(
                f"{who} has other labels than the server ({len(card.label_names)} against {len(self.label_names)}); "
                "use the same labels.json everywhere"
            )
        if list(card.model_names) != list(self.model_names):
            other = sorted(set(card.model_names) ^ set(self.model_names))[:3]
            raise UpdateError(
                f"{who} has another model than the server (first differing tensors {other}); use the same model configuration"
            )
        if card.fingerprint != self.fingerprint:
            raise UpdateError(f"{who} has other frozen tower weights than the server; use the same pretrained files everywhere")
        if card.client_id in self.nodes and self.nodes[card.client_id] in set(self.grid.get_node_ids()):
            raise UpdateError(f"{who} is already there on another node; give every client its own client_id")
        self.nodes[card.client_id] = node
        self.cards[card.client_id] = card
        self.note(f"client {card.client_id} has joined with {card.num_train} training rows")
        rows = self.before.get(card.client_id, card.num_train)
        if rows != card.num_train:
            self.note(f"client {card.client_id} had {rows} training rows when the run was stopped: its part from here on is another one")

    def wait(self, expected: int, seconds: float, quorum: float, also: Collection[int] = ()) -> None:
        """Wait until `expected` clients, `also` among them, have joined; after `seconds` go on with a quorum of them.

        A grid to which no further node can come (`closed`) is not waited for once all its nodes have answered.

        Raises:
            QuorumError: fewer than max(1, quorum * expected) clients have joined in time.
        """
        end = time.monotonic() + seconds
        said = -1
        self.waiting(self.client_ids(), expected)
        while True:
            self.refresh(max(end - time.monotonic(), 1.0))
            joined = len(self.nodes)
            self.waiting(self.client_ids(), expected)
            if joined >= expected and set(also) <= set(self.nodes):
                return
            everybody = getattr(self.grid, "closed", False) and len(self.nodes) + len(self.problems) >= len(list(self.grid.get_node_ids()))
            if everybody or time.monotonic() >= end:
                break
            if joined != said:
                left = max(end - time.monotonic(), 0)
                self.note(f"waiting for clients: {joined} of {expected} have joined{self._missing(also)}, {left:.0f} s left")
                said = joined
            time.sleep(_POLL_SECONDS)
        least, when = quorum_of(expected, quorum), "" if everybody else f" within {seconds:g} s"
        if len(self.nodes) < least:
            reasons = "".join(f"\n  - {problem}" for problem in self.problems.values())
            raise QuorumError(
                f"{len(self.nodes)} of {expected} clients joined{when}, at least {least} are needed. Start clients with "
                f"`python client_main.py client_id=<k>`, wait longer (runtime.wait_seconds) or expect fewer (num_clients){reasons}"
            )
        self.note(f"going on with {len(self.nodes)} of {expected} clients: the others did not join{when}{self._missing(also)}")

    def _missing(self, also: Collection[int]) -> str:
        missing = sorted(set(also) - set(self.nodes))
        return f" (of those from before the stop, client {', '.join(map(str, missing))} is missing)" if missing else ""
