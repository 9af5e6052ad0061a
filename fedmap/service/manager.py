"""FedOps' server manager and performance sink for the one task of this server, so that a federation needs no outside platform.

Paths, methods and bodies are those of the `fedops` package, 1.1.30.19 (client/client_api.py, server/server_api.py). What is received
is kept as JSON lines, {"time", "kind", "report"}, in fedops.jsonl of the run's folder, and read at GET /api/tasks/{task_id}.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from fedmap.files import plain
from fedmap.service.schemas import Problem

FILE = "fedops.jsonl"
_FILE_BYTES = 16 << 20
_RECENT, _RECENT_BYTES = 1000, 4 << 20
_CLUSTERS = 10_000
_DEPTH = 4
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}
_REFUSED: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "this server serves another task"}}


class ClientReport(StrEnum):
    """What FedOps' clients report."""

    train = "train_result"
    test = "test_result"
    time = "client_time_result"
    system = "client_system"
    xai = "xai_result"


class ServerReport(StrEnum):
    """What FedOps' servers report."""

    evaluation = "gl_model_evaluation"
    time = "server_time_result"


class Port(BaseModel):
    """Where clients join; the host is this server's."""

    port: int


class Accepted(BaseModel):
    """What FedOps' clients look for in an answer."""

    ok: bool = True


class Cluster(BaseModel):
    """A client's cluster, None to take it out."""

    client_mac: str = Field(min_length=1, max_length=100)
    cluster_id: int | None = Field(default=None, ge=-(2**53), le=2**53)


class Received(BaseModel):
    """One report."""

    time: float = Field(description="unix seconds")
    kind: str
    report: dict[str, Any]


class TaskShown(BaseModel):
    """What was received for the task."""

    task_id: str
    port: int | None
    clusters: dict[str, int]
    counts: dict[str, int] = Field(description="reports by kind")
    reports: list[Received] = Field(description="the newest, the newest last")


@dataclass(frozen=True)
class Task:
    """The task that this server serves.

    Attributes:
        task_id: its name.
        port: where clients join; None with runtime=local, where none can.
        folder: where its reports are kept.
    """

    task_id: str
    port: int | None
    folder: Path


@dataclass
class Sink:
    """Keeps reports in a file of bounded size, and the newest in memory."""

    path: Path
    counts: Counter[str] = field(default_factory=Counter, init=False)
    clusters: dict[str, int] = field(default_factory=dict, init=False)
    _recent: deque[bytes] = field(default_factory=deque, init=False)
    _recent_bytes: int = field(default=0, init=False)
    _bytes: int = field(default=0, init=False)
    _torn: bool = field(default=False, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError:
            return
        for line in lines:
            try:
                entry = Received(**json.loads(line))
            except (ValueError, TypeError):
                continue
            self._remember(entry, line)
        self._bytes = sum(map(len, lines))
        self._torn = bool(lines) and not lines[-1].endswith(b"\n")  # the last line's writer was killed

    def add(self, kind: str, report: dict[str, Any]) -> None:
        """Keep one report.

        Raises:
            HTTPException: there is no room for it.
        """
        entry = Received(time=round(time.time(), 3), kind=kind, report=plain(report))
        line = json.dumps(entry.model_dump(), allow_nan=False).encode() + b"\n"
        with self._lock:
            if self._bytes + len(line) > _FILE_BYTES:
                raise HTTPException(413, f"the reports of this task fill {_FILE_BYTES >> 20} MiB; no more are kept")
            try:
                handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    os.write(handle, b"\n" + line if self._torn else line)
                    self._torn = False
                finally:
                    os.close(handle)
            except OSError as error:
                raise HTTPException(503, f"the report cannot be kept: {error.strerror}") from error
            self._bytes += len(line)
            self._remember(entry, line)

    def _remember(self, entry: Received, line: bytes) -> None:
        self.counts[entry.kind] += 1
        if entry.kind == "cluster":
            mac, cluster = str(entry.report.get("client_mac")), entry.report.get("cluster_id")
            if cluster is None:
                self.clusters.pop(mac, None)
            elif mac in self.clusters or len(self.clusters) < _CLUSTERS:
                self.clusters[mac] = int(cluster)
        self._recent.append(line)
        self._recent_bytes += len(line)
        while len(self._recent) > _RECENT or self._recent_bytes > _RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft())

    def newest(self, limit: int, kind: str | None) -> list[Received]:
        """The newest reports, of one kind or of all; at most `limit`, the newest last."""
        with self._lock:
            lines = list(self._recent)
        found: list[Received] = []
        for line in reversed(lines):
            entry = Received(**json.loads(line))
            if kind is None or entry.kind == kind:
                found.append(entry)
            if len(found) == limit:
                break
        return found[::-1]


async def body_object(request: Request) -> dict[str, Any]:
    """The JSON object in a body, whatever its content type: FedOps' clients send none.

    Raises:
        HTTPException: it is no JSON object, or its parts are nested too deeply.
    """
    try:
        body = await request.body()
    except ClientDisconnect as error:  # nobody reads the answer; it is no fault of the server's
        raise HTTPException(400, "the connection ended before the body had come") from error
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict) or not _shallow(value, _DEPTH):
        raise HTTPException(422, f"the body has to be a JSON object, nested at most {_DEPTH} deep")
    return value


def _shallow(value: Any, depth: int) -> bool:
    if isinstance(value, (dict, list)):
        return depth > 0 and all(_shallow(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value))
    return True


def router(task: Task) -> APIRouter:
    """The routes for one task."""
    made = APIRouter(tags=["FedOps"], responses=_REFUSED)
    sink = Sink(task.folder / FILE)

    def served(task_id: Annotated[str, PathParameter(description="task_id of the server's configuration")]) -> str:
        if task_id != task.task_id:
            raise HTTPException(
                404, f"this server serves the task {task.task_id!r}, not {task_id!r}; task_id has to be the same everywhere"
            )
        return task_id

    body = Depends(body_object)
    only = [Depends(served)]

    @made.get("/FLSe/getPort/{task_id}", dependencies=only)
    def port() -> Port:
        """Where clients of the task join."""
        if task.port is None:
            raise HTTPException(404, "with runtime=local the server runs all clients itself, and none can join")
        return Port(port=task.port)

    @made.put("/FLSe/FLSeUpdate/{task_id}", dependencies=only, openapi_extra=_BODY)
    def update(report: dict[str, Any] = body) -> Accepted:
        """A server's status."""
        sink.add("FLSeUpdate", report)
        return Accepted()

    @made.put("/FLSe/FLRoundFin/{task_id}", dependencies=only)
    def finished(ready: Annotated[str, Query(alias="FLSeReady", max_length=10)] = "false") -> Accepted:
        """A server's round has ended."""
        sink.add("FLRoundFin", {"FLSeReady": ready})
        return Accepted()

    @made.put("/FLSe/cluster/{task_id}", dependencies=only)
    def cluster(assigned: Cluster) -> Accepted:
        """The cluster that a client belongs to."""
        sink.add("cluster", assigned.model_dump())
        return Accepted()

    @made.put("/client_perf/{kind}/{task_id}", dependencies=only, openapi_extra=_BODY)
    def client(kind: ClientReport, report: dict[str, Any] = body) -> Accepted:
        """A client's performance."""
        sink.add(kind.value, report)
        return Accepted()

    @made.put("/server_perf/{kind}/{task_id}", dependencies=only, openapi_extra=_BODY)
    def server(kind: ServerReport, report: dict[str, Any] = body) -> Accepted:
        """A server's performance."""
        sink.add(kind.value, report)
        return Accepted()

    @made.get("/api/tasks/{task_id}", dependencies=only)
    def show(limit: Annotated[int, Query(ge=1, le=_RECENT)] = 100, kind: Annotated[str | None, Query(max_length=50)] = None) -> TaskShown:
        """What was received for the task."""
        return TaskShown(
            task_id=task.task_id,
            port=task.port,
            clusters=dict(sink.clusters),
            counts=dict(sink.counts),
            reports=sink.newest(limit, kind),
        )

    return made
