"""Sending to many nodes: every node gets exactly one answer, whatever becomes of it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict

from fedmap.flower import exchange as module
from fedmap.flower.exchange import Answer, Exchange, content_bytes
from fedmap.flower.local_grid import LocalGrid
from fedmap.flower.parcels import arrays_to_record

Behaviour = Callable[[Message], RecordDict | Error | None]


class Room(LocalGrid):
    """A grid whose nodes behave as told: they answer, fail, stay silent, or have left."""

    def __init__(self, nodes: dict[int, Behaviour]) -> None:
        super().__init__({node: {} for node in nodes}, workers=0)
        self.nodes, self.online = nodes, set(nodes)

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        ids = iter(super().push_messages([m for m in sent if m.metadata.dst_node_id in self.online]))
        return [next(ids) if m.metadata.dst_node_id in self.online else "" for m in sent]

    def _work(self) -> None:
        if self._waiting:
            (message,) = self._waiting.popleft()
            answer = self.nodes[message.metadata.dst_node_id](message)
            if isinstance(answer, Error) or answer is not None:
                self._replies[message.metadata.message_id] = Message(answer, reply_to=message)


def echo(message: Message) -> RecordDict:
    return RecordDict({"from": ConfigRecord({"node": message.metadata.dst_node_id})})


def silent(message: Message) -> None:
    return None


def failing(message: Message) -> Error:
    return Error(code=2, reason="out of memory")


def ask(room: Room, nodes: Iterable[int], seconds: float = 5.0) -> tuple[dict[int, Answer], list[int]]:
    order: list[int] = []
    told: dict[int, Answer] = {}

    def tell(node: int, answer: Answer) -> None:
        order.append(node)
        told[node] = answer

    messages = {node: Message(RecordDict(), node, MessageType.TRAIN, ttl=60) for node in nodes}
    answers = Exchange(room).ask(messages, seconds, tell)
    assert {node: replace(answer, content=None) for node, answer in told.items()} == answers, "contents are told and not kept"
    return told, order


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ONLINE_SECONDS", 0.05)


def test_each_node_gets_its_own_answer_and_is_told_once() -> None:
    answers, order = ask(Room(dict.fromkeys((11, 12, 13), echo)), (13, 11, 12))
    assert {node: answer.content["from"]["node"] for node, answer in answers.items() if answer.content} == {11: 11, 12: 12, 13: 13}
    assert order == [13, 11, 12]
    assert all(answer.failure == "" and answer.seconds >= 0 for answer in answers.values())


def test_an_error_is_an_answer_with_its_reason() -> None:
    answers, order = ask(Room({1: failing, 2: echo}), (1, 2))
    assert answers[1].content is None
    assert answers[1].failure == "out of memory"
    assert answers[2].content is not None
    assert sorted(order) == [1, 2]


def test_nobody_waits_longer_than_the_deadline() -> None:
    started = time.monotonic()
    answers, order = ask(Room({1: silent, 2: echo}), (1, 2), seconds=0.4)
    assert 0.3 < time.monotonic() - started < 5
    assert answers[1] == Answer(None, "no answer within 0.4 s (runtime.round_seconds)", answers[1].seconds)
    assert answers[2].content is not None
    assert sorted(order) == [1, 2]


def test_a_node_that_leaves_is_not_waited_for() -> None:
    room = Room({1: silent, 2: echo})

    def leave(message: Message) -> None:
        room.online.discard(1)

    room.nodes[1] = leave
    started = time.monotonic()
    answers, _ = ask(room, (1, 2), seconds=60)
    assert time.monotonic() - started < 10
    assert answers[1].failure == "the client left before it answered"
    assert answers[2].content is not None


def test_a_node_that_is_missing_for_a_moment_may_still_answer() -> None:
    looks: list[int] = []

    class Hiccup(Room):
        def get_node_ids(self) -> Iterable[int]:
            looks.append(1)
            return [] if len(looks) == 1 else [1]

        def _work(self) -> None:
            if len(looks) >= 3:
                super()._work()

    room = Hiccup({1: echo})
    answers, _ = ask(room, (1,), seconds=20)
    assert answers[1].content is not None


def test_a_message_that_could_not_be_sent_is_an_answer_too() -> None:
    room = Room({1: echo, 2: echo})
    room.online.discard(2)
    answers, _ = ask(room, (2, 1))
    assert "could not be sent" in answers[2].failure
    assert answers[1].content is not None


class Distant(Room):
    """A grid that cannot cancel, like Flower's; a node answers a message when its time has come."""

    cancel = None  # type: ignore[assignment]

    def __init__(self, answers_after: dict[int, list[float]]) -> None:
        super().__init__(dict.fromkeys(answers_after, echo))
        self.after = answers_after
        self.got: dict[int, list[str]] = {node: [] for node in answers_after}
        self.due: list[tuple[float, Message]] = []

    def _work(self) -> None:
        while self._waiting:
            (message,) = self._waiting.popleft()
            node = message.metadata.dst_node_id
            self.got[node].append(message.metadata.group_id)
            self.due.append((time.monotonic() + self.after[node].pop(0), message))
        for when, message in list(self.due):
            if time.monotonic() >= when:
                self.due.remove((when, message))
                self._replies[message.metadata.message_id] = Message(echo(message), reply_to=message)


def rounds_of(room: Distant, seconds: list[float]) -> tuple[list[dict[int, Answer]], list[str]]:
    said: list[str] = []
    office = Exchange(room, said.append, lambda node: f"client {node}")
    found = []
    for number, limit in enumerate(seconds, start=1):
        messages = {node: Message(RecordDict(), node, MessageType.TRAIN, ttl=60, group_id=str(number)) for node in room.after}
        found.append(office.ask(messages, limit))
    return found, said


def test_a_late_answer_is_refused_and_said_and_the_straggler_gets_no_pile_of_work() -> None:
    room = Distant({1: [0.0] * 3, 2: [0.7, 0.0, 0.0]})
    (first, second, third), said = rounds_of(room, [0.4, 5.0, 5.0])
    assert first[2].failure == "no answer within 0.4 s (runtime.round_seconds)"
    assert second[2].content is not None
    assert third[2].content is not None
    assert room.got == {1: ["1", "2", "3"], 2: ["1", "2", "3"]}
    assert said[0] == "client 2 still works on round 1: it is asked when it has answered that"
    assert said[1].startswith("client 2 answered round 1 after 1 s, ")
    assert "too late: its answer is not used. A larger runtime.round_seconds would have waited for it" in said[1]
    assert len(said) == 2


def test_a_straggler_that_stays_silent_is_asked_again_later() -> None:
    room = Distant({1: [60.0, 0.0]})
    answers, _ = rounds_of(room, [0.2, 0.3, 1.0])
    assert [answer[1].failure for answer in answers] == [
        "no answer within 0.2 s (runtime.round_seconds)",
        "still busy with round 1 after 0.3 s (runtime.round_seconds)",
        "",
    ]
    assert room.got == {1: ["1", "3"]}


def test_what_a_local_grid_was_asked_in_vain_is_not_done_later() -> None:
    room = Room({1: silent, 2: silent})
    answers, _ = ask(room, (1, 2), seconds=0.05)
    assert all("no answer" in answer.failure for answer in answers.values())
    assert not room._waiting


def test_nobody_to_ask() -> None:
    assert ask(Room({}), ()) == ({}, [])


def test_bytes_are_those_of_all_arrays() -> None:
    one = arrays_to_record({"w": np.zeros((10, 10), np.float32)})
    content = RecordDict({"weights": one, "extra.control": one, "client": ConfigRecord({"client-id": 0})})
    assert content_bytes(content) == 2 * len(one["w"].data)
    assert content_bytes(content) >= 2 * 400


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_node_whose_answer_the_network_has_lost_is_asked_again(times: int) -> None:
    asked: list[str] = []

    def lost(message: Message) -> RecordDict | Error:
        asked.append(message.metadata.message_id)
        return Error(code=3, reason="Reply message objects are unavailable") if len(asked) <= times else echo(message)

    answers, _ = ask(Room({11: lost, 12: echo}), (11, 12))
    assert len(asked) == len(set(asked)) == min(times + 1, 3), "each time with a message of its own"
    assert bool(answers[11].content) == (times < 3)
    assert answers[12].content
    if times == 3:
        assert "lost on its way, 3 times" in answers[11].failure
