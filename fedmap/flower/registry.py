"""Which clients have joined: their numbers, nodes and cards."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedmap.errors import QuorumError, UpdateError
from fedmap.flower.exchange import Exchange, in_words, lifetime
from fedmap.flower.identities import Identities
from fedmap.flower.wire import ClientCard, RunInfo, content_to_card, run_to_content

_POLL_SECONDS = 0.5
_JOIN_SECONDS = 15.0  # how long a round waits for a client that has just come; one that takes longer joins a later round
_LONGEST_JOIN = 600.0  # after so many seconds without an answer a node is asked again who it is
_MOST_TRIES = 3  # how often a node is asked who it is if it says nothing about why it cannot answer


def quorum_of(count: int, quorum: float) -> int:
    """How many of `count` clients make the quorum: at least one."""
    return max(1, math.ceil(count * quorum - 1e-9))


def _sentence(failure: str) -> str:
    """A client's exception as Flower words it, `<class 'module.Error'>:<'sentence'>`, without the wrapping."""
    found = re.fullmatch(r"<class '[\w.]+'>:<'(.+)'>", failure, re.DOTALL)
    return found[1] if found else failure


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
        identities: which node is which client's, where clients are known by their keys; a node that is in nobody's name may not join.
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
    identities: Identities | None = None
    waiting: Callable[[Sequence[int], int], None] = lambda joined, expected: None
    cards: dict[int, ClientCard] = field(default_factory=dict)
    nodes: dict[int, int] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    _asked: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)  # who was asked who it is, and when, by message
    _tries: dict[int, int] = field(default_factory=dict, init=False)
    _rivals: dict[int, ClientCard] = field(default_factory=dict, init=False)  # who said to be a client that is there already

    def __post_init__(self) -> None:
        self.exchange = Exchange(self.grid, self.note, self.name)

    def name(self, node: int) -> str:
        """What people call a node."""
        return next((f"client {client_id}" for client_id, own in self.nodes.items() if own == node), f"node {node}")

    def client_ids(self) -> list[int]:
        """The clients that have joined and are there, ascending."""
        return sorted(self.nodes)

    def rows(self) -> dict[int, int]:
        """Training rows of each client that is there."""
        return {client_id: self.cards[client_id].num_train for client_id in self.client_ids()}

    def refresh(self, seconds: float) -> None:
        """Drop clients whose node has left; ask new nodes who they are.

        Who has been asked earlier is not waited for, and who is new for `seconds` at most, or a quarter of a minute if that is less:
        no round waits for a client that needs long to read its data.
        """
        online = set(self.grid.get_node_ids())
        for client_id, node in list(self.nodes.items()):
            if node not in online:
                del self.nodes[client_id]
                self.note(f"client {client_id} has left")
        for here in (self.problems, self._rivals, self._tries):
            for node in set(here) - online:
                del here[node]
        self._asked = {message_id: asked for message_id, asked in self._asked.items() if asked[0] in online}
        for node, card in list(self._rivals.items()):
            if card.client_id not in self.nodes:
                del self._rivals[node]
                self._settle(node, card)
        patience = max(seconds, _LONGEST_JOIN)
        for message_id, (node, asked) in list(self._asked.items()):
            if time.monotonic() - asked > patience:
                del self._asked[message_id]
                self._try_again(node, f"no answer within {patience:g} s")
        new = sorted(online - {*self.nodes.values(), *self.problems, *self._rivals, *(node for node, _ in self._asked.values())})
        if new:
            self._ask(new)
        end = time.monotonic() + min(seconds, _JOIN_SECONDS)
        while self._asked:
            for reply in self.grid.pull_messages(list(self._asked)):
                self._answered(self._asked.pop(reply.metadata.reply_to_message_id)[0], reply)
            if time.monotonic() >= end or not set(new) & {node for node, _ in self._asked.values()}:
                return
            time.sleep(self.exchange.pause)

    def _ask(self, nodes: Sequence[int]) -> None:
        content = run_to_content(self.run)
        messages = [Message(content, node, MessageType.QUERY, ttl=lifetime(_LONGEST_JOIN), group_id="join") for node in nodes]
        for node, message_id in zip(nodes, self.grid.push_messages(messages), strict=False):
            if message_id:
                self._asked[message_id] = node, time.monotonic()
                self._tries[node] = self._tries.get(node, 0) + 1

    def _answered(self, node: int, reply: Message) -> None:
        if reply.has_error():
            self._try_again(node, _sentence(in_words(reply.error)))
        else:
            self._settle(node, reply.content)

    def _try_again(self, node: int, reason: str) -> None:
        """It has not answered, or Flower did in its place: not its own word, and so perhaps not the last one."""
        if node not in set(self.grid.get_node_ids()):
            return
        if self._tries[node] < _MOST_TRIES and not getattr(self.grid, "closed", False):
            self.note(f"a client could not say who it is ({reason}); it is asked again")
        else:
            self._cannot(node, reason)

    def _settle(self, node: int, said: ClientCard | RecordDict) -> None:
        try:
            self._admit(node, said if isinstance(said, ClientCard) else content_to_card(said))
        except UpdateError as error:
            self._cannot(node, str(error))

    def _cannot(self, node: int, reason: str) -> None:
        if node in set(self.grid.get_node_ids()):
            self.problems[node] = reason
            self.note(f"a client cannot take part: {reason}")

    def _admit(self, node: int, card: ClientCard) -> None:
        who = f"client {card.client_id}"
        if self.identities is not None and (owner := self.identities().get(node)) != card.client_id:
            whose = "a key that is not accepted" if owner is None else f"client {owner}'s key"
            raise UpdateError(f"a node with {whose} says that it is {who}; start each client with the key that was made for its client_id")
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
            self._rivals[node] = card
            self.note(
                f"{who} is already there on another node. If it has come back, it takes part as soon as Flower knows that the other node "
                "has left; otherwise give every client its own client_id"
            )
            return
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
            everybody = getattr(self.grid, "closed", False) and len(self.nodes) + len(self.problems) + len(self._rivals) >= len(
                list(self.grid.get_node_ids())
            )
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
