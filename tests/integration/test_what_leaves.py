"""Everything that clients send, captured from whole runs and compared with the table in docs/guides/security.md, name by name."""

import re
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Context, Message, RecordDict

from fedmap.config import PROJECT
from fedmap.errors import ConfigError, DataError, StorageError, UpdateError
from fedmap.flower.client_app import _for_the_server
from fedmap.flower.local_grid import LocalGrid
from tests.movie_runs import MovieRun, movie_data, train_on_movies

TENSORS = "the model's shared tensors"
ROW = re.compile(r"^\| (\w+) \| (`[^|]+`) \| ([^|]+) \| (numbers|names|arrays) \|$", re.MULTILINE)
MEASURED = ("query", "train", "evaluate")

Rule = tuple[str, str, str, str]  # message, record, key, kind


def documented() -> list[Rule]:
    """The table's lines, one for each record and key."""
    text = (PROJECT / "docs/guides/security.md").read_text(encoding="utf-8")
    rules = []
    for message, records, keys, kind in ROW.findall(text):
        names = re.findall(r"`([^`]+)`", keys) or [keys]
        rules += [(message, record, key, kind) for record in re.findall(r"`([^`]+)`", records) for key in names]
    assert len(rules) > 30, "the table is where it is looked for"
    return rules


class Ear:
    """Keeps every message of every client, and what the server had sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[Message] = []
        self.answers: list[tuple[str, RecordDict]] = []
        push, keep = LocalGrid.push_messages, LocalGrid._keep

        def pushed(grid: LocalGrid, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            self.sent += messages
            return push(grid, messages)

        def kept(grid: LocalGrid, message: Message, reply: Message, state: RecordDict) -> None:
            assert reply.has_content()
            self.answers.append((message.metadata.message_type, reply.content))
            keep(grid, message, reply, state)

        monkeypatch.setattr(LocalGrid, "push_messages", pushed)
        monkeypatch.setattr(LocalGrid, "_keep", kept)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of the model that the server sent."""
        found: dict[str, tuple[int, ...]] = {}
        for message in self.sent:
            if message.has_content() and "weights" in message.content.array_records:
                found |= {name: tuple(array.shape) for name, array in message.content.array_records["weights"].items()}
        return found


def judged(message: str, content: RecordDict, rules: list[Rule], shapes: dict[str, tuple[int, ...]]) -> tuple[set[Rule], set[str]]:
    """The table's lines that allow what is in a message, and what none allows."""
    used, wrong = set(), set()
    for record, values in content.items():
        for key, value in values.items():
            allowed = {
                rule
                for rule in rules
                if rule[0] in (message, "all")
                and fnmatchcase(record, rule[1])
                and fits(key, rule[2], shapes)
                and is_kind(value, rule[3], key, shapes if rule[2] == TENSORS else None)
            }
            used |= allowed
            if not allowed:
                wrong.add(f"{message} {record} {key}: {type(value).__name__}")
    return used, wrong


def fits(key: str, rule: str, shapes: dict[str, tuple[int, ...]]) -> bool:
    return key in shapes if rule == TENSORS else fnmatchcase(key, rule)


def is_kind(value: Any, kind: str, key: str, shapes: dict[str, tuple[int, ...]] | None) -> bool:
    if kind == "arrays":
        if not isinstance(value, Array):
            return False
        return shapes is None or (tuple(value.shape) == shapes[key] and np.issubdtype(np.dtype(value.dtype), np.number))
    several = value if isinstance(value, list) else [value]
    return all(isinstance(v, str) if kind == "names" else isinstance(v, (int, float)) for v in several)


@pytest.fixture(scope="module")
def movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return movie_data(tmp_path_factory.mktemp("movies"), 120)


SETTINGS = ("num_rounds=1", "num_epochs=1", "hooks.after_round=null")


RUNS = (
    ("strategy=modality_aware",),
    ("strategy=scaffold", "training.num_updates=2"),
    ("strategy=fedmap",),
    ("strategy=fedavg", "compression.up=int8"),
    ("strategy=fedavg", "privacy=client"),
)
UNUSED = {("train", "signals", "custom.*"), ("all", "problem", "client-id"), ("all", "problem", "kind"), ("all", "problem", "message")}


def test_nothing_leaves_that_is_not_in_the_table_and_the_table_says_no_more(
    movies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = documented()
    assert len(rules) == len(set(rules))
    used: set[Rule] = set()
    for number, overrides in enumerate(RUNS):
        with monkeypatch.context() as patch:
            ear = Ear(patch)
            run = train_on_movies(tmp_path, str(number), movies, *SETTINGS, *overrides)
        assert run.history.status == "finished"
        shapes = ear.shapes()
        assert Counter(kind for kind, _ in ear.answers) == dict.fromkeys(MEASURED, 5)
        if "privacy=client" in overrides:  # counts would not be private
            assert all("counts" not in key for _, content in ear.answers for key in content)
        wrong = set()
        for kind, content in ear.answers:
            found, problems = judged(kind, content, rules, shapes)
            used |= found
            wrong |= problems
        assert wrong == set(), f"in a run with {overrides}"
        assert_no_data(run, movies, ear)
    assert {rule[:3] for rule in set(rules) - used} == UNUSED, "what only a user's hook or a failure sends"


def assert_no_data(run: MovieRun, movies: Path, ear: Ear) -> None:
    """No text, no poster's name and no path of a client is in any byte that was sent; labels' names are."""
    sent = b"\n".join(parts(content) for _, content in ear.answers)
    rows = [row for k in range(5) for table in ("train", "val", "test") for row in run.rows(f"client_{k}/{table}.csv")]
    assert len(rows) > 60
    secrets = {row["img_name"] for row in rows} | {row["text"][:40] for row in rows if row["text"]} | {str(movies), "client_0/", ".csv"}
    assert [secret for secret in secrets if secret and secret.encode() in sent] == []
    label = rows[0]["labels"].split("|")[0]
    assert label.encode() in sent, "the search finds what is there"


def parts(content: RecordDict) -> bytes:
    """All names and values of a message as bytes."""
    found = []
    for record, values in content.items():
        found.append(record.encode())
        for key, value in values.items():
            found += [key.encode(), value.data if isinstance(value, Array) else repr(value).encode()]
    return b"\n".join(found)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (DataError("/data/hospital/train.csv, row 7: unknown label 'HIV'"), "what it says stays with the client: see its own log"),
        (StorageError("/data/x: cannot be written"), "what it says stays with the client: see its own log"),
        (KeyError("A robot falls in love."), "what it says stays with the client: see its own log"),
        (ConfigError("the file /home/anna/labels.json has other labels"), "the file (a path of the client's) has other labels"),
        (ConfigError(r"C:\Users\anna\x.csv is missing"), "(a path of the client's) is missing"),
        (UpdateError("3 tensors do not fit"), "3 tensors do not fit"),
    ],
)
def test_a_deployed_clients_problem_leaves_without_its_data(problem: Exception, words: str) -> None:
    def context(**node: str) -> Context:
        return Context(run_id=1, node_id=2, node_config=dict(node), state=RecordDict(), run_config={})

    for deployed in (context(config="/x/run.yaml", events="/x/events.jsonl"), context(**{"partition-id": "1"})):
        assert _for_the_server(problem, deployed) == words
    assert _for_the_server(problem, context(config="/x/run.yaml")) == str(problem), "in one process with the server everything is told"
