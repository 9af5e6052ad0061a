"""States and memories as bytes and files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import pytest

from fedmap.aggregators.base import ServerState
from fedmap.checkpoint import load_memory, load_state, memory_path, save_memory, save_state, state_from_bytes, state_to_bytes
from fedmap.errors import CheckpointError
from fedmap.local.rules import Memory
from fedmap.weights import Layout


def full_state() -> ServerState:
    weights = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        "count": np.array(3),
        "empty": np.zeros((0, 2), np.float16),
        "flag": np.array([True, False]),
    }
    return ServerState(weights, 3, Layout(frozenset({"count", "flag"}), frozenset({"a"})))


def test_round_trip():
    state = full_state()
    loaded = state_from_bytes(state_to_bytes(state), ServerState)
    assert list(loaded.weights) == list(state.weights)
    for name, array in state.weights.items():
        assert loaded.weights[name].dtype == array.dtype
        assert loaded.weights[name].shape == array.shape
        assert np.array_equal(loaded.weights[name], array)
    assert (loaded.round_index, loaded.layout) == (3, state.layout)


@dataclass(frozen=True)
class Nested:
    memory: Memory
    pairs: tuple[tuple[str, float], ...] = ()
    items: list[int | None] = field(default_factory=list)


def test_nested_values():
    value = Nested(Memory(scalars={"x": 0.1, "inf": float("inf")}), (("a", 1e-300), ("b", 2.0)), [1, None])
    assert state_from_bytes(state_to_bytes(value), Nested) == value


def test_every_damage_is_noticed():
    data = state_to_bytes(full_state())
    for position in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(CheckpointError):
            state_from_bytes(bytes(damaged), ServerState)
    for length in range(0, len(data), 11):
        with pytest.raises(CheckpointError):
            state_from_bytes(data[:length], ServerState)


def test_another_class_is_named():
    with pytest.raises(
        CheckpointError, match=r"expected a saved fedmap.local.rules.base.Memory, found fedmap.aggregators.base.ServerState"
    ):
        state_from_bytes(state_to_bytes(full_state()), Memory)


def test_what_cannot_be_stored_is_named():
    with pytest.raises(CheckpointError, match=r"Memory.scalars\['x'\] is a complex"):
        state_to_bytes(Memory(scalars={"x": 1j}))
    with pytest.raises(CheckpointError, match=r"dtype object"):
        state_to_bytes(Memory(arrays={"a": {"b": np.array([None])}}))


def test_files_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "state"
    save_state(path, full_state())
    before = path.read_bytes()

    def power_cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", power_cut)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, Memory())
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["state"]


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: No such file.*give the path"):
        load_state(tmp_path / "nowhere", ServerState)
    (tmp_path / "broken").write_bytes(b"FEDMAP1\n1234 broken")
    with pytest.raises(CheckpointError, match="broken: the saved state .* is damaged"):
        load_state(tmp_path / "broken", ServerState)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="text: this is not a state"):
        load_memory(tmp_path / "text")


def test_memories_are_kept_by_run_and_client_and_readable_by_their_owner_alone(tmp_path):
    path = memory_path(tmp_path, "run 1/../x", 3)
    assert path.parent.parent == tmp_path
    assert memory_path(tmp_path, "..", 3).resolve().is_relative_to(tmp_path)
    assert path != memory_path(tmp_path, "run 1/../x", 4)
    assert load_memory(path) == Memory()
    memory = Memory(arrays={"control": {"w": np.ones(2, np.float32)}}, scalars={"k": 1.5})
    save_memory(path, memory)
    loaded = load_memory(path)
    assert loaded.scalars == memory.scalars
    assert np.array_equal(loaded.arrays["control"]["w"], memory.arrays["control"]["w"])
    assert path.stat().st_mode & 0o077 == 0
