"""What a client reports to an outside FedOps platform, made from the events of its app; see `fedmap.service.platform`.

FedOps' word "accuracy" holds micro-F1 here, as in FedOps' own multilabel use case; the other F1 scores go under their names.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from fedmap.errors import FederationError
from fedmap.files import plain
from fedmap.service.outbox import Outbox
from fedmap.service.platform import ClientPlatform, Platform
from fedmap.service.transport import without_password

Say = Callable[[str], None]
_CLOSE_SECONDS = 2.0  # of a program's end, at most, and only while the platform answers


def mac_address() -> str:
    """This machine's hardware address as FedOps writes it, e.g. "02:42:ac:11:00:02"."""
    digits = f"{uuid.getnode():012x}"
    return ":".join(digits[i : i + 2] for i in range(0, 12, 2))


def as_json(values: Mapping[str, Any]) -> str:
    """A report's body; what is not known or not finite is null."""
    return json.dumps(plain(values), allow_nan=False)


class Reports:
    """The outboxes of a platform's two parts, each with a thread of its own: one that hangs does not keep the other waiting.

    Attributes:
        performance: to what takes scores; None without one.
        manager: to the manager of the server or of the client; None without one.
    """

    def __init__(self, performance: str, manager: str, warn: Say) -> None:
        self.performance = Outbox(without_password(performance), warn) if performance else None
        self.manager = Outbox(without_password(manager), warn) if manager else None

    @property
    def _outboxes(self) -> list[Outbox]:
        return [outbox for outbox in (self.performance, self.manager) if outbox is not None]

    @property
    def sent(self) -> int:
        """Reports that were taken."""
        return sum(outbox.sent for outbox in self._outboxes)

    @property
    def lost(self) -> int:
        """Reports that were not."""
        return sum(outbox.lost for outbox in self._outboxes)

    def close(self) -> None:
        """Send what waits, for a moment."""
        for outbox in self._outboxes:
            outbox.close(_CLOSE_SECONDS)


class ClientReports(Reports):
    """A client's reports. Every method but `close` returns at once."""

    def __init__(self, api: ClientPlatform, warn: Say) -> None:
        super().__init__(api.platform.performance, api.platform.client_manager, warn)
        self._api = api
        self._version = 0
        self._started = time.monotonic()

    def _common(self) -> dict[str, Any]:
        return {
            "fl_task_id": self._api.task_id,
            "client_mac": mac_address(),
            "client_name": socket.gethostname(),
            "gl_model_v": self._version,
        }

    def started(self, on_version: Callable[[int], None]) -> None:
        """The client begins to take part.

        Args:
            on_version: told the global model's number once the client manager has said it.
        """
        self._started = time.monotonic()

        def ask() -> None:
            self._version = self._api.model_version()
            on_version(self._version)

        if self.manager is not None:
            self.manager.put("the question for the global model's number", ask)

    def event(self, event: Mapping[str, Any]) -> None:
        """Report an event of the client app; see `fedmap.flower.client_app`."""
        if self.performance is None:
            return
        if event["event"] == "trained":
            values = {"round": event.get("round"), "train_loss": event.get("loss"), "train_time": event.get("seconds"), "wandb_name": ""}
            values |= {"val_loss": event.get("val_loss"), "val_accuracy": event.get("micro_f1")}
            values |= {"val_f1_macro": event.get("f1"), "val_f1_micro": event.get("micro_f1"), "num_examples": event.get("num_examples")}
            train_result, system = as_json(self._common() | values), as_json(self._common() | self._system())
            self.performance.put("training results", lambda: self._api.server.put_train_result(train_result))
            self.performance.put("system figures", lambda: self._api.server.put_client_system(system))
        elif event["event"] in ("evaluated", "finished"):
            values = {"round": event.get("round"), "test_loss": event.get("loss"), "test_accuracy": event.get("micro_f1"), "wandb_name": ""}
            values |= {"test_f1_macro": event.get("macro_f1"), "test_f1_micro": event.get("micro_f1"), "num_test": event.get("num_test")}
            test_result = as_json(self._common() | values)
            self.performance.put("test results", lambda: self._api.server.put_test_result(test_result))
        if event["event"] == "finished":  # at once: a server of ours, which may be who listens, ends soon after
            result = as_json(self._common() | {"operation_time": time.monotonic() - self._started})
            self._started = time.monotonic()
            self.performance.put("the time it took", lambda: self._api.server.put_client_time_result(result))

    def ended(self, well: bool) -> None:
        """The client has left the federation, because the run has ended or because of a failure."""
        if self.manager is not None:
            self.manager.put("the end of training", lambda: self._api.tell_manager("fin" if well else "fail"))

    def close(self) -> None:
        """Tell the client manager that the client's program ends, and send what waits, for a moment."""
        if self.manager is not None:
            self.manager.put("that the client leaves", lambda: self._api.tell_manager("out"))
        super().close()

    def _system(self) -> dict[str, Any]:
        """This client's processes and machine, under FedOps' names; bytes and MiB, percent, seconds."""
        memory, network = psutil.virtual_memory(), psutil.net_io_counters()
        resident = _resident_bytes()
        return {
            "network_sent": network.bytes_sent,
            "network_recv": network.bytes_recv,
            "runtime": time.monotonic() - self._started,
            "memory_rssMB": sum(resident) / 2**20,
            "memory_availableMB": memory.available / 2**20,
            "memory_percent": 100 * sum(resident) / memory.total,
            "memory": memory.percent,
            "cpu": psutil.cpu_percent(),
            "processes": len(resident),
            "timestamp": time.time(),
            "wandb_name": "",
        }


def _resident_bytes() -> list[int]:
    """Resident memory of this process and of each that it has started."""
    found = []
    me = psutil.Process(os.getpid())
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            found.append(process.memory_info().rss)
    return found


def client_reports(platform: Platform, task_id: str, warn: Say) -> ClientReports | None:
    """A client's reports; None without FEDOPS_* variables, or, with a warning, without the package fedops."""
    if not (platform.performance or platform.client_manager):
        return None
    try:
        return ClientReports(ClientPlatform(platform, task_id), warn)
    except FederationError as error:
        warn(f"nothing is reported to the FedOps platform: {error}")
        return None
