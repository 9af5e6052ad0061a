"""Where a client stands in its federation: written by the thread that takes part, read by the client's front and its metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

WAITING = "waiting for /start"
PREPARING = "preparing"
SEARCHING = "looking for the server"
CONNECTING = "connecting"
CONNECTED = "connected"
TRAINING = "training"
FINISHED = "finished"
FAILED = "failed"
STOPPED = "stopped"
STATES = (PREPARING, WAITING, SEARCHING, CONNECTING, CONNECTED, TRAINING, FINISHED, FAILED, STOPPED)
_ACTIVE = (SEARCHING, CONNECTING, CONNECTED, TRAINING)


@dataclass(frozen=True)
class Standing:
    """A client at one moment.

    Attributes:
        state: one of `STATES`.
        since: when that state began, unix seconds.
        waiting_for: a sentence; "" where nothing is awaited.
        problem: what went wrong last; "" if nothing did.
        address: the server's, host:port; "" while it is not known.
        prepared: whether the client's data have been read.
        run: the name of the run; "" before the server has asked.
        round_index: the round that is or was trained last; 0 before the first.
        num_rounds: rounds of the run in all.
        rounds_trained: by this process.
        num_train: rows to train on; None before they are known.
        train_loss: of the last round.
        validation_macro_f1: of this client's model after the last round.
        train_seconds: of the last round.
        test_macro_f1: at the run's end.
        test_micro_f1: at the run's end.
        connections: how often Flower's SuperNode was started.
        model_version: of the global model, from FedOps' client manager; 0 without one.
    """

    state: str = PREPARING
    since: float = 0.0
    waiting_for: str = ""
    problem: str = ""
    address: str = ""
    prepared: bool = False
    run: str = ""
    round_index: int = 0
    num_rounds: int = 0
    rounds_trained: int = 0
    num_train: int | None = None
    train_loss: float | None = None
    validation_macro_f1: float | None = None
    train_seconds: float | None = None
    test_macro_f1: float | None = None
    test_micro_f1: float | None = None
    connections: int = 0
    model_version: int = 0

    @property
    def active(self) -> bool:
        """Whether the client takes part or tries to."""
        return self.state in _ACTIVE


class Participation:
    """A `Standing` that changes, and the wishes to start and to stop that may come from other threads."""

    def __init__(self) -> None:
        self._lock = threading.Condition(threading.RLock())
        self._standing = Standing(since=time.time())
        self._start = False
        self._stop = False

    @property
    def standing(self) -> Standing:
        """The client at this moment."""
        with self._lock:
            return self._standing

    def update(self, **changes: Any) -> None:
        """Change some of the values."""
        with self._lock:
            if changes.get("state", self._standing.state) != self._standing.state:
                changes["since"] = time.time()
            self._standing = replace(self._standing, **changes)
            self._lock.notify_all()

    def begin(self) -> None:
        """The client sets out to take part; a wish to start is fulfilled with that."""
        with self._lock:
            self._start = False
            self.update(state=SEARCHING, waiting_for="", problem="", address="")

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in what the client app has written; see `fedmap.flower.client_app`."""
        kind = event["event"]
        if kind == "joined":
            self.update(state=CONNECTED, waiting_for="the next round", problem="", **_known(event, run="run", num_rounds="num_rounds"))
            self.update(**_known(event, num_train="num_train"))
        elif kind == "training":
            self.update(state=TRAINING, waiting_for="", **_known(event, round_index="round", num_rounds="num_rounds"))
        elif kind == "step":
            self.update(**_known(event, train_loss="loss"))
        elif kind == "trained":
            values = _known(event, train_loss="loss", validation_macro_f1="f1", train_seconds="seconds")
            trained = self.standing.rounds_trained + 1
            self.update(state=CONNECTED, waiting_for="the next round", rounds_trained=trained, **values)
        elif kind in ("evaluated", "finished"):
            self.update(**_known(event, test_macro_f1="macro_f1", test_micro_f1="micro_f1"))

    def ask_to_start(self) -> None:
        """Somebody wants the client to take part; nothing if it does already."""
        with self._lock:
            if not self._standing.active:
                self._start, self._stop = True, False
            self._lock.notify_all()

    def ask_to_stop(self) -> None:
        """Somebody wants the client to leave; a wish to start that has not been followed yet is taken back."""
        with self._lock:
            self._start = False
            self._stop = self._standing.active or self._standing.state == PREPARING
            self._lock.notify_all()

    @property
    def stopping(self) -> bool:
        """Whether the client should leave."""
        with self._lock:
            return self._stop

    @property
    def wanted(self) -> bool:
        """Whether the client takes part, or has been asked to and not yet begun."""
        with self._lock:
            return self._start or self._standing.active

    def wait_for_start(self, seconds: float) -> bool:
        """Wait for the wish to start, at most so long, and take it."""
        with self._lock:
            self._lock.wait_for(lambda: self._start, seconds)
            found, self._start = self._start, False
            if found:
                self._stop = False
            return found

    def take_stop(self) -> bool:
        """Whether the client should leave; the wish is fulfilled with that."""
        with self._lock:
            found, self._stop = self._stop, False
            return found

    def wait_for_stop(self, seconds: float) -> bool:
        """Wait until the client should leave, at most so long; returns whether it should."""
        with self._lock:
            return self._lock.wait_for(lambda: self._stop, seconds)

    def wait_until(self, true: Callable[[Standing], bool], seconds: float) -> bool:
        """Wait until the standing is as wished, at most so long; returns whether it is."""
        with self._lock:
            return self._lock.wait_for(lambda: true(self._standing), seconds)


def _known(event: Mapping[str, Any], **names: str) -> dict[str, Any]:
    return {name: event[key] for name, key in names.items() if event.get(key) is not None}
