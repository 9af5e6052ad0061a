"""GET /metrics: the current run and this front, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from fedmap.service.runs import Runs
from fedmap.service.schemas import Status

_REASONS = {
    "rejected": "updates that were refused in all rounds so far",
    "failed": "updates that did not come in all rounds so far",
    "marked": "updates in all rounds so far that were used, but not believed (signal) or not taken whole (norm)",
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS")


class RunCollector(Collector):
    """Reads the current run's files when it is asked."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def collect(self) -> Iterator[Metric]:
        """One family for each thing that is known."""
        watchers = GaugeMetricFamily("fedmap_event_watchers", "open streams of events")
        watchers.add_metric([], self.runs.watchers())
        yield watchers
        folder = self.runs.newest()
        if folder is None:
            return
        standing, newest = self.runs.standing(folder), self.runs.newest_round(folder)
        yield InfoMetricFamily("fedmap_run", "the run", {name: standing[name] for name in ("id", "strategy", "model", "dataset")})
        status = GaugeMetricFamily("fedmap_run_status", "1 for the status that the run has", labels=["status"])
        for name in get_args(Status):
            status.add_metric([name], float(standing["status"] == name))
        yield status
        for name, what in (("round", "that runs or has ended last"), ("rounds_done", "rounds recorded"), ("num_rounds", "rounds planned")):
            yield GaugeMetricFamily(f"fedmap_{name}", what, standing[name])
        yield GaugeMetricFamily("fedmap_clients_awaited", "clients of this round that have not answered", len(standing["waiting_for"]))
        if standing["seconds_left"] is not None:
            yield GaugeMetricFamily("fedmap_left_seconds", "until the last round will have ended", standing["seconds_left"])
        yield from _newest(newest)


def _newest(newest: dict[str, dict[str, float]]) -> Iterator[Metric]:
    scores = GaugeMetricFamily("fedmap_score", "the global model after the newest round, in [0, 1]", labels=["split", "score"])
    losses = GaugeMetricFamily("fedmap_loss", "the global model after the newest round", labels=["split"])
    for split in ("validation", "test"):
        for name, value in newest.get(split, {}).items():
            if name == "loss":
                losses.add_metric([split], value)
            else:
                scores.add_metric([split, name], value)
    yield scores
    yield losses
    seconds = GaugeMetricFamily("fedmap_round_seconds", "of the newest round", labels=["phase"])
    for phase, value in newest.get("seconds", {}).items():
        seconds.add_metric([phase], value)
    yield seconds
    clients = GaugeMetricFamily("fedmap_clients", "of the newest round", labels=["status"])
    for status, value in newest.get("clients", {}).items():
        clients.add_metric([status], value)
    yield clients
    for name, what in _REASONS.items():
        counted = CounterMetricFamily(f"fedmap_updates_{name}", what, labels=["reason"])
        for code, value in newest.get(name, {}).items():
            counted.add_metric([code], value)
        yield counted
    sent = CounterMetricFamily("fedmap_model_bytes", "sent in all rounds so far", labels=["direction"])
    for direction, value in newest.get("bytes", {}).items():
        sent.add_metric([direction], value)
    yield sent


class Metrics:
    """The registry of one front."""

    def __init__(self, runs: Runs) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(RunCollector(runs))
        ProcessCollector(registry=self.registry)
        self._requests = Counter("fedmap_http_requests", "answered", ["method", "status"], registry=self.registry)

    def answered(self, method: str, status: int) -> None:
        """Count one request."""
        self._requests.labels(method if method in _METHODS else "other", str(status)).inc()

    def router(self) -> APIRouter:
        """The route."""
        made = APIRouter(tags=["health"])

        @made.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
        def metrics() -> Response:
            """Numbers for Prometheus."""
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

        return made
