"""The server's checkpoints: one file after each round, of which the last few stay, and those that hold the best model.

    <run>/checkpoints/round_<r>.checkpoint      see `Checkpoint`; format: `fedmap.checkpoint.codec`

A file is written whole or not at all. The best model needs no file of its own: it is the model in the checkpoint of the
best round, which therefore stays. A file that cannot be read is passed over, with a note, for the one before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedmap.aggregators.base import ServerState
from fedmap.checkpoint.codec import check_state, load_state, save_state
from fedmap.errors import CheckpointError
from fedmap.guard.state import GuardState
from fedmap.history import RunHistory
from fedmap.weights import Weights

_NAME = re.compile(r"round_(\d+)\.checkpoint")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the server needs to go on after a round. Random draws follow from the seed and the round, and need nothing.

    Attributes:
        run_id: names the run; clients keep their memories under it.
        state: the aggregator's state, the global model among it.
        history: the rounds so far.
        failed_in_a_row: rounds below the quorum up to here.
        clients: training rows of each client that was there.
        guard: what the checks of updates remember.
    """

    run_id: str
    state: ServerState
    history: RunHistory
    failed_in_a_row: int = 0
    clients: Mapping[int, int] = field(default_factory=dict)
    guard: GuardState = field(default_factory=GuardState)


@dataclass(frozen=True)
class Found:
    """A checkpoint to continue from.

    Attributes:
        checkpoint: the newest that can be used.
        notes: which newer ones cannot be used, and why.
    """

    checkpoint: Checkpoint
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        folder: theirs alone.
        keep: how many of the last rounds stay, >= 0; 0 writes none.
    """

    folder: Path
    keep: int

    def rounds(self) -> list[int]:
        """The rounds that have a checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name)))

    def oldest(self, round_index: int) -> int:
        """The oldest round that a server which dies in this round may go back to."""
        return max(round_index - max(self.keep, 1), 0)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and remove those that are no longer needed.

        Raises:
            CheckpointError: it cannot be written; those before it are as they were.
        """
        if self.keep == 0:
            return
        now = checkpoint.state.round_index
        save_state(self._path(now), checkpoint)
        last = [r for r in self.rounds() if r <= now][-self.keep :]
        needed = {*last, *(_best_round(checkpoint.history, r) for r in last)}
        for path in self.folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match is None or int(match[1]) not in needed:  # half a file, too old, or of rounds undone
                path.unlink(missing_ok=True)

    def load(self, state: type[ServerState]) -> Found | None:
        """The newest checkpoint that can be used; None if there are none.

        Args:
            state: the class of the aggregator's state.

        Raises:
            CheckpointError: there are some, and none can be used.
        """
        notes: list[str] = []
        rounds = self.rounds()
        for round_index in reversed(rounds):
            try:
                checkpoint = self._load(round_index, state)
                if (best := _best_round(checkpoint.history, round_index)) != round_index:
                    check_state(self._path(best))
            except CheckpointError as error:
                notes.append(f"a checkpoint cannot be used: {error}")
                continue
            return Found(checkpoint, tuple(dict.fromkeys(notes)))
        if rounds:
            reasons = "".join(f"\n  - {note}" for note in dict.fromkeys(notes))
            raise CheckpointError(f"{self.folder}: no checkpoint can be used; move the run's folder away to start anew{reasons}")
        return None

    def weights(self, round_index: int, state: type[ServerState]) -> Weights:
        """The global model after a round that has a checkpoint, as it lies there; the best round always has one.

        Raises:
            CheckpointError: it cannot be read.
        """
        return self._load(round_index, state, mapped=True).state.weights

    def _path(self, round_index: int) -> Path:
        return self.folder / f"round_{round_index:06d}.checkpoint"

    def _load(self, round_index: int, state: type[ServerState], *, mapped: bool = False) -> Checkpoint:
        path = self._path(round_index)
        checkpoint = load_state(path, Checkpoint, also=[state], mapped=mapped)
        if type(checkpoint.state) is not state:
            raise CheckpointError(
                f"{path}: expected a {state.__name__}, found a {type(checkpoint.state).__name__}; resume with its strategy"
            )
        return checkpoint


def _best_round(history: RunHistory, until: int) -> int:
    """The best round up to a round, which may be the initial model's, 0."""
    best = history.best_round(until)
    return until if best is None else best
