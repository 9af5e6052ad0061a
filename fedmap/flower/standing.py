"""Where a run stands when its server starts: at the beginning, or after the newest checkpoint in its folder."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedmap.aggregators.base import Aggregator, ServerState, persist, restored
from fedmap.checkpoint import Checkpoint, Checkpoints
from fedmap.config import RunConfig
from fedmap.errors import CheckpointError
from fedmap.guard import GuardState
from fedmap.history import RunHistory
from fedmap.resuming import check_may_start, continued

LOCK = ".server.lock"


@dataclass(frozen=True)
class Standing:
    """A run before its next round.

    Attributes:
        run_id: names the run; clients keep their memories under it.
        state: the aggregator's.
        history: the rounds so far; None for a new run.
        failed_in_a_row: rounds below the quorum up to here.
        clients: training rows of each client that was there.
        guard: what the checks of updates remember.
        notes: sentences for the user.
    """

    run_id: str
    state: ServerState
    history: RunHistory | None = None
    failed_in_a_row: int = 0
    clients: Mapping[int, int] = field(default_factory=dict)
    guard: GuardState = field(default_factory=GuardState)
    notes: tuple[str, ...] = ()


def checkpoints_of(folder: Path, keep: int) -> Checkpoints:
    """The checkpoints in a run's folder."""
    return Checkpoints(folder / "checkpoints", keep)


def find_standing(
    config: RunConfig,
    folder: Path,
    name: str,
    aggregator: Aggregator[ServerState],
    initial: ServerState,
    label_names: Sequence[str],
) -> Standing:
    """Where the run in the folder stands.

    Args:
        config: the run's configuration.
        folder: the run's folder.
        name: of a new run.
        aggregator: which may keep something in a file of its own; a checkpoint counts for more.
        initial: its state around the initial model.
        label_names: the server's.

    Raises:
        CheckpointError: there are checkpoints, and none can be used.
        ConfigError: the run was started with a configuration that contradicts this one.
    """
    checkpoints = checkpoints_of(folder, config.keep_checkpoints)
    check_may_start(folder, config.resume)
    if checkpoints.rounds():
        continued(folder, {**config.raw, "resume": "auto"}, [])
    found = checkpoints.load(type(initial))
    if found is None:
        return Standing(f"{name}-{secrets.token_hex(4)}", restored(aggregator, initial))
    checkpoint = found.checkpoint
    _check_model(checkpoint, initial, label_names, folder)
    persist(aggregator, checkpoint.state)
    failed = checkpoint.failed_in_a_row
    done = checkpoint.state.round_index
    return Standing(
        run_id=checkpoint.run_id,
        state=checkpoint.state,
        history=checkpoint.history,
        failed_in_a_row=0 if failed >= config.runtime.max_failed_rounds else failed,  # it ended for that; who starts it again tries again
        clients=checkpoint.clients,
        guard=checkpoint.guard,
        notes=(*found.notes, f"continuing the run in {folder} after round {done} of {config.num_rounds}"),
    )


def _check_model(checkpoint: Checkpoint, initial: ServerState, label_names: Sequence[str], folder: Path) -> None:
    if tuple(checkpoint.history.label_names) != tuple(label_names):
        raise CheckpointError(f"the run in {folder} was started with other labels; use the labels.json that it was started with")
    saved, own = checkpoint.state.weights, initial.weights
    other = [name for name in {**saved, **own} if name not in saved or name not in own or np.shape(saved[name]) != np.shape(own[name])]
    if other:
        raise CheckpointError(
            f"the run in {folder} was started with another model, first differing tensors {other[:3]}; use the same model"
        )
