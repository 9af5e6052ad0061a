"""The digits with a model and data that fail when a plan says so: in the process where a real model or row would fail.

A plan is a JSON file with a list of faults. `FragileDigits` reads it wherever a client's data is built, so in worker processes, in
Flower's ClientApp processes, and inside a server with runtime.workers=0. Each fault strikes once, in whichever process meets it.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.digits.data import DigitData, DigitSplit
from examples.digits.model import TwoSensorNet
from fedmap.data.base import Batch, Split
from fedmap.errors import DataError
from fedmap.local.client import LocalClient

BEFORE, DURING, AFTER = "before", "during", "after"
KILL, RAISE, ROW, MEMORY, SLEEP = "kill", "raise", "row", "memory", "sleep"
MODEL_SAYS, ROW_SAYS = "a mistake in the user's model", "digit-77: the picture cannot be decoded"


@dataclass(frozen=True)
class Fault:
    """What happens to a client in a round.

    Attributes:
        client: its number.
        round: the round.
        what: `KILL`: SIGKILL to the process; `RAISE`: an exception in the model; `ROW`: an error in the data; `MEMORY`: an
            allocation above the process's address space; `SLEEP`: `seconds` of nothing.
        when: before, during (at the second step) or after training.
        seconds: of sleep.
        always: in every round from `round` on, and not once alone.
    """

    client: int
    round: int
    what: str
    when: str = DURING
    seconds: float = 0.0
    always: bool = False


def write_plan(path: Path, faults: list[Fault]) -> Path:
    """Write a plan and return its path."""
    path.write_text(json.dumps([asdict(fault) for fault in faults]))
    return path


def overrides(plan: Path) -> list[str]:
    """What makes a run on the digits one with a plan."""
    here = "benchmarks.fault_ground.injection"
    return [f"model._target_={here}.FragileNet", f"dataset._target_={here}.FragileDigits", f"+dataset.plan={plan}"]


_armed: set[str] = set()  # what the model and the data do at their next call


class FragileNet(TwoSensorNet):
    """A model with a mistake and a hunger for memory, both asleep until a plan wakes them."""

    def forward(self, batch: Batch) -> torch.Tensor:
        if RAISE in _armed:
            _armed.clear()
            raise RuntimeError(MODEL_SAYS)
        if MEMORY in _armed:
            _armed.clear()
            _starve()
        return super().forward(batch)


class _FragileSplit(DigitSplit):
    def batch(self, rows: np.ndarray) -> Batch:
        if ROW in _armed:
            _armed.clear()
            raise DataError(ROW_SAYS)
        return super().batch(rows)


class FragileDigits(DigitData):
    """The digits, and a plan of what goes wrong on them.

    Args:
        plan: path of the plan.
        others: see `DigitData`.
    """

    def __init__(self, plan: str, **others: Any) -> None:
        super().__init__(**others)
        _follow(Path(plan))

    def client(self, client_id: int) -> Mapping[str, Split]:
        splits = super().client(client_id)
        splits["train"].__class__ = _FragileSplit  # the same rows
        return splits


def _starve() -> None:
    """Ask for more than the address space that this process has now and a little more: the allocator refuses, as on a small machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 200_000_000, hard))
    try:
        torch.empty(1_000_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@functools.cache
def _follow(plan: Path) -> None:
    faults = [Fault(**entry) for entry in json.loads(plan.read_text())]
    real = LocalClient.train_round

    def train_round(self: LocalClient, broadcast: Any, memory: Any, on_step: Callable[[int, float], None] | None = None) -> Any:
        _armed.clear()
        due = {fault.when: fault for i, fault in enumerate(faults) if _due(fault, i, plan, self.client_id, broadcast.round_index)}
        steps = 0

        def step(count: int, loss: float) -> None:
            nonlocal steps
            steps += 1
            if on_step is not None:
                on_step(count, loss)
            if steps == 1 and DURING in due:
                _strike(due[DURING])

        if BEFORE in due:
            _strike(due[BEFORE])
        result = real(self, broadcast, memory, step)
        if AFTER in due:
            _strike(due[AFTER])
        return result

    LocalClient.train_round = train_round  # type: ignore[method-assign]


def _due(fault: Fault, number: int, plan: Path, client_id: int, round_index: int) -> bool:
    if fault.client != client_id or not (round_index == fault.round or (fault.always and round_index > fault.round)):
        return False
    if fault.always:
        return True
    try:
        os.close(os.open(f"{plan}.{number}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _strike(fault: Fault) -> None:
    if fault.what == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.what == SLEEP:
        time.sleep(fault.seconds)
    elif fault.when == AFTER:
        raise RuntimeError(MODEL_SAYS)
    else:
        _armed.add(fault.what)
