"""Send one message to each of several nodes and collect the answers: with a deadline, and without waiting for the dead."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

_POLL_SECONDS = 0.25  # between looks at a grid that answers at once; a grid that waits by itself says poll_seconds = 0
_ONLINE_SECONDS = 5.0  # how often the grid is asked which nodes are still there


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


def exchange(
    grid: Grid,
    messages: Mapping[int, Message],
    seconds: float,
    on_answer: Callable[[int, Answer], None] | None = None,
) -> dict[int, Answer]:
    """Send the messages and wait until every node has answered, has left, or the time is over.

    Args:
        grid: Flower's grid.
        messages: one message for each node id.
        seconds: the deadline, from now.
        on_answer: called with (node id, answer) as each answer comes in.

    Returns:
        An answer for every node that was asked.
    """
    started = time.monotonic()
    nodes = list(messages)
    pause = float(getattr(grid, "poll_seconds", _POLL_SECONDS))
    answers: dict[int, Answer] = {}

    def settle(node: int, content: RecordDict | None, failure: str = "") -> None:
        answers[node] = Answer(content, failure, time.monotonic() - started)
        if on_answer is not None:
            on_answer(node, answers[node])

    ids = list(grid.push_messages([messages[node] for node in nodes]))
    pending: dict[str, int] = {}
    for node, message_id in zip(nodes, [*ids, *[""] * (len(nodes) - len(ids))], strict=True):
        if message_id:
            pending[message_id] = node
        else:
            settle(node, None, "the message could not be sent (too large for the SuperLink, or the client has left)")
    asked_online = started
    suspects: set[int] = set()
    while pending:
        for reply in grid.pull_messages(list(pending)):
            node = pending.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                settle(node, None, reply.error.reason or f"Flower error {reply.error.code}")
            else:
                settle(node, reply.content)
        now = time.monotonic()
        if pending and now - started > seconds:
            for node in pending.values():
                settle(node, None, f"no answer within {seconds:g} s")
            break
        if pending and now - asked_online > _ONLINE_SECONDS:
            asked_online = now
            online = set(grid.get_node_ids())
            gone = {node for node in pending.values() if node not in online}
            for message_id, node in list(pending.items()):
                if node in gone & suspects:  # missing twice in a row: not a hiccup
                    del pending[message_id]
                    settle(node, None, "the client left before it answered")
            suspects = gone
        if pending:
            time.sleep(pause)
    return answers


def content_bytes(content: RecordDict) -> int:
    """Bytes of all arrays in a message's content."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())
