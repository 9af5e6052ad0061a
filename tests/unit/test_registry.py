"""Who takes part: joining, leaving, coming back, and the reasons why somebody cannot."""

import re
import time
from collections.abc import Iterable
from dataclasses import replace

import pytest
from flwr.app import Error, Message, RecordDict

from fedmap.errors import QuorumError
from fedmap.flower import registry as module
from fedmap.flower.local_grid import LocalGrid
from fedmap.flower.registry import Registry, quorum_of
from fedmap.flower.wire import ClientCard, RunInfo, card_to_content, content_to_run, problem_to_content

RUN = RunInfo("run", 1, 3)
CARD = ClientCard(0, 10, 2, 2, ("Drama", "War"), {"text": 1.0}, ("w", "b"), "towers-1")


class Hall(LocalGrid):
    """A grid with nodes that say who they are; nodes may be added and removed."""

    closed = False

    def __init__(self) -> None:
        super().__init__({}, workers=0)
        self.people: dict[int, RecordDict | Error] = {}
        self.asked: list[int] = []

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.people)

    def _work(self) -> None:
        if self._waiting:
            (message,) = self._waiting.popleft()
            node = message.metadata.dst_node_id
            assert content_to_run(message.content) == RUN
            self.asked.append(node)
            self._replies[message.metadata.message_id] = Message(self.people[node], reply_to=message)

    def enter(self, node: int, card: ClientCard) -> None:
        self.people[node] = card_to_content(card)


def hall_with(**cards: ClientCard) -> tuple[Hall, Registry, list[str]]:
    hall, said = Hall(), []
    for name, card in cards.items():
        hall.enter(int(name.removeprefix("node")), card)
    return hall, Registry(hall, RUN, ("Drama", "War"), ("w", "b"), "towers-1", said.append), said


@pytest.mark.parametrize(
    ("count", "quorum", "least"),
    [(4, 0.5, 2), (5, 0.5, 3), (3, 1.0, 3), (3, 0.0, 1), (1, 0.5, 1), (10, 0.3, 3), (10, 0.7, 7), (3, 0.34, 2), (0, 0.5, 1)],
)
def test_the_quorum_is_rounded_up_and_never_nobody(count: int, quorum: float, least: int) -> None:
    assert quorum_of(count, quorum) == least


def test_clients_join_and_are_asked_only_once() -> None:
    hall, registry, said = hall_with(node7=replace(CARD, client_id=2), node8=replace(CARD, client_id=0, num_train=5))
    registry.refresh(5)
    registry.refresh(5)
    assert registry.client_ids() == [0, 2]
    assert registry.nodes == {2: 7, 0: 8}
    assert registry.cards[0].num_train == 5
    assert hall.asked == [7, 8]
    assert said == ["client 2 has joined with 10 training rows", "client 0 has joined with 5 training rows"]


def test_a_client_leaves_and_comes_back_on_another_node() -> None:
    hall, registry, said = hall_with(node7=CARD)
    registry.refresh(5)
    del hall.people[7]
    registry.refresh(5)
    assert registry.client_ids() == []
    assert said[-1] == "client 0 has left"
    hall.enter(9, CARD)
    registry.refresh(5)
    assert registry.nodes == {0: 9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": ("War", "Drama")}, "client 0 has other labels than the server .*use the same labels.json"),
        ({"label_names": ("Drama",)}, r"other labels than the server \(1 against 2\)"),
        ({"model_names": ("w", "c")}, r"another model than the server \(first differing tensors \['b', 'c'\]\); use the same model"),
        ({"fingerprint": "towers-2"}, "other frozen tower weights.*use the same pretrained files"),
    ],
)
def test_a_client_that_does_not_fit_is_refused_with_a_reason_and_not_asked_again(change: dict[str, object], message: str) -> None:
    hall, registry, said = hall_with(node7=replace(CARD, **change))  # type: ignore[arg-type]
    registry.refresh(5)
    registry.refresh(5)
    assert registry.client_ids() == []
    assert hall.asked == [7]
    assert len(said) == 1
    assert re.search(message, said[0])


def test_one_identity_for_one_client() -> None:
    hall, registry, said = hall_with(node7=CARD, node8=replace(CARD, num_train=11))
    registry.refresh(5)
    registry.refresh(5)
    assert registry.nodes == {0: 7}
    assert said[1].startswith("client 0 is already there on another node.")
    assert said[1].endswith("otherwise give every client its own client_id")
    assert len(said) == 2, "said once"
    del hall.people[7]
    registry.refresh(5)
    assert registry.nodes == {0: 8}, "it had come back before the server knew that it had left"
    assert registry.rows() == {0: 11}
    assert hall.asked == [7, 8]


class Slow(Hall):
    """A hall where some nodes take their time to say who they are."""

    thinking: frozenset[int] = frozenset()

    def _work(self) -> None:
        if self._waiting and self._waiting[0][0].metadata.dst_node_id in self.thinking:
            self._waiting.rotate(-1)
        else:
            super()._work()


def test_no_round_waits_for_a_client_that_reads_its_data_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_JOIN_SECONDS", 0.05)
    hall, said = Slow(), []
    registry = Registry(hall, RUN, ("Drama", "War"), ("w", "b"), "towers-1", said.append)
    hall.enter(7, CARD)
    hall.enter(8, replace(CARD, client_id=1))
    hall.thinking = frozenset({8})
    started = time.monotonic()
    registry.refresh(60)
    assert registry.client_ids() == [0]
    registry.refresh(60)
    assert time.monotonic() - started < 5
    hall.thinking = frozenset()
    registry.refresh(60)
    assert registry.client_ids() == [0, 1]
    assert hall.asked == [7, 8], "each was asked once"


def test_a_client_for_which_flower_answers_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hall, registry, said = hall_with()
    hall.people[7] = Error(code=2, reason="the process was killed")
    registry.refresh(1)
    assert said == ["a client could not say who it is (the process was killed); it is asked again"]
    hall.enter(7, CARD)
    registry.refresh(1)
    assert registry.client_ids() == [0]
    monkeypatch.setattr(module, "_LONGEST_JOIN", 0.0)
    slow = Slow()
    registry = Registry(slow, RUN, ("Drama", "War"), ("w", "b"), "towers-1", said.append)
    slow.enter(9, CARD)
    slow.thinking = frozenset({9})
    for _ in range(4):
        registry.refresh(0.01)
        time.sleep(0.02)
    assert said[-1] == "a client cannot take part: no answer within 0.01 s"
    assert registry.problems == {9: "no answer within 0.01 s"}


def test_a_client_with_a_problem_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    hall, registry, said = hall_with()
    hall.people[7] = problem_to_content(3, FileNotFoundError("dataset/client_3/train.csv is missing"))
    hall.people[8] = Error(code=2, reason="crashed")
    with pytest.raises(QuorumError) as caught:
        registry.wait(2, 0.05, 0.5)
    text = str(caught.value)
    assert text.startswith("0 of 2 clients joined within 0.05 s, at least 1 are needed. Start clients with `python client_main.py")
    assert "\n  - FileNotFoundError: dataset/client_3/train.csv is missing" in text
    assert "\n  - crashed" in text
    assert any("a client cannot take part: FileNotFoundError" in sentence for sentence in said)


def test_a_client_that_was_refused_may_come_back_mended() -> None:
    hall, registry, _ = hall_with(node7=replace(CARD, fingerprint="other"))
    registry.refresh(5)
    del hall.people[7]
    registry.refresh(5)
    assert registry.problems == {}
    hall.enter(7, CARD)
    registry.refresh(5)
    assert registry.client_ids() == [0]


def test_waiting_ends_as_soon_as_all_are_there() -> None:
    _, registry, said = hall_with(node7=CARD, node8=replace(CARD, client_id=1))
    started = time.monotonic()
    registry.wait(2, 60, 1.0)
    assert time.monotonic() - started < 5
    assert not any("waiting" in sentence for sentence in said)


def test_after_the_limit_a_quorum_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    _, registry, said = hall_with(node7=CARD)
    registry.wait(2, 0.1, 0.5)
    assert said[-1] == "going on with 1 of 2 clients: the others did not join within 0.1 s"
    assert any(sentence.startswith("waiting for clients: 1 of 2 have joined") for sentence in said)
    with pytest.raises(QuorumError, match="1 of 2 clients joined within 0.1 s, at least 2 are needed"):
        registry.wait(2, 0.1, 0.6)


def test_a_client_that_joins_while_others_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    hall, registry, _ = hall_with(node7=CARD)
    looks = []

    def node_ids() -> Iterable[int]:
        looks.append(1)
        if len(looks) == 5:
            hall.enter(8, replace(CARD, client_id=1))
        return sorted(hall.people)

    monkeypatch.setattr(hall, "get_node_ids", node_ids)
    registry.wait(2, 30, 1.0)
    assert registry.client_ids() == [0, 1]


def test_nobody_is_waited_for_who_cannot_come() -> None:
    hall, registry, said = hall_with(node7=CARD)
    hall.closed = True
    hall.people[8] = problem_to_content(1, FileNotFoundError("dataset/client_1/train.csv is missing"))
    started = time.monotonic()
    registry.wait(2, 600, 0.5)
    assert said[-1] == "going on with 1 of 2 clients: the others did not join"
    with pytest.raises(QuorumError, match=r"(?s)^1 of 2 clients joined, at least 2 are needed.*client_1/train.csv is missing"):
        registry.wait(2, 600, 1.0)
    assert time.monotonic() - started < 5


def test_a_server_that_goes_on_waits_for_the_clients_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    hall, registry, said = hall_with(node7=CARD, node8=replace(CARD, client_id=1))
    registry = replace(registry, before={0: 10, 2: 40})
    registry.wait(2, 0.1, 0.5, also={0, 2})
    assert "waiting for clients: 2 of 2 have joined (of those from before the stop, client 2 is missing), 0 s left" in said
    assert said[-1].startswith("going on with 2 of 2 clients")
    assert said[-1].endswith("(of those from before the stop, client 2 is missing)")
    hall.enter(9, replace(CARD, client_id=2))
    registry.wait(2, 60, 0.5, also={0, 2})
    assert registry.rows() == {0: 10, 1: 10, 2: 10}
    assert said[-1] == "client 2 had 40 training rows when the run was stopped: its part from here on is another one"
