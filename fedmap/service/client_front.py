"""A client's HTTP front: FedOps' `GET /online` and `POST /start` with their fields, and health, status, metrics and `/stop`.

FedOps' client manager runs beside the client and calls it without any credentials, so on this machine `/start` and `/stop` need
none. What is refused is a web page: a browser says with each POST from where the page came, and programs do not. A front that
other machines can reach needs the server's token for everything but the health checks.
"""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel, Field
from starlette.datastructures import Headers

from fedmap.config import is_loopback
from fedmap.participation import FAILED, PREPARING, STATES, Participation, Standing
from fedmap.service import client_manager, documentation
from fedmap.service.answers import Json, install_answers
from fedmap.service.gate import Gate, Rules
from fedmap.service.reporting import mac_address
from fedmap.service.schemas import Problem

_FROM_PROGRAMS = frozenset({"/start", "/stop", *client_manager.PATHS})
_START_SECONDS = 5.0  # how long /start waits for the server's address, which FedOps puts into its answer


class FedOpsStatus(BaseModel):
    """FedOps' status of a client, field by field."""

    task_id: str
    client_num: int = Field(description="this client's number")
    client_mac: str
    client_name: str = Field(description="the machine's host name")
    client_online: bool
    client_start: bool = Field(description="whether the client takes part in a run, or tries to")
    client_fail: bool
    server_IP: str | None = Field(description="the server's address, host:port; null while it is not known")
    gl_model: int = Field(description="the number of the global model, from FedOps' client manager; 0 without one")


class ClientStanding(BaseModel):
    """Where the client stands."""

    client_id: int
    task_id: str
    state: str = Field(description=f"one of: {', '.join(STATES)}")
    since: float = Field(description="when that state began, unix seconds")
    waiting_for: str = Field(description="a sentence; empty where nothing is awaited")
    problem: str = Field(description="what went wrong last; empty if nothing did")
    address: str = Field(description="the server's, host:port; empty while it is not known")
    prepared: bool = Field(description="whether the client's data have been read")
    run: str
    round_index: int
    num_rounds: int
    rounds_trained: int
    num_train: int | None
    train_loss: float | None
    validation_macro_f1: float | None
    train_seconds: float | None
    test_macro_f1: float | None
    test_micro_f1: float | None
    connections: int = Field(description="how often Flower's SuperNode was started")
    model_version: int
    reports_sent: int = Field(description="to an outside FedOps platform")
    reports_lost: int


class Health(BaseModel):
    """Whether the client is there, and whether it can take part."""

    status: Literal["alive", "ready", "not ready"]
    detail: str = ""


@dataclass(frozen=True)
class Identity:
    """Who the client is."""

    client_id: int
    task_id: str


class Reported:
    """How many reports went out; replaced by an `Outbox` where there is a platform."""

    sent = 0
    lost = 0


@dataclass(frozen=True)
class ClientRules(Rules):
    """Programs of this machine may start and stop the client; web pages may not."""

    def refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """See `Rules`."""
        refused = super().refusal(method, path, headers)
        if self.public or path not in _FROM_PROGRAMS or (refused is not None and refused[0] not in (401, 403)):
            return refused
        if "origin" in headers or headers.get("sec-fetch-site", "none") != "none":
            return 403, "a web page may not do this to a client: send the request from a program, for example with curl"
        return None


def create_client_app(identity: Identity, participation: Participation, rules: ClientRules, reports: Any = Reported) -> FastAPI:
    """The client front.

    Args:
        identity: who the client is.
        participation: where it stands; `/start` and `/stop` leave their wishes there.
        rules: who may ask.
        reports: has the numbers `sent` and `lost`.
    """
    app = FastAPI(
        title=f"FedMAP client {identity.client_id}",
        description="A client of a federation: its state, and FedOps' interface to start it.",
        responses={status: {"model": Problem} for status in (401, 403, 413, 421)},
        docs_url=None,
        redoc_url=None,
        default_response_class=Json,
    )
    install_answers(app)
    app.add_middleware(Gate, rules=rules)
    app.include_router(documentation.router())
    app.include_router(client_manager.router(identity.task_id, mac_address(), participation))
    registry = CollectorRegistry()
    registry.register(_Metrics(identity, participation, reports))

    def fedops() -> FedOpsStatus:
        standing = participation.standing
        return FedOpsStatus(
            task_id=identity.task_id,
            client_num=identity.client_id,
            client_mac=mac_address(),
            client_name=socket.gethostname(),
            client_online=True,
            client_start=participation.wanted,
            client_fail=standing.state == FAILED,
            server_IP=standing.address or None,
            gl_model=standing.model_version,
        )

    @app.get("/online", tags=["FedOps"])
    def online() -> FedOpsStatus:
        """Whether the client is there and takes part."""
        return fedops()

    @app.post("/start", tags=["FedOps"])
    def start() -> FedOpsStatus:
        """Take part in the federation; nothing changes for a client that does already. A body is not needed and not read."""
        participation.ask_to_start()
        if participation.standing.prepared:
            participation.wait_until(lambda standing: bool(standing.address) and standing.active, _START_SECONDS)
        return fedops()

    @app.post("/stop", tags=["client"])
    def stop() -> FedOpsStatus:
        """Leave the federation and wait for `/start`. A round that is being trained is lost for this client."""
        participation.ask_to_stop()
        return fedops()

    @app.get("/status", tags=["client"])
    def status() -> ClientStanding:
        """Where the client stands."""
        return ClientStanding(**asdict(identity), **asdict(participation.standing), reports_sent=reports.sent, reports_lost=reports.lost)

    @app.get("/health/live", tags=["health"])
    def live() -> Health:
        """The program runs."""
        return Health(status="alive")

    @app.get("/health/ready", tags=["health"], responses={503: {"model": Health, "description": "data are not ready, or it failed"}})
    def ready(response: Response) -> Health:
        """The client's data have been read and it can take part, or does; also while it waits for the server."""
        standing = participation.standing
        if standing.prepared and standing.state != FAILED:
            return Health(status="ready", detail=standing.waiting_for)
        response.status_code = 503
        response.headers["retry-after"] = "5"
        return Health(status="not ready", detail=standing.problem or "the client prepares its data")

    @app.get("/metrics", tags=["client"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    return app


class _Metrics:
    """Reads the standing whenever Prometheus asks."""

    def __init__(self, identity: Identity, participation: Participation, reports: Any) -> None:
        self._identity, self._participation, self._reports = identity, participation, reports

    def collect(self) -> list[Metric]:
        """The metrics at this moment."""
        standing = self._participation.standing
        names, values = ["client", "task"], [str(self._identity.client_id), self._identity.task_id]
        state = GaugeMetricFamily("fedmap_client_state", "1 for the state that the client is in.", labels=[*names, "state"])
        for name in STATES:
            state.add_metric([*values, name], float(name == standing.state))
        found: list[Metric] = [state]
        for key, text, value in _gauges(standing):
            if value is not None:
                gauge = GaugeMetricFamily(f"fedmap_client_{key}", text, labels=names)
                gauge.add_metric(values, value)
                found.append(gauge)
        for key, text, count in (
            ("rounds_trained", "Rounds that this process has trained.", standing.rounds_trained),
            ("connections", "How often Flower's SuperNode was started.", standing.connections),
            ("reports_sent", "Reports that an outside FedOps platform has taken.", self._reports.sent),
            ("reports_lost", "Reports that no FedOps platform has taken.", self._reports.lost),
        ):
            counter = CounterMetricFamily(f"fedmap_client_{key}", text, labels=names)
            counter.add_metric(values, count)
            found.append(counter)
        return found


def _gauges(standing: Standing) -> list[tuple[str, str, float | None]]:
    return [
        ("round", "The round that is or was trained last.", standing.round_index),
        ("rounds", "Rounds of the run in all.", standing.num_rounds),
        ("training_rows", "Rows to train on.", standing.num_train),
        ("train_loss", "Mean training loss of the last round.", standing.train_loss),
        ("validation_macro_f1", "Macro-F1 of this client's model after the last round.", standing.validation_macro_f1),
        ("train_seconds", "Seconds of training in the last round.", standing.train_seconds),
        ("test_macro_f1", "Macro-F1 on this client's test rows at the run's end.", standing.test_macro_f1),
        ("prepared", "1 once the client's data have been read.", float(standing.prepared)),
        ("up", "1 unless the client has failed or still prepares its data.", float(standing.state not in (FAILED, PREPARING))),
    ]


def rules_for(host: str, token: str | None) -> ClientRules:
    """Who may ask a front that listens at the host."""
    return ClientRules(token=token, public=not is_loopback(host))
