"""States on disk: the server's checkpoint, a client's memory, the student's file.

An input begins with which of the three it is, and with how it is put into a file:

    0  the whole file
    1  what stands behind the checksum, which then fits: damage that no checksum can find
    2  the tree of values as JSON, in a file that is sound otherwise
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from benchmarks.fuzzing.choices import Choices
from fedmap.aggregators.modality_aware.store import load_student, save_student
from fedmap.aggregators.modality_aware.student import Lesson, new_student
from fedmap.aggregators.scaffold import Scaffold, ScaffoldState
from fedmap.checkpoint import Checkpoint, Checkpoints, Memories
from fedmap.files import plain
from fedmap.history import ClientRecord, RoundRecord, RunHistory, Scores
from fedmap.local.rules import Memory
from fedmap.weights import Layout

_MAGIC = b"FEDMAP1\n"
_WEIGHTS = {"w": np.ones((2, 3), np.float32), "n": np.array(3, np.int64)}


class States:
    """A file that cannot be used gives a `CheckpointError` (the student's a `ConfigError`); what is loaded can be used."""

    allowed = ()
    processes = False

    def __init__(self, folder: Path) -> None:
        self.checkpoints = Checkpoints(folder / "checkpoints", 2)
        self.memories = Memories(folder / "memories")
        self.student = folder / "student.safetensors"
        self.aggregator = Scaffold(num_clients=2)
        scores = [Scores(0.5, 0.2 + 0.1 * r, 0.45, 0.5, 20, 0.7) for r in range(3)]  # the newest is the best
        rounds = tuple(RoundRecord(r, {"train": 1.5}, s, s, s, None, (ClientRecord(0, weight=1.0),)) for r, s in enumerate(scores))
        state = replace(self.aggregator.init(_WEIGHTS, Layout(frozenset({"n"}))), round_index=2)
        self.checkpoints.save(Checkpoint("run-1a2b", state, RunHistory(("Drama", "War"), rounds), 1, {0: 17, 1: 3}))
        self.memories.keep(2, Memory({"control": {"w": _WEIGHTS["w"]}}, {"seen": 2.0}), 1)
        save_student(self.student, new_student(3, 2, 1), (Lesson(np.ones((2, 3)), np.array([0.5, 0.5])),))
        files = (*self.checkpoints.folder.iterdir(), *self.memories.folder.iterdir(), self.student)
        self.files = {path: path.read_bytes() for path in files}

    def seeds(self) -> Sequence[bytes]:
        """The sound files, in each of the three ways."""
        found = []
        for which, content in enumerate(self.files.values()):
            container = content[len(_MAGIC) + 4 :]
            found += [bytes([which, 0]) + content, bytes([which, 1]) + container, bytes([which, 2]) + _tree(container).encode()]
        return found

    def run(self, data: bytes) -> None:
        """See the module."""
        choices = Choices(data)
        which, how = choices.byte() % len(self.files), choices.byte() % 3
        path, sound = list(self.files.items())[which]
        content = choices.rest()
        if how == 2:
            arrays = load_tensors(sound[len(_MAGIC) + 4 :])
            content = save_tensors(arrays, metadata={"tree": content.decode("utf-8", "replace")})
        path.write_bytes(content if how == 0 else _MAGIC + zlib.crc32(content).to_bytes(4, "little") + content)
        if which == 0:
            self._continue()
        elif which == 1:
            memory = self.memories.before(3)
            self.memories.keep(3, memory, 2)
            self.memories.folder.joinpath("round_000003.memory").unlink(missing_ok=True)
        elif (stored := load_student(path, 3, 2)) is not None:
            stored.student.logits(np.zeros((2, 3)))

    def _continue(self) -> None:
        """What a server that starts again does with the newest checkpoint."""
        found = self.checkpoints.load(ScaffoldState)
        assert found is not None
        checkpoint = found.checkpoint
        self.aggregator.broadcast(checkpoint.state)
        json.dumps(plain(checkpoint.history.with_round(RoundRecord(3))), allow_nan=False)
        sorted(checkpoint.clients.items())


def _tree(container: bytes) -> str:
    length = int.from_bytes(container[:8], "little")
    return str(json.loads(container[8 : 8 + length])["__metadata__"]["tree"])
