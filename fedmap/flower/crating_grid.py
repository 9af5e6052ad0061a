"""Flower's grid over a SuperLink, for models that fill the memory: messages go out with crates, and answers come in one at a time.

Flower's own grid makes all messages that have come before it returns the first, each from a whole set of chunks that lies beside it until it is
done. Here the next one is fetched when the last has been taken, array by array.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, cast

import httpx
from flwr.app import ArrayRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Metadata as SentMetadata
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import InflatableObject, iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.superlink.grid.http_grid import HttpGrid

from fedmap.flower.crates import crate
from fedmap.flower.exchange import content_bytes
from fedmap.memory import give_back


class CratingGrid:
    """Flower's grid with crates; what comes back is opened where it is read (`fedmap.flower.exchange`)."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; those that share a content share its crate."""
        crates: dict[int, RecordDict] = {}
        sent, size = list(messages), 0
        for message in sent:
            content = message.content
            if any(isinstance(record, ArrayRecord) for record in content.values()):
                size = max(size, content_bytes(content))
                message.content = crates.setdefault(id(content), crates.get(id(content)) or crate(content))
        ids = self._grid.push_messages(sent)
        give_back(size)  # Flower queues the bytes of everything that it sends
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers that have come, each fetched when it is asked for; an error in place of one that cannot be had."""
        if not isinstance(self._grid, HttpGrid):
            return self._grid.pull_messages(message_ids)
        return _pulled(self._grid, list(message_ids))


def _pulled(grid: HttpGrid, message_ids: list[str]) -> Iterator[Message]:
    found = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
    for sent, tree in zip(found.messages_list, found.message_object_trees, strict=True):
        yield _message(grid, sent.metadata, tree)  # and no name for it: it goes when the next one is asked for


def _message(grid: HttpGrid, about: SentMetadata, tree: ObjectTree) -> Message:
    try:
        message = cast(Message, _inflated(grid, tree))
        grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=grid.node, run_id=grid.run.run_id, message_object_id=about.message_id)
        )
    except ObjectPullError as error:
        return _error(grid, about, ErrorCode.MESSAGE_UNAVAILABLE, f"the answer's objects are not there: {error}")
    except (OSError, httpx.HTTPError):  # the SuperLink cannot be reached, which is no client's doing
        raise
    except Exception as error:  # Flower's readers raise all sorts of errors on a stranger's bytes
        return _error(grid, about, ErrorCode.UNKNOWN, f"the answer cannot be read: {error!r:.200}")
    message.metadata.__dict__["_message_id"] = about.message_id
    return message


def _inflated(grid: HttpGrid, tree: ObjectTree) -> InflatableObject:
    """The object at the root; whatever has children but no grandchildren (an array and its chunks) is made first, one after the other.

    The largest comes first: while Flower makes an array it is there three times, which matters least while nothing else is.
    """
    pull = make_pull_object_fn_protobuf(grid._runtime_client.PullObject, grid.node, grid.run.run_id)
    made: dict[str, InflatableObject] = {}
    within: set[str] = set()
    for node in sorted(iterate_object_tree(tree), key=lambda node: -len(node.children)):
        if node.object_id not in made and node.children and not any(child.children for child in node.children):
            ids = [child.object_id for child in iterate_object_tree(node)]
            made[node.object_id] = inflate_object_from_contents(node.object_id, pull_objects(list(dict.fromkeys(ids)), pull))
            within.update(ids)
    if tree.object_id in made:
        return made[tree.object_id]
    rest = dict.fromkeys(node.object_id for node in iterate_object_tree(tree) if node.object_id not in within)
    return inflate_object_from_contents(tree.object_id, pull_objects(list(rest), pull), objects=made)


def _error(grid: HttpGrid, about: SentMetadata, code: int, reason: str) -> Message:
    node = grid.node.node_id
    return make_message(
        metadata=Metadata(
            run_id=grid.run.run_id,
            message_id="",
            src_node_id=node,
            dst_node_id=node,
            message_type=SYSTEM_MESSAGE_TYPE,
            group_id="",
            ttl=0,
            reply_to_message_id=about.reply_to_message_id,
            created_at=time.time(),
        ),
        error=Error(code=code, reason=reason),
    )
