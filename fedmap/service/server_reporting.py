"""What the server reports to an outside FedOps platform: its state, each round's scores, and its end, from the events of the run.

A thread follows events.jsonl in the run's folder, as a page does, so the run itself knows nothing of it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedmap.flower.events import EVENTS, Tail
from fedmap.service.outbox import Outbox
from fedmap.service.platform import Platform
from fedmap.service.reporting import Reports, Say, as_json
from fedmap.service.transport import Bounded

_FOLLOW_SECONDS = 0.5
log = logging.getLogger("fedmap.platform")


@contextlib.contextmanager
def server_reports(task_id: str, folder: Path, note: Say, platform: Platform) -> Iterator[Reports | None]:
    """While the block runs, report the run whose `events.jsonl` lies in the folder; nothing without FEDOPS_* variables.

    Args:
        task_id: the federation's task on the platform.
        folder: the run's folder; events that it holds already, of a run that is continued, are not reported again.
        note: told of trouble, once.
        platform: what the environment says.
    """
    if not (platform.server_manager or platform.performance):
        yield None
        return
    reports = _ServerReports(platform, task_id, note)
    events = Tail(folder / EVENTS)
    for _ in events.new():
        pass
    reports.begin()
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(events, reports, stop), name="fedmap-server-reports", daemon=True)
    thread.start()
    try:
        yield reports
    finally:
        stop.set()
        thread.join(timeout=5)
        reports.end()
        reports.close()


def _follow(events: Tail, reports: _ServerReports, stop: threading.Event) -> None:
    while True:
        last = stop.wait(_FOLLOW_SECONDS)
        try:
            for event in events.new():
                reports.event(event)
        except (OSError, ValueError, KeyError, TypeError) as error:  # a torn or foreign line: this look is lost, the next is not
            log.debug("an event cannot be reported: %r", error)
        if last:
            return


class _ServerReports(Reports):
    def __init__(self, platform: Platform, task_id: str, note: Say) -> None:
        super().__init__(platform.performance, platform.server_manager, note)
        self._platform, self._task_id = platform, task_id
        self._http = Bounded(platform.seconds, platform.authority)
        self._started = time.monotonic()
        self._ended = False

    def _put(self, name: str, outbox: Outbox | None, path: str, values: Mapping[str, Any] | None = None, **options: Any) -> None:
        if outbox is not None:
            base = self._platform.performance if outbox is self.performance else self._platform.server_manager
            url = f"{base}/{path}/{quote(self._task_id, safe='')}"
            body = {} if values is None else {"data": as_json(values)}
            outbox.put(name, lambda: self._http.put(url, **body, **options))

    def begin(self) -> None:
        """The server gets ready: clients may begin."""
        version = self._platform.model_version
        status = {
            "S3_bucket": "",  # the model stays in the run's folder
            "Last_GL_Model": f"gl_model_{version - 1}_V",
            "FLServer_start": f"{datetime.now():%Y-%m-%d %H-%M-%S}",
            "FLSeReady": True,
            "GL_Model_V": version,
        }
        self._put("the server's status", self.manager, "FLSe/FLSeUpdate", status)

    def event(self, event: Mapping[str, Any]) -> None:
        """Report one event of the run."""
        if event["event"] == "round" and event["record"]["round_index"] > 0:
            self._put("a round's scores", self.performance, "server_perf/gl_model_evaluation", self._scores(event["record"]))
        elif event["event"] == "finished":
            self._finish(well=True)
        elif event["event"] == "failed":
            self._finish(well=False)

    def end(self) -> None:
        """The server ends; a run that has not said so itself was stopped."""
        if not self._ended:
            self._finish(well=False)

    def _finish(self, well: bool) -> None:
        self._ended = True
        if well:
            values = {"fl_task_id": self._task_id, "server_operation_time": time.monotonic() - self._started}
            values |= {"gl_model_v": self._platform.model_version}
            self._put("the time it took", self.performance, "server_perf/server_time_result", values)
        else:
            self._put("the server's status", self.manager, "FLSe/FLSeUpdate", {"FLSeReady": False})
        self._put("the run's end", self.manager, "FLSe/FLRoundFin", params={"FLSeReady": "false"})

    def _scores(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A round's scores: the server's validation rows, else the clients'."""
        on_server = record.get("validation")
        scores: Mapping[str, Any] = on_server or record.get("clients_validation") or {}
        status = "evaluated" if scores else "not_evaluated"
        values = {
            "fl_task_id": self._task_id,
            "round": record["round_index"],
            "gl_loss": scores.get("loss"),
            "gl_accuracy": scores.get("micro_f1"),
            "run_time_by_round": sum(seconds or 0.0 for seconds in (record.get("seconds") or {}).values()),
            **{name: scores.get(name) for name in ("micro_f1", "macro_f1", "weighted_f1", "samples_f1")},
            "gl_model_v": self._platform.model_version,
            "evaluation_source": "server_validation" if on_server else "client_aggregated",
            "evaluation_status": status,
        }
        return values | ({"campaign_run_id": self._platform.campaign} if self._platform.campaign else {})
