"""Disks stay bounded: caches by their size, memories by the number of runs; nothing that is in use goes."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedmap.checkpoint import Memories, prune_runs
from fedmap.checkpoint import memories as memories_module
from fedmap.data import cache as cache_module
from fedmap.data.cache import cached_arrays, prune_cache
from fedmap.local.rules import Memory

MEGABYTE = 1_000_000


def fill(folder: Path, key: str, used_hours_ago: float) -> None:
    cached_arrays(folder, key, make(key))
    then = time.time() - used_hours_ago * 3600
    os.utime(folder / key / "header.json", (then, then))


def make(key: str) -> Callable[[], dict[str, np.ndarray]]:
    return lambda: {"a": np.full(MEGABYTE, int(key[-1]), np.uint8)}


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    for key, hours in (("k1", 5), ("k2", 9), ("k3", 7), ("k4", 0.5)):
        fill(tmp_path, key, hours)
    assert prune_cache(tmp_path, 10 * MEGABYTE) == []
    assert prune_cache(tmp_path, 2.5 * MEGABYTE) == ["k2", "k3"]
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["k1", "k4"]
    assert prune_cache(tmp_path, 0) == ["k1"], "what was used within the hour stays"
    assert prune_cache(tmp_path / "none", 0) == []


def test_use_is_what_counts_and_not_age(tmp_path: Path) -> None:
    for key, hours in (("k1", 9), ("k2", 5)):
        fill(tmp_path, key, hours)
    cached_arrays(tmp_path, "k1", make("k1"))
    assert prune_cache(tmp_path, MEGABYTE) == ["k2"]


def test_whoever_reads_keeps_what_it_has_and_the_next_computes_it_again(tmp_path: Path) -> None:
    fill(tmp_path, "k1", 9)
    held = cached_arrays(tmp_path, "k1", make("k1"))["a"]
    then = time.time() - 9 * 3600
    os.utime(tmp_path / "k1" / "header.json", (then, then))
    assert prune_cache(tmp_path, 0) == ["k1"]
    assert (held == 1).all()
    assert (cached_arrays(tmp_path, "k1", make("k1"))["a"] == 1).all()


def test_readers_and_a_pruner_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_RECENT_SECONDS", 0.0)
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            for k in range(1, 5):
                array = cached_arrays(tmp_path, f"k{k}", lambda k=k: {"a": np.full(20_000, k, np.uint8)})["a"]
                if len(array) != 20_000 or not (array == k).all():
                    wrong.append(k)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    removed = 0
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        removed += len(prune_cache(tmp_path, 0))
    stop.set()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert removed > 4


def test_what_a_killed_writer_left_is_removed_after_a_day(tmp_path: Path) -> None:
    old, new = tmp_path / ".k1.old.tmp", tmp_path / ".k2.new.tmp"
    for folder in (old, new):
        folder.mkdir()
    then = time.time() - 2 * 24 * 3600
    os.utime(old, (then, then))
    prune_cache(tmp_path, 10 * MEGABYTE)
    assert not old.exists()
    assert new.exists()


def remember(folder: Path, run: str, days_ago: float) -> None:
    memories = Memories(folder / run / "client_0")
    memories.keep(1, Memory({"c": {"w": np.ones(3, np.float32)}}), 0)
    then = time.time() - days_ago * 24 * 3600
    for path in (memories.folder, folder / run):
        os.utime(path, (then, then))


def test_memories_of_the_last_runs_stay_and_of_those_that_may_be_under_way(tmp_path: Path) -> None:
    for run, days in (("a", 30), ("b", 20), ("c", 10), ("d", 0.2)):
        remember(tmp_path, run, days)
    assert prune_runs(tmp_path, 4, "d") == []
    assert prune_runs(tmp_path, 3, "a") == [], "the oldest is the one that is continued"
    assert prune_runs(tmp_path, 2, "d") == ["a", "b"]
    assert prune_runs(tmp_path, 1, "new") == ["c"]
    assert Memories(tmp_path / "d" / "client_0").rounds() == [1]
    assert prune_runs(tmp_path / "none", 1, "new") == []


def test_a_removal_that_was_interrupted_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories_module, "_RECENT_SECONDS", 0.0)
    remember(tmp_path, "a", 3)
    (tmp_path / "a").rename(tmp_path / ".a")
    prune_runs(tmp_path, 1, "b")
    assert list(tmp_path.iterdir()) == []
