"""Send one message to each of several nodes and collect the answers: with a deadline, and without waiting for the dead.

What happens to a straggler: at the deadline its answer is given up. A grid that can cancel (the local one) ends its work. Otherwise it
goes on, its answer is refused and noted when it comes, and the node gets no further message before that, so that messages do not pile up
before a client that is too slow: the next one waits for it, within that round's own deadline. A node that stays silent for as long
again is taken to have lost the message, and is asked as if nothing had been.

What happens to an answer that the network has lost on its way up, which Flower tells: the node is asked again. It starts from what it
kept before the round, so its second answer is the first one, bit for bit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import httpx
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedmap.errors import UpdateError
from fedmap.flower.crates import uncrate
from fedmap.flower.parcels import of_kind, size_of
from fedmap.memory import give_back, large_blocks_apart

_POLL_SECONDS = 0.25  # between looks at a grid that answers at once; a grid that waits by itself says poll_seconds = 0
_TRANSPORT = (OSError, httpx.HTTPError)  # the SuperLink cannot be reached, which is no client's doing
_ONLINE_SECONDS = 5.0  # how often the grid is asked which nodes are still there
_NOT_SENT = "the message could not be sent (too large for the SuperLink, or the client has left)"
_LOST_ON_THE_WAY = (3, 4)  # Flower's MESSAGE_UNAVAILABLE and REPLY_MESSAGE_UNAVAILABLE: the network was cut while an answer went up
_AGAIN = 2  # times that a node is asked once more in such a case


@dataclass(frozen=True)
class Answer:
    """What came of one message.

    Attributes:
        content: the reply's content, or None.
        failure: why there is none; empty where there is.
        seconds: from sending to this answer.
    """

    content: RecordDict | None
    failure: str
    seconds: float


@dataclass(frozen=True)
class _Overdue:
    """A message whose deadline has passed: to whom it went, about what, when (monotonic s), and how long it was waited for."""

    node: int
    subject: str
    sent: float
    seconds: float


def in_words(error: Error) -> str:
    """What Flower says in a client's place, with what that means where its sentence does not tell."""
    reason = error.reason or f"Flower error {error.code}"
    if error.code in _LOST_ON_THE_WAY:
        return f"the client's answer was lost on its way, {_AGAIN + 1} times: the network between client and SuperLink fails ({reason})"
    if "Node Unavailable" in reason:
        return f"the client cannot be reached any more ({reason})"
    if "stopped responding" in reason:
        return f"the client's process has ended without an answer, or hangs ({reason}); its supernode.log says more"
    return reason


def lifetime(seconds: float) -> float:
    """How long Flower has to keep a message with such a deadline, in seconds: late answers are to be told from lost ones."""
    return 2 * seconds + 60


@dataclass
class Exchange:
    """The server's messages of one run, and what is still on its way from stragglers.

    Attributes:
        grid: Flower's grid. One with a method `cancel(message ids)` ends what it is working on.
        note: told of answers that come too late.
        name: what people call a node, e.g. "client 3".
    """

    grid: Grid
    note: Callable[[str], None] = lambda text: None
    name: Callable[[int], str] = lambda node: f"node {node}"
    _overdue: dict[str, _Overdue] = field(default_factory=dict, init=False)

    @property
    def pause(self) -> float:
        """Seconds to wait between two looks at the grid."""
        return float(getattr(self.grid, "poll_seconds", _POLL_SECONDS))

    @large_blocks_apart()
    def ask(
        self, messages: Mapping[int, Message], seconds: float, on_answer: Callable[[int, Answer], None] | None = None
    ) -> dict[int, Answer]:
        """Send the messages and wait until every node has answered, has left, or the time is over.

        Args:
            messages: one message for each node id.
            seconds: the deadline, from now.
            on_answer: called with (node id, answer) as each answer comes in.

        Returns:
            An answer for every node that was asked; without its content where `on_answer` has been told, so that no round is held twice.
        """
        started = time.monotonic()
        answers: dict[int, Answer] = {}
        pending: dict[str, int] = {}
        asked: Counter[int] = Counter()

        def settle(node: int, content: RecordDict | None, failure: str = "") -> None:
            answer = Answer(content, failure, time.monotonic() - started)
            if on_answer is not None:
                on_answer(node, answer)
                answer = replace(answer, content=None)
            answers[node] = answer

        def send(nodes: list[int], again: bool = False) -> None:
            ids = list(self.grid.push_messages([_anew(messages[node]) if again else messages[node] for node in nodes]))
            for node, message_id in zip(nodes, [*ids, *[""] * (len(nodes) - len(ids))], strict=True):
                if message_id:
                    pending[message_id] = node
                else:
                    settle(node, None, _NOT_SENT)

        held = self._busy(messages)
        for node, subject in held.items():
            self.note(f"{self.name(node)} still works on {subject}: it is asked when it has answered that")
        send([node for node in messages if node not in held])
        asked_online = started
        suspects: set[int] = set()
        while pending or held:
            for about, reply in _replies(self.grid, [*pending, *self._overdue]):
                if about in self._overdue:
                    self._came_late(about, reply)
                elif about not in pending:  # it answers what was not asked here, or what has been answered
                    continue
                elif isinstance(reply, str):
                    settle(pending.pop(about), None, reply)
                elif reply.has_error():
                    node = pending.pop(about)
                    if reply.error.code in _LOST_ON_THE_WAY and asked[node] < _AGAIN:
                        asked[node] += 1
                        self.note(f"{self.name(node)}'s answer to {_subject(messages[node])} was lost on its way: it is asked again")
                        send([node], again=True)
                    else:
                        settle(node, None, in_words(reply.error))
                else:
                    size = content_bytes(reply.content)
                    settle(pending.pop(about), *_content(reply))
                    reply = ""  # it makes room for the next one
                    give_back(size)
            late = {overdue.node for overdue in self._overdue.values()}
            if free := [node for node in held if node not in late]:
                for node in free:
                    del held[node]
                send(free)
            now = time.monotonic()
            if (pending or held) and now - started > seconds:
                self._give_up(pending, messages, started, seconds)
                for node in pending.values():
                    settle(node, None, f"no answer within {seconds:g} s (runtime.round_seconds)")
                for node, subject in held.items():
                    settle(node, None, f"still busy with {subject} after {seconds:g} s (runtime.round_seconds)")
                break
            if (pending or held) and now - asked_online > _ONLINE_SECONDS:
                asked_online = now
                online = set(self.grid.get_node_ids())
                gone = {node for node in [*pending.values(), *held] if node not in online}
                lost = gone & suspects  # missing twice in a row: not a hiccup
                for message_id in [message_id for message_id, node in pending.items() if node in lost]:
                    settle(pending.pop(message_id), None, "the client left before it answered")
                for node in [node for node in held if node in lost]:
                    del held[node]
                    settle(node, None, f"the client left before it had answered {messages[node].metadata.group_id or 'the one before'}")
                self._overdue = {m: overdue for m, overdue in self._overdue.items() if overdue.node not in lost}
                suspects = gone
            if (pending or held) and self.pause:  # even a sleep of no seconds gives the processor away
                time.sleep(self.pause)
        return answers

    def _busy(self, messages: Mapping[int, Message]) -> dict[int, str]:
        """The nodes that have not answered an earlier message, and which one, so far as it may still be answered."""
        now = time.monotonic()
        self._overdue = {m: overdue for m, overdue in self._overdue.items() if now - overdue.sent <= lifetime(overdue.seconds)}
        return {
            overdue.node: overdue.subject
            for overdue in self._overdue.values()
            if overdue.node in messages and now - overdue.sent <= 2 * overdue.seconds
        }

    def _give_up(self, pending: Mapping[str, int], messages: Mapping[int, Message], sent: float, seconds: float) -> None:
        cancel = getattr(self.grid, "cancel", None)
        if callable(cancel):
            cancel(list(pending))
            return
        for message_id, node in pending.items():
            self._overdue[message_id] = _Overdue(node, _subject(messages[node]), sent, seconds)

    def _came_late(self, message_id: str, reply: Message | str) -> None:
        overdue = self._overdue.pop(message_id)
        who, took = self.name(overdue.node), time.monotonic() - overdue.sent
        if isinstance(reply, str) or reply.has_error():
            reason = reply if isinstance(reply, str) else reply.error.reason or reply.error.code
            self.note(f"{who} failed in {overdue.subject} after its deadline: {reason}")
            return
        self.note(
            f"{who} answered {overdue.subject} after {took:.0f} s, {took - overdue.seconds:.0f} s too late: its answer is not used. "
            "A larger runtime.round_seconds would have waited for it"
        )


def _anew(message: Message) -> Message:
    """The same message once more; a message that has been sent has its number."""
    about = message.metadata
    return Message(message.content, about.dst_node_id, about.message_type, ttl=about.ttl, group_id=about.group_id)


def _subject(message: Message) -> str:
    group = str(message.metadata.group_id or "")
    return f"round {group}" if group.isdigit() else f"the message {group!r}"


def _replies(grid: Grid, asked: list[str]) -> Iterator[tuple[str, Message | str]]:
    """The replies that there are, each with the message that it answers; a sentence in place of one that cannot be read.

    A grid may fetch each when it is asked for, so none is held here. Flower's own makes messages of all that clients have sent while
    it fetches them, and raises whatever a malformed one leads to. Then each is fetched alone, so that the error is laid at its sender's door.
    """
    try:
        yield from map(_with_question, grid.pull_messages(asked))
        return
    except _TRANSPORT:
        raise
    except Exception:
        pass
    for message_id in asked:
        try:
            for reply in grid.pull_messages([message_id]):
                yield message_id, reply
        except _TRANSPORT:
            raise
        except Exception as error:  # Flower's readers raise all sorts of errors on a stranger's bytes
            yield message_id, f"the answer cannot be read: {error!r:.200}"


def _with_question(reply: Message) -> tuple[str, Message]:
    return reply.metadata.reply_to_message_id, reply


def _content(reply: Message) -> tuple[RecordDict | None, str]:
    """What a reply holds, or why it cannot be read."""
    try:
        return uncrate(reply.content), ""
    except UpdateError as error:
        return None, str(error)


def content_bytes(content: RecordDict) -> int:
    """Bytes of all arrays in a message's content."""
    return sum(size_of(array) for record in of_kind(content, ArrayRecord).values() for array in record.values())
