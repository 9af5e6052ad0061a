"""States and memories as bytes and files."""

from __future__ import annotations

import os
import random
import resource
import zlib
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from fedmap.aggregators.base import ServerState
from fedmap.checkpoint import Checkpoint, Checkpoints, Memories, load_state, save_state, state_from_bytes, state_to_bytes
from fedmap.errors import CheckpointError
from fedmap.flower.foreign import FlowerState
from fedmap.history import RoundRecord, RunHistory, Scores
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


def test_bytes_that_somebody_made_up_are_refused_even_with_a_right_checksum():
    data = state_to_bytes(full_state())
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        container = bytearray(data[12:])
        for _ in range(rng.randint(1, 8)):
            container[rng.randrange(min(len(container), 900))] = rng.randrange(256)
        made_up = data[:8] + zlib.crc32(container).to_bytes(4, "little") + bytes(container)
        try:
            state_from_bytes(made_up, ServerState)
        except CheckpointError:
            refused += 1
    assert refused > 300
    nested = b'{"__metadata__":{"tree":"' + b"[" * 100_000 + b'"}}'
    container = len(nested).to_bytes(8, "little") + nested
    with pytest.raises(CheckpointError, match="not in the form"):
        state_from_bytes(data[:8] + zlib.crc32(container).to_bytes(4, "little") + container, ServerState)


def test_another_class_is_named():
    with pytest.raises(
        CheckpointError, match=r"expected a saved fedmap.local.rules.base.Memory, found fedmap.aggregators.base.ServerState"
    ):
        state_from_bytes(state_to_bytes(full_state()), Memory)


def test_a_state_can_be_read_where_it_lies(tmp_path):
    path, state = tmp_path / "state", full_state()
    save_state(path, state)
    before = path.read_bytes()
    found = load_state(path, type(state), mapped=True)
    assert state_to_bytes(found) == state_to_bytes(state)
    arrays = list(found.weights.values())
    assert all(array.flags.aligned for array in arrays)
    assert all(not array.flags.owndata for array in arrays if array.size), "no copy"
    for array in arrays:
        array[...] = 1
    assert path.read_bytes() == before, "what is written into them stays in the process"
    path.write_bytes(before[:-1])
    with pytest.raises(CheckpointError, match="is damaged or cut short"):
        load_state(path, type(state), mapped=True)


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
        load_state(tmp_path / "text", Memory)
    (tmp_path / "newer").write_bytes(b"FEDMAP12\n" + state_to_bytes(Memory())[8:])
    with pytest.raises(
        CheckpointError, match="newer: the saved state has format 12, and this version of FedMAP reads up to 1; update FedMAP"
    ):
        load_state(tmp_path / "newer", Memory)


def numbered(value: int) -> Memory:
    return Memory(arrays={"control": {"w": np.full(2, value, np.float32)}}, scalars={"k": value + 0.5})


def test_a_client_finds_its_memory_as_it_was_before_a_round(tmp_path):
    memories = Memories(tmp_path / "run" / "client_3")
    assert memories.before(1) == memories.latest() == Memory()
    memories.keep(1, Memory(), oldest=0)
    assert not memories.folder.exists(), "algorithms without a memory write nothing"
    for r in (2, 3, 5):
        memories.keep(r, numbered(r), oldest=r - 2)
    assert [memories.before(r).scalars.get("k") for r in (4, 5, 6, 9)] == [3.5, 3.5, 5.5, 5.5]
    assert memories.latest().arrays["control"]["w"].tolist() == [5, 5]
    assert (memories.folder / "round_000005.memory").stat().st_mode & 0o077 == 0
    memories.keep(4, Memory(), oldest=3)
    assert memories.rounds() == [3, 4], "round 5 has been undone, round 2 is not needed any more"
    assert memories.before(5) == Memory(), "an empty memory after one that was not"


def test_a_memory_that_is_no_longer_kept_is_never_taken_for_an_empty_one(tmp_path):
    memories = Memories(tmp_path)
    for r in range(1, 7):
        memories.keep(r, numbered(r), oldest=r - 1)
        assert len(memories.rounds()) <= 2
    assert memories.before(6).scalars == {"k": 5.5}
    with pytest.raises(CheckpointError, match="the memory of before round 4 is no longer kept, the oldest is of round 5"):
        memories.before(4)
    late = Memories(tmp_path / "late")  # its first round was the third
    late.keep(3, numbered(3), oldest=2)
    assert late.before(3) == late.before(2) == Memory()


def test_half_a_memory_is_cleared_away(tmp_path):
    memories = Memories(tmp_path)
    memories.keep(1, numbered(1), oldest=0)
    (tmp_path / ".round_000002.memory.abc").write_bytes(b"half")
    assert memories.before(2).scalars == {"k": 1.5}
    memories.keep(2, numbered(2), oldest=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_000001.memory", "round_000002.memory"]


def checkpoint(round_index: int, scores: dict[int, float]) -> Checkpoint:
    records = tuple(RoundRecord(r, validation=Scores(s, s, s, s, 4, 1.0)) for r, s in scores.items() if r <= round_index)
    state = FlowerState({"w": np.full(3, round_index, np.float32)}, round_index, memory={"m": {"w": np.ones(3)}, "v": (np.zeros(2),)})
    return Checkpoint("run-1", state, RunHistory(("a", "b"), records), failed_in_a_row=1, clients={0: 10, 2: 30})


SCORES = {0: 0.1, 1: 0.5, 2: 0.3, 3: 0.2, 4: 0.6, 5: 0.4}


def test_the_last_checkpoints_and_the_best_models_stay(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert kept.load(FlowerState) is None
    seen = []
    for r in SCORES:
        kept.save(checkpoint(r, SCORES))
        seen.append(kept.rounds())
    assert seen == [[0], [0, 1], [1, 2], [1, 2, 3], [1, 3, 4], [4, 5]]
    found = kept.load(FlowerState)
    assert found is not None
    assert found.notes == ()
    assert kept.weights(4, FlowerState)["w"].tolist() == [4, 4, 4]
    expected = checkpoint(5, SCORES)
    assert state_to_bytes(found.checkpoint) == state_to_bytes(expected)
    assert found.checkpoint.history == expected.history
    assert (found.checkpoint.run_id, found.checkpoint.failed_in_a_row, found.checkpoint.clients) == ("run-1", 1, {0: 10, 2: 30})
    assert isinstance(found.checkpoint.state, FlowerState)
    Checkpoints(tmp_path / "none", keep=0).save(checkpoint(1, SCORES))
    assert not (tmp_path / "none").exists()


def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(tmp_path):
    kept = Checkpoints(tmp_path, keep=2)
    for r in (0, 1, 2, 3):
        kept.save(checkpoint(r, SCORES))
    newest = tmp_path / "round_000003.checkpoint"
    whole = newest.read_bytes()
    for broken, reason in (
        (whole[:-7], "is damaged or cut short"),
        (b"", "this is not a state"),
        (b"FEDMAP2\n" + whole[8:], "update FedMAP"),
    ):
        newest.write_bytes(broken)
        found = kept.load(FlowerState)
        assert found is not None
        assert found.checkpoint.state.round_index == 2
        assert kept.weights(1, FlowerState)["w"].tolist() == [1, 1, 1]
        assert len(found.notes) == 1
        assert "a checkpoint cannot be used" in found.notes[0]
        assert reason in found.notes[0]
    kept.save(checkpoint(3, SCORES))
    (tmp_path / "round_000001.checkpoint").write_bytes(whole[:100])  # the best one
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint can be used; move the run's folder away.*round_000001.*damaged"):
        kept.load(FlowerState)


def test_a_checkpoint_of_another_strategy_is_named(tmp_path):
    kept = Checkpoints(tmp_path, keep=1)
    kept.save(checkpoint(1, {1: 0.5}))
    with pytest.raises(CheckpointError, match="holds a fedmap.flower.foreign.FlowerState, which is not part of the expected state"):
        kept.load(ServerState)
    kept.save(replace(checkpoint(1, {1: 0.5}), state=replace(full_state(), round_index=1)))
    with pytest.raises(CheckpointError, match="expected a FlowerState, found a ServerState; resume with its strategy"):
        kept.load(FlowerState)


def test_a_disk_that_is_full_costs_no_checkpoint(tmp_path):
    kept = Checkpoints(tmp_path, keep=1)
    kept.save(checkpoint(1, SCORES))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))  # no file may be longer: what a full disk does, but to this process alone
    try:
        with pytest.raises(CheckpointError, match=r"round_000002.checkpoint: cannot be written \(File too large\); free space"):
            kept.save(checkpoint(2, SCORES))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["round_000001.checkpoint"]
    assert kept.load(FlowerState) is not None
