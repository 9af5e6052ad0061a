"""What a run of the scale benchmark takes: seconds, processor seconds and memory of a process and all below it, at each round's end."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        system: one of `benchmarks.scale.SYSTEMS`.
        task: "mlp" or "cnn", see `benchmarks.scale_ground`; "head" or "tiny-head", see `benchmarks.scale_movies`.
        clients: how many; all of them take part in each round.
        rounds: of training.
        seed: of the data and of the initial model.
        rows: of each client.
        batch_size: rows of a step.
        learning_rate: of plain SGD.
        workers: processes (or threads) that train.
        at_once: clients that ours trains in one pass (`runtime.clients_at_once`).
        validation_rows: of each client; only ours can use them.
        features: of a head's task, the file with them; see `benchmarks.scale_movies`.
    """

    system: str
    task: str
    clients: int
    rounds: int
    seed: int = 0
    rows: int = 40
    batch_size: int = 10
    learning_rate: float = 0.1
    workers: int = 2
    at_once: int = 1
    validation_rows: int = 0
    features: str = ""


@dataclass
class Clock:
    """Looks at the clocks at the start of the first round and at each round's end.

    Attributes:
        wall: seconds since some moment.
        processor: seconds of all processors together, of this process and its descendants, dead ones among them.
        memory: megabytes, each shared page counted once (proportional set size).
        private: megabytes that are no other process's, too. Other programs that use the same libraries move the former, and not this.
        accuracy: of the server's model on its test rows; of the initial model first. Of a head: macro-F1 on the server's validation rows
            at thresholds tuned there.
    """

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    private: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    _looked: tuple[float, float] = field(default=(0.0, 0.0), repr=False)  # seconds of wall and processor

    def tick(self, accuracy: float) -> None:
        """Look. What looking takes, which is more than a small client's round, is in no figure."""
        begun = time.perf_counter(), time.process_time()
        own = psutil.Process()
        spent, memory, private = 0.0, 0.0, 0.0
        for process in [own, *own.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError):
                spent += sum(process.cpu_times()[2:4]) if process == own else sum(process.cpu_times()[:4])
                taken = process.memory_full_info()
                memory += taken.pss / 1e6
                private += taken.uss / 1e6
        self.wall.append(begun[0] - self._looked[0])
        self.processor.append(begun[1] + spent - self._looked[1])
        self.memory.append(memory)
        self.private.append(private)
        self.accuracy.append(accuracy)
        ended = time.perf_counter(), time.process_time()
        self._looked = self._looked[0] + ended[0] - begun[0], self._looked[1] + ended[1] - begun[1]

    def write(self, job: Job, path: Path) -> None:
        """Everything, and the job, as JSON."""
        path.write_text(json.dumps({"job": asdict(job), **asdict(self)}))
