"""No request makes a client's front fail, and its answers are as its OpenAPI description says (schemathesis)."""

from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup, ServerError
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from fedmap.participation import CONNECTED, Participation
from fedmap.service import background
from fedmap.service.client_front import Identity, create_client_app, rules_for

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


def client_app() -> FastAPI:
    participation = Participation()
    participation.update(prepared=True, state=CONNECTED, address="127.0.0.1:9")
    return create_client_app(Identity(3, "movies"), participation, rules_for("127.0.0.1", None))


def attack(app: FastAPI) -> set[str]:
    """Send what the application's description admits, and what it does not; returns the operations that there are."""
    with background.serving(app) as served:
        operations = [found.ok() for found in schemathesis.openapi.from_url(f"{served.url}/openapi.json").get_all_operations()]
        for operation in operations:

            @given(case=operation.as_strategy())
            @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            def send(case: Any) -> None:
                case.call_and_validate(checks=CHECKS, timeout=20)

            send()
        return {operation.label for operation in operations}


def test_no_request_makes_the_front_fail() -> None:
    assert attack(client_app()) >= {"GET /online", "POST /start", "POST /stop", "GET /metrics", "GET /info", "GET /trainFin"}


def test_a_failure_would_be_seen() -> None:
    app = client_app()

    @app.get("/broken")
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(FailureGroup) as caught:
        attack(app)
    assert any(isinstance(failure, ServerError) for failure in caught.value.exceptions)
