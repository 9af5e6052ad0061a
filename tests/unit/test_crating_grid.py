"""Answers from a SuperLink: each is fetched when it is asked for, and what is wrong with one is no other's matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from fedmap.flower.crates import crate, uncrate
from fedmap.flower.crating_grid import CratingGrid
from fedmap.flower.exchange import Exchange
from fedmap.flower.parcels import arrays_to_record


class Store:
    """What a SuperLink does when its objects are asked for; it holds answers, as their senders made objects of them."""

    def __init__(self) -> None:
        self.answers: list[tuple[Any, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.confirmed: list[str] = []

    def put(self, question: str, content: RecordDict) -> Message:
        """An answer comes in."""
        message = Message(content, 7, "train")
        message.metadata.__dict__.update(_reply_to_message_id=question, _src_node_id=3)
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            self.objects |= {object_id: thing.deflate() for object_id, thing in get_all_nested_objects(message).items()}
            self.answers.append((message_to_proto(remove_content_from_message(message)), get_object_tree(message)))
        return message

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        protos, trees = zip(*self.answers, strict=True)
        self.answers = []
        return PullAppMessagesResponse(messages_list=protos, message_object_trees=trees)

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        self.asked.append(request.object_id)
        content = self.objects.get(request.object_id)
        return PullObjectResponse(object_found=content is not None, object_available=True, object_content=content or b"")

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> None:
        self.confirmed.append(request.message_object_id)


@pytest.fixture(autouse=True)
def inside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which Flower's messages know."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def grid_with(store: Store) -> CratingGrid:
    grid = HttpGrid(token="t")
    grid._client = store  # type: ignore[assignment]
    grid.set_run(Run.create_empty(1))
    return CratingGrid(grid)


def content_of(number: int) -> RecordDict:
    weights = {"large": np.full(3 << 19, number, np.float32), "small": np.arange(5.0), "zeros": np.zeros(3 << 19, np.float32)}
    return RecordDict({"weights": arrays_to_record(weights), "client": ConfigRecord({"client-id": number})})


def test_an_answer_is_whole_and_is_fetched_when_it_is_asked_for() -> None:
    store = Store()
    for number in (1, 2):
        store.put(f"question {number}", crate(content_of(number)))
    answers = iter(grid_with(store).pull_messages(["question 1", "question 2"]))
    first = next(answers)
    seen = len(store.asked)
    assert len(store.confirmed) == 1
    second = next(answers)
    assert len(store.asked) > seen
    assert next(answers, None) is None
    for number, answer in enumerate((first, second), start=1):
        assert answer.metadata.reply_to_message_id == f"question {number}"
        assert answer.metadata.message_id == store.confirmed[number - 1]
        found, expected = uncrate(answer.content), content_of(number)
        assert {name: a.data for name, a in found["weights"].items()} == {name: a.data for name, a in expected["weights"].items()}
        assert found["client"] == expected["client"]


def test_flower_itself_reads_the_same() -> None:
    store, other = Store(), Store()
    for one in (store, other):
        one.put("question", crate(content_of(1)))
    (ours,), (flowers,) = grid_with(store).pull_messages(["question"]), grid_with(other)._grid.pull_messages(["question"])
    assert ours.content.object_id == flowers.content.object_id


def test_an_answer_without_records_and_one_without_arrays_come_too() -> None:
    store = Store()
    store.put("a", RecordDict())
    store.put("b", RecordDict({"client": ConfigRecord({"client-id": 1})}))
    assert [len(answer.content) for answer in grid_with(store).pull_messages(["a", "b"])] == [0, 1]


def test_what_is_wrong_with_one_answer_is_no_other_ones_matter() -> None:
    store = Store()
    for number in range(4):
        store.put(str(number), crate(content_of(number)))
    trees = [tree for _, tree in store.answers]
    del store.objects[trees[1].children[0].object_id]
    store.objects[trees[2].children[0].object_id] = b"nonsense"
    answers = list(grid_with(store).pull_messages(["0", "1", "2", "3"]))
    assert [answer.metadata.reply_to_message_id for answer in answers] == ["0", "1", "2", "3"]
    assert [answer.has_error() for answer in answers] == [False, True, True, False]
    assert "objects are not there" in str(answers[1].error.reason)
    assert "cannot be read" in str(answers[2].error.reason)


def test_an_exchange_hears_of_each() -> None:
    store = Store()
    store.put("1", crate(content_of(1)))
    store.put("2", crate(content_of(2)))
    store.objects[store.answers[0][1].children[0].object_id] = b"nonsense"
    grid = grid_with(store)
    grid.push_messages = lambda messages: ["1", "2"]  # type: ignore[method-assign]
    found = Exchange(grid).ask({11: Message(RecordDict(), 11, "train"), 12: Message(RecordDict(), 12, "train")}, 5.0)  # type: ignore[arg-type]
    assert found[11].content is None
    assert "cannot be read" in found[11].failure
    assert found[12].content is not None
