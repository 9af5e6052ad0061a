"""What every trial of a fault is held against."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from fedmap.history import RunHistory
from fedmap.outputs import read_history

SPREAD = 0.03  # macro-F1: two partial runs of the digits differ by less, see the seeds in the result file


@dataclass(frozen=True)
class Trial:
    """One fault, tried once.

    Attributes:
        fault: its name in the table.
        runtime: local or superlink.
        moment: when and where it struck.
        problems: what was not as it should be; empty if the federation survived.
        f1: the run's final test macro-F1, where it has one.
    """

    fault: str
    runtime: str
    moment: str
    problems: tuple[str, ...] = ()
    f1: float | None = None

    @property
    def survived(self) -> bool:
        """Whether all was as it should be."""
        return not self.problems


@dataclass
class Check:
    """Collects what is wrong with a run's folder.

    Attributes:
        folder: the run's.
        problems: sentences.
    """

    folder: Path
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history = RunHistory()
        try:
            self.history = read_history(self.folder)
        except Exception as error:
            self.problems.append(f"no readable results: {error}")

    def that(self, true: object, otherwise: str) -> None:
        """Note a problem unless something is true."""
        if not true:
            self.problems.append(otherwise)

    def finished(self, num_rounds: int) -> None:
        """The run has come to its end with every round written down, and its models are made of numbers."""
        self.that(self.history.status == "finished", f"the run is {self.history.status}: {self.history.reason[:200]}")
        indexes = [record.round_index for record in self.history.rounds]
        self.that(indexes == list(range(num_rounds + 1)), f"rounds {indexes}")
        self.finite()

    def finite(self) -> None:
        """The last and the best model are there and finite."""
        for name in ("last", "best"):
            path = self.folder / name / "model.safetensors"
            good = path.exists() and all(np.isfinite(array).all() for array in load_file(path).values() if array.dtype.kind == "f")
            self.that(good, f"{name}/model.safetensors is missing or not finite")

    def lost(self, round_index: int, client_id: int, reason: str) -> None:
        """The round's record names the client, with a reason that fits the pattern; everybody else in it is ok."""
        clients = {c.client_id: c for r in self.history.rounds if r.round_index == round_index for c in r.clients}
        one = clients.get(client_id)
        if one is None or one.status == "ok":
            self.problems.append(f"round {round_index} does not name client {client_id} as lost")
        elif not re.search(reason, one.reason):
            self.problems.append(f"round {round_index}: client {client_id}'s reason is {one.reason!r}, expected {reason!r}")

    def all_ok(self, round_index: int, *clients: int) -> None:
        """These clients' updates were used in the round."""
        good = {c.client_id for r in self.history.rounds if r.round_index == round_index for c in r.clients if c.status == "ok"}
        self.that(set(clients) <= good, f"round {round_index}: clients {sorted(set(clients) - good)} are not ok")

    def lost_anywhere(self) -> list[tuple[int, int, str]]:
        """(round, client, reason) of every answer that was not used."""
        return [(r.round_index, c.client_id, c.reason) for r in self.history.rounds for c in r.clients if c.status != "ok"]

    @property
    def f1(self) -> float | None:
        """The final test macro-F1."""
        final = self.history.final
        return None if final is None or final.test is None else final.test.macro_f1

    def score(self, expected: float) -> None:
        """The final score is within the spread of the run without faults."""
        self.that(self.f1 is not None and self.f1 >= expected - SPREAD, f"test macro-F1 {self.f1}, without faults {expected:.3f}")

    def same_model(self, bits: str, name: str = "last") -> None:
        """The model has these bits."""
        self.that(model_bits(self.folder, name) == bits, f"the {name} model is another one")


def model_bits(folder: Path, name: str = "last") -> str:
    """A digest of a saved model; "" if there is none."""
    path = folder / name / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
