"""No request that its OpenAPI description admits, and none that it does not, makes the server's front fail (schemathesis)."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup, ServerError
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from fedmap.service import background
from fedmap.service.manager import Task
from fedmap.service.server_front import create_server_app
from tests.fronts import BEARER, TOKEN, make_run

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("place") / "outputs" / "run")


@pytest.fixture(scope="module")
def api(place: Path) -> Iterator[Any]:
    app = create_server_app(place.parent, place, token=TOKEN, task=Task("movies", 9191, place))

    @app.get("/broken")  # shows that a failure would be seen
    def broken() -> None:
        raise ZeroDivisionError

    with background.serving(app) as served:
        yield schemathesis.openapi.from_url(f"{served.url}/openapi.json", headers=BEARER)


def try_all(api: Any, path: str, ask: Callable[[Any], None]) -> int:
    """Ask with requests that fit the description and with some that do not, for each operation whose path matches."""
    operations = [found.ok() for found in api.get_all_operations()]
    chosen = [operation for operation in operations if re.search(path, operation.path)]
    for operation in chosen:
        for mode in GenerationMode:

            @given(operation.as_strategy(generation_mode=mode))
            @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            def asked(case: Any) -> None:
                ask(case)

            with contextlib.suppress(Unsatisfiable):  # there is no wrong request without parameters
                asked()
    return len(chosen)


def ask(case: Any) -> None:
    case.call_and_validate(headers=BEARER, checks=CHECKS, timeout=20)


def test_no_request_makes_the_front_fail(api: Any) -> None:
    assert try_all(api, r"^(?!.*(events|broken)$)", ask) >= 20


def test_no_request_for_events_makes_the_front_fail(api: Any) -> None:
    def watch(case: Any) -> None:
        wanted = case.as_transport_kwargs()
        wanted = {name: wanted[name] for name in ("method", "url", "params", "headers") if name in wanted}
        with httpx.Client(timeout=20) as client, client.stream(**wanted) as response:  # which would never end
            assert response.status_code in (200, 404, 405, 422)

    assert try_all(api, r"events$", watch) == 2


def test_a_failure_would_be_seen(api: Any) -> None:
    with pytest.raises(FailureGroup) as found:
        try_all(api, r"broken$", ask)
    assert found.group_contains(ServerError)
