"""Crates: what comes out is what went in, in its order; nothing else is opened."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedmap import npy
from fedmap.errors import UpdateError
from fedmap.flower import crates
from fedmap.flower.crates import CRATE, crate, uncrate
from fedmap.flower.crating_grid import CratingGrid
from fedmap.flower.parcels import arrays_to_record, record_to_arrays
from fedmap.guard.form import Kind


def some_content() -> RecordDict:
    rng = np.random.default_rng(0)
    weights = {
        "a.weight": rng.random((3, 5), dtype=np.float32),
        "large": rng.random(crates._LARGE // 4, dtype=np.float32),
        "count": np.array(7, np.int64),
        "empty": np.zeros((0, 2), np.float32),
    }
    return RecordDict(
        {
            "client": ConfigRecord({"client-id": 3, "name": "ä", "flag": True, "names": ["x", "y"], "none": []}),
            "weights": arrays_to_record(weights),
            "signals": MetricRecord({"loss": 0.1, "nan": float("nan"), "many": [1, 2, 3], "whole": 2.0}),
            "odd": ConfigRecord({"bytes": b"\x00\xff"}),
            "extra.c": arrays_to_record({"z": np.arange(4.0)}),
            "nothing": ArrayRecord(),
        }
    )


def same(first: RecordDict, second: RecordDict) -> None:
    assert list(first) == list(second)
    for key in first:
        one, other = first[key], second[key]
        assert type(one) is type(other)
        assert list(one) == list(other)
        if isinstance(one, ArrayRecord):
            assert [(a.dtype, a.shape, a.stype, a.data) for a in one.values()] == [
                (a.dtype, a.shape, a.stype, a.data) for a in other.values()
            ]
        else:
            assert repr(dict(one)) == repr(dict(other))  # NaN is NaN, and 2.0 is not 2


def test_a_content_comes_back_byte_for_byte() -> None:
    content = some_content()
    crated = crate(content)
    assert isinstance(crated["weights"], ArrayRecord)
    assert crated["weights"]["large"] is content["weights"]["large"], "no copy"
    same(uncrate(crated), some_content())
    same(content, some_content())
    assert set(crated) == {"weights", "odd", CRATE}
    assert list(cast(ArrayRecord, crated["weights"])) == ["large"]
    same(uncrate(RecordDict.inflate(crated.deflate(), dict(crated.children))), some_content())


def test_arrays_are_read_where_they_lie_in_the_crate() -> None:
    arrived = crate(some_content())
    data = _arrays(arrived, CRATE)["data"].data
    arrived[CRATE] = ArrayRecord({"data": Array("uint8", (len(data),), "fedmap.crate", data)})
    lies = np.frombuffer(data, np.uint8)
    expected = {
        name: npy.view(array.data, np.dtype(array.dtype), array.shape) for name, array in _arrays(some_content(), "weights").items()
    }
    found = record_to_arrays(_arrays(uncrate(arrived), "weights"), {n: Kind(a.shape, a.dtype) for n, a in expected.items()})
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
        assert array.flags.aligned
        assert np.shares_memory(array, lies) == (name not in ("large", "empty"))


def _arrays(content: RecordDict, key: str) -> ArrayRecord:
    return cast(ArrayRecord, content[key])


def test_a_content_without_a_crate_stays_as_it_is() -> None:
    content = some_content()
    assert uncrate(content) is content


@given(st.dictionaries(st.text(max_size=8), st.lists(st.floats(width=32), max_size=5), max_size=5))
def test_any_names_and_numbers(values: dict[str, list[float]]) -> None:
    content = RecordDict({"weights": arrays_to_record({name: np.array(v, np.float32) for name, v in values.items()})})
    same(uncrate(crate(content)), content)


def damaged(data: bytes) -> RecordDict:
    return RecordDict({CRATE: ArrayRecord({"data": Array("uint8", (len(data),), "fedmap.crate", data)})})


def listed(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        damaged(b""),
        damaged(b"\xff" * 40),
        damaged(listed("{")),
        damaged(listed("[1]")),
        damaged(listed("[" * 100_000)),
        damaged(listed('[["w", "array", [["x", "float32", [1], "numpy.ndarray", 1000000000000]]]]')),
        damaged(listed('[["w", "array", [["x", "float32", [1], "numpy.ndarray", -8]]]]')),
        damaged(listed('[["w", "array", [["x", "float32", "many", "numpy.ndarray", 0]]]]')),
        damaged(listed('[["w", "array", [["beside"]]]]')),
        damaged(listed('[["w", "whole", null]]')),
        damaged(listed('[["w", "config", {"a": {"b": 1}}]]')),
        damaged(listed('[["w", "metric", {"a": "text"}]]')),
        damaged(listed('[["w", "config", {}], ["w", "config", {}]]')),
        damaged(listed('[["w", "pickle", {}]]')),
        damaged(listed("[]") + b"more"),
        RecordDict({CRATE: ConfigRecord({"data": b""})}),
        RecordDict({CRATE: ArrayRecord()}),
    ],
)
def test_a_strangers_crate_is_refused_with_a_sentence(content: RecordDict) -> None:
    with pytest.raises(UpdateError, match="crate is malformed"):
        uncrate(content)


def test_messages_that_share_a_content_share_its_crate_and_small_messages_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    sent: list[Any] = []

    class Wire:
        poll_seconds = 0.5

        def push_messages(self, messages: list[Message]) -> list[str]:
            sent.extend(messages)
            return ["1", "2", "3"]

    grid = CratingGrid(cast(Grid, Wire()))
    content, question = some_content(), RecordDict({"round": ConfigRecord({"index": 1})})
    assert list(grid.push_messages([Message(content, 1, "train"), Message(content, 2, "train"), Message(question, 3, "query")])) == [
        "1",
        "2",
        "3",
    ]
    assert sent[0].content is sent[1].content
    assert CRATE in sent[0].content
    assert sent[2].content is question
    assert grid.poll_seconds == 0.5
