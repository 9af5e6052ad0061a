"""What the events of a run add up to: its phase, who is awaited, and the time left."""

from __future__ import annotations

import json
import math
import socket
from dataclasses import dataclass, field
from typing import Any

import psutil

_SILENCE_SECONDS = 3600.0
_CLOCK_SECONDS = 2.0  # by which two readings of when a process began may differ


@dataclass
class RunState:
    """Folds events one by one; see `fedmap.flower.events`.

    Attributes:
        num_rounds: planned; 0 while unknown.
        round_index: of the round that runs or has ended last.
        phase: "waiting" for clients, "training", "evaluating" (what follows the last answer), "finishing" or "ended".
        joined: the clients that have joined, while they are waited for.
        expected: how many clients are waited for.
        waiting_for: the clients of this round that have not answered.
        notice: the newest sentence for people.
        ended: "finished", "failed" or "interrupted"; "" while the run goes on.
        reason: why it failed.
        started: unix seconds of the first event; None while unknown.
        seen: unix seconds of the newest event; None while unknown.
        choices: the options that were chosen, e.g. {"strategy": "fedavg"}.
    """

    num_rounds: int = 0
    round_index: int = 0
    phase: str = "waiting"
    joined: list[int] = field(default_factory=list)
    expected: int = 0
    waiting_for: list[int] = field(default_factory=list)
    notice: str = ""
    ended: str = ""
    reason: str = ""
    started: float | None = None
    seen: float | None = None
    choices: dict[str, str] = field(default_factory=dict)
    _writer: tuple[str, int, float] | None = None  # host, process, and when that process began
    _first: tuple[int, float] | None = None  # the first round of this start, and when it began
    _last: tuple[int, float] | None = None  # the newest recorded round, and when it ended

    def take(self, line: bytes) -> None:
        """Add one line of the file; one that cannot be understood changes nothing."""
        try:
            self._take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return

    def _take(self, event: dict[str, Any]) -> None:
        kind, when = event["event"], event.get("time")
        if isinstance(when, (int, float)) and math.isfinite(when):
            self.started = self.started or float(when)
            self.seen = float(when)
        if kind == "opened":
            self.phase, self.ended, self.reason, self.waiting_for, self._first = "waiting", "", "", [], None
            if not self.choices and "choices" in event:  # who resumes a folder need not say them again
                self.choices = {str(key): str(value) for key, value in event["choices"].items()}
            self.num_rounds = int(event.get("num_rounds", self.num_rounds))
            if (pid := int(event["pid"])) > 0:
                self._writer = (str(event["host"]), pid, float(event["process_started"]))
        elif kind == "waiting":
            self.joined, self.expected = [int(k) for k in event["joined"]], int(event["expected"])
        elif kind == "start":
            self.num_rounds, self.phase = int(event["num_rounds"]), "evaluating"
        elif kind == "resumed":
            self.round_index = int(event["round_index"])
        elif kind == "clients":
            self.round_index, self.phase = int(event["round_index"]), "training"
            self.waiting_for = [int(k) for k in event["client_ids"]]
            if self._first is None and self.seen is not None:
                self._first = (self.round_index, self.seen)
        elif kind in ("client", "lost"):
            self.waiting_for = [k for k in self.waiting_for if k != event["client_id"]]
            self.phase = "training" if self.waiting_for else "evaluating"
        elif kind == "round":
            self.round_index, self.waiting_for = int(event["record"]["round_index"]), []
            self.phase = "finishing" if self.num_rounds and self.round_index >= self.num_rounds else "evaluating"
            if self.seen is not None:
                self._last = (self.round_index, self.seen)
        elif kind == "note":
            self.notice = str(event["text"])
        elif kind in ("finished", "failed"):
            self.ended, self.phase, self.waiting_for = kind, "ended", []
            if event.get("kind") == "KeyboardInterrupt":
                self.ended = "interrupted"
            self.reason = str(event.get("reason", ""))

    def seconds_left(self, now: float) -> float | None:
        """Until the last round will have ended, from the rounds of this start so far; None before the first has."""
        if self.ended or self._first is None or self._last is None:
            return None
        (first, began), (last, ended) = self._first, self._last
        done = last - first + 1
        if done < 1 or ended <= began:
            return None
        return max(0.0, ended + (ended - began) / done * (self.num_rounds - last) - now)

    def alive(self, now: float) -> bool:
        """Whether the process that writes the events runs still; where that cannot be known, whether it wrote within an hour."""
        if self._writer is None or self._writer[0] != socket.gethostname():
            return self.seen is not None and now - self.seen < _SILENCE_SECONDS
        _, pid, started = self._writer
        try:
            process = psutil.Process(pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < _CLOCK_SECONDS
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:  # it is somebody else's, and nothing can be known of it
            return True
