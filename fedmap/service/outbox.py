"""Reports on their way to a platform that may be down, slow or broken: nothing here ever makes a run wait.

Reports wait in a bounded queue for a thread of their own. A report that the platform cannot take now is tried again after a
growing, random pause; one that it refuses is dropped. All trouble together is one warning.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fedmap.backoff import pauses
from fedmap.service.transport import Refused, reason_of

log = logging.getLogger("fedmap.platform")


@dataclass(frozen=True)
class Report:
    """Something to be sent: what it is, for people, and the call that sends it."""

    name: str
    send: Callable[[], object]


class Outbox:
    """A queue of reports and the thread that sends them in order.

    Attributes:
        sent: reports that were taken.
        lost: reports that were refused, or dropped because too many waited; at `close` also those that are left.
    """

    def __init__(
        self, where: str, warn: Callable[[str], None], capacity: int = 256, first_pause: float = 1.0, longest_pause: float = 60.0
    ) -> None:
        self.sent = 0
        self.lost = 0
        self._where, self._warn, self._capacity = where, warn, capacity
        self._pause = pauses(first_pause, longest_pause)
        self._waiting: deque[Report] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failures = 0  # in a row
        self._warned = False
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="fedmap-reports", daemon=True)  # never keeps the process alive
        self._thread.start()

    def put(self, name: str, send: Callable[[], object]) -> None:
        """Queue a report; returns at once. Of too many the oldest is dropped."""
        with self._changed:
            if len(self._waiting) >= self._capacity:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append(Report(name, send))
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many reports wait to be sent."""
        return len(self._waiting)

    def close(self, seconds: float = 3.0) -> None:
        """Send what waits, for at most so many seconds, and not at all while the platform is in trouble."""
        end = time.monotonic() + seconds
        with self._changed:
            while (self._waiting or self._busy) and not self._failures and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            self._closing = True
            self.lost += len(self._waiting) + self._busy
            self._waiting.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while (report := self._next()) is not None:
            while not self._sent(report) and not self._sleep(self._pause(self._failures)):
                pass
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _next(self) -> Report | None:
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if self._closing:
                return None
            self._busy = True
            return self._waiting.popleft()

    def _sent(self, report: Report) -> bool:
        """Send a report; returns whether it is done with."""
        try:
            report.send()
        except Refused as error:
            self._trouble(report, f"{reason_of(error)}; it is not sent again")
            with self._changed:
                self.lost += 1
            return True
        except Exception as error:  # whatever a platform makes of its answers is no reason to end a run
            self._trouble(report, f"{reason_of(error)}; later reports wait, and it is tried again")
            with self._changed:
                self._failures += 1
                self._changed.notify_all()  # `close` need not wait any longer
            return False
        with self._changed:
            self._failures = 0
            self.sent += 1
        return True

    def _sleep(self, seconds: float) -> bool:
        """Wait; returns whether the outbox was closed meanwhile."""
        end = time.monotonic() + seconds
        with self._changed:
            while not self._closing and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            return self._closing

    def _trouble(self, report: Report, what: str) -> None:
        log.debug("%s: %s: %s", self._where, report.name, what)
        if not self._warned:
            self._warned = True
            self._warn(f"the FedOps platform at {self._where} does not take {report.name}: {what}. The federation goes on without it")
