"""What a client remembers of a run, one file for each round that it trained: `<folder>/round_<r>.memory`.

A server that dies after its clients have trained round r and before it has written that down runs round r again, and so
each client must find its memory as it was before round r. How far back the server may go it says in each message.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from fedmap.checkpoint.codec import load_state, save_state
from fedmap.errors import CheckpointError
from fedmap.local.rules import Memory

_NAME = re.compile(r"round_(\d+)\.memory")
_RECENT_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class _Kept:
    """What a file holds.

    Attributes:
        round_index: the round that made the memory.
        previous: the round whose memory it was made from; 0 is the empty one.
        memory: the memory after `round_index`.
    """

    round_index: int
    previous: int
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True)
class Memories:
    """One client's memories of one run.

    Attributes:
        folder: theirs alone; made when there is something to keep.
    """

    folder: Path

    def rounds(self) -> list[int]:
        """The rounds whose memories are here, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name)))

    def before(self, round_index: int) -> Memory:
        """The memory with which the client starts a round; empty before its first one.

        Raises:
            CheckpointError: the file is damaged, or the memory of that time is no longer kept.
        """
        _, memory = self._start(round_index)
        return memory

    def latest(self) -> Memory:
        """The memory after the last round that the client trained; empty if it has none."""
        rounds = self.rounds()
        return self._load(rounds[-1]).memory if rounds else Memory()

    def keep(self, round_index: int, memory: Memory, oldest: int) -> None:
        """Keep the memory after a round.

        Args:
            round_index: the round.
            memory: the memory after it; nothing is written for algorithms that have none.
            oldest: the server may go back to the end of this round, but not further: what only older rounds need is removed.

        Raises:
            CheckpointError: the memory cannot be written.
        """
        known = self.rounds()
        if not known and not memory.arrays and not memory.scalars:
            return
        previous = max((r for r in known if r < round_index), default=0)
        save_state(self._path(round_index), _Kept(round_index, previous, memory))
        needed = max((r for r in known if r <= min(oldest, round_index - 1)), default=0)
        for path in self.folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match is None or int(match[1]) < needed or int(match[1]) > round_index:  # half a file, too old, or of rounds undone
                path.unlink(missing_ok=True)

    def _start(self, round_index: int) -> tuple[int, Memory]:
        rounds = self.rounds()
        earlier = [r for r in rounds if r < round_index]
        if earlier:
            return earlier[-1], self._load(earlier[-1]).memory
        if rounds and round_index > 1 and self._load(rounds[0]).previous > 0:
            raise CheckpointError(
                f"{self.folder}: the memory of before round {round_index} is no longer kept, the oldest is of round {rounds[0]}; "
                "the server went back further than it said: start a new run"
            )
        return 0, Memory()

    def _path(self, round_index: int) -> Path:
        return self.folder / f"round_{round_index:06d}.memory"

    def _load(self, round_index: int) -> _Kept:
        return load_state(self._path(round_index), _Kept)


def prune_runs(folder: Path, keep: int, current: str) -> list[str]:
    """Remove clients' memories of old runs.

    Args:
        folder: with one folder for each run.
        keep: how many runs stay, those used last; runs used within the last day stay in any case, they may be under way.
        current: the run that is joined now, which stays.

    Returns:
        The runs whose memories are gone, the oldest first.
    """
    runs: list[tuple[float, str]] = []
    for path in folder.iterdir() if folder.is_dir() else []:
        with contextlib.suppress(OSError):  # another process has removed it
            if path.name.startswith("."):  # half removed, by a process that was killed
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_dir():
                runs.append((max(place.stat().st_mtime for place in (path, *path.iterdir())), path.name))
    removed = []
    for used, run_id in sorted(runs)[: max(len(runs) - keep, 0)]:
        if run_id == current or time.time() - used < _RECENT_SECONDS:
            continue
        gone = folder / f".{run_id}"
        with contextlib.suppress(OSError):
            (folder / run_id).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            removed.append(run_id)
    return removed
