"""What the FEDOPS_* variables say, FedOps' own client API under our limits, and the way to the server's address."""

import importlib.util
import json
import logging
import sys
import time
from collections.abc import Callable

import pytest
import requests

from fedmap.config import SecurityConfig
from fedmap.errors import ConfigError, FederationError
from fedmap.service.discovery import Asked, Fixed, discovery
from fedmap.service.platform import ClientPlatform, Platform, is_endpoint
from tests.platforms import Request, raw, recorder, silent

CLOSED, OPEN = SecurityConfig(), SecurityConfig(insecure=True)
needs_fedops = pytest.mark.skipif(
    importlib.util.find_spec("fedops") is None, reason="needs FedOps' client API: pip install --no-deps -r requirements-fedops.txt"
)


def test_nothing_is_contacted_unless_it_is_named() -> None:
    assert Platform.from_environment({}) == Platform()
    assert isinstance(discovery(Platform(), "t", "127.0.0.1:8000", CLOSED), Fixed)


def test_variables_are_read() -> None:
    found = Platform.from_environment(
        {
            "FEDOPS_SERVER_MANAGER_URL": " http://u:p@host:40019/ ",
            "FEDOPS_CLIENT_PERFORMANCE_URL": "https://host/perf",
            "FEDOPS_CLIENT_MANAGER_URL": "http://localhost:8004",
            "FEDOPS_AGGREGATION_SERVER": "[::1]:8080",
            "FEDOPS_REQUEST_TIMEOUT_SECONDS": "2.5",
            "FEDOPS_CAMPAIGN_RUN_ID": "c-1",
            "FEDOPS_GL_MODEL_VERSION": "7",
        }
    )
    assert found == Platform("http://u:p@host:40019", "https://host/perf", "http://localhost:8004", "[::1]:8080", 2.5, "c-1", 7)


def test_every_mistake_is_named_at_once_and_no_password_is_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        Platform.from_environment(
            {
                "FEDOPS_SERVER_MANAGER_URL": "me:secret@host",
                "FEDOPS_CLIENT_PERFORMANCE_URL": "http://host:port",
                "FEDOPS_AGGREGATION_SERVER": "host",
                "FEDOPS_REQUEST_TIMEOUT_SECONDS": "soon",
                "FEDOPS_GL_MODEL_VERSION": "0",
            }
        )
    text = str(caught.value)
    for part in (
        "FEDOPS_SERVER_MANAGER_URL: expected an address like http://",
        "FEDOPS_CLIENT_PERFORMANCE_URL: expected an address",
        "FEDOPS_AGGREGATION_SERVER='host': expected host:port",
        "FEDOPS_REQUEST_TIMEOUT_SECONDS='soon': expected a number of at least 0.1",
        "FEDOPS_GL_MODEL_VERSION='0': expected a number of at least 1",
    ):
        assert part in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("h:1", True),
        ("[::1]:8000", True),
        ("h:0", False),
        ("h:70000", False),
        (":80", False),
        ("http://h:80", False),
        ("u@h:80", False),
        ("h", False),
    ],
)
def test_endpoints(text: str, fits: bool) -> None:
    assert is_endpoint(text) == fits


@needs_fedops
def test_loading_the_client_api_changes_nothing_for_others() -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, "fedops.client.client_api" in sys.modules)
    api = ClientPlatform(Platform(server_manager="http://127.0.0.1:1"), "t")
    assert (list(root.handlers), root.level, "fedops.client.client_api" in sys.modules) == before
    from fedops.client import client_api

    assert client_api.requests is requests
    assert type(api.server) is not client_api.ClientServerAPI
    assert type(api.server).__module__ == client_api.ClientServerAPI.__module__ == "fedops.client.client_api"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FederationError, match="package fedops is not installed: pip install --no-deps -r requirements-fedops.txt"):
        discovery(Platform(server_manager="http://127.0.0.1:1"), "t", "127.0.0.1:8000", CLOSED)


@needs_fedops
def test_a_client_api_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MONITORING", "1")  # it then logs into ./fedops, which is not there
    with pytest.raises(FederationError, match=r"client_api of the package fedops cannot be loaded: .*No such file"):
        ClientPlatform(Platform(server_manager="http://127.0.0.1:1"), "t")


@needs_fedops
def test_the_server_manager_names_the_port(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("FEDOPS_AGGREGATION_HOST", raising=False)
    with recorder(lambda request: (200, b'{"port": 31007}')) as manager:
        api = ClientPlatform(Platform(server_manager=manager.url), "my task")
        caplog.set_level(logging.DEBUG, "fedops")
        assert api.address() == "127.0.0.1:31007"
        monkeypatch.setenv("FEDOPS_AGGREGATION_HOST", "localhost")
        assert api.address() == "localhost:31007"
        assert manager.paths()[0] == "GET /FLSe/getPort/my%20task"
    assert caplog.records == [], "it is said in our own words"


@needs_fedops
@pytest.mark.parametrize("body", [b"{}", b"[]", b'"x"', b'{"port": "none"}', b'{"port": 0}', b"<html>", b"\xff", b"null"])
def test_what_is_no_port_is_refused(body: bytes) -> None:
    with recorder(lambda request: (200, body)) as manager, pytest.raises(ValueError):  # noqa: PT011
        ClientPlatform(Platform(server_manager=manager.url), "t").address()


@needs_fedops
def test_the_client_manager_is_asked_and_told() -> None:
    def answer(request: Request) -> tuple[int, bytes] | tuple[int, bytes, dict[str, str]]:
        if request.path == "/info/":
            return 307, b"", {"location": "/info"}  # as FedOps' own manager answers
        return 200, b'{"GL_Model_V": 4}'

    with recorder(answer) as manager:
        api = ClientPlatform(Platform(client_manager=manager.url), "t")
        assert api.model_version() == 4
        for what in ("fin", "fail", "out"):
            api.tell_manager(what)
        assert manager.paths() == ["GET /info/", "GET /info", "GET /trainFin", "GET /trainFail", "GET /flclient_out"]
    silent_one = ClientPlatform(Platform(), "t")
    assert silent_one.model_version() == 0
    silent_one.tell_manager("fin")


def wait_until(true: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


def test_the_variable_comes_first_and_another_machine_must_be_allowed() -> None:
    assert discovery(Platform(aggregation_server="127.0.0.1:9"), "t", "127.0.0.1:8000", CLOSED).address == "127.0.0.1:9"
    assert discovery(Platform(aggregation_server="far.example:9"), "t", "127.0.0.1:8000", OPEN).address == "far.example:9"
    with pytest.raises(ConfigError, match=r"FEDOPS_AGGREGATION_SERVER=far.example:9, which is not this machine.*security.insecure=true"):
        discovery(Platform(aggregation_server="far.example:9"), "t", "127.0.0.1:8000", CLOSED)


@needs_fedops
def test_a_manager_that_does_not_know_the_server_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDOPS_AGGREGATION_HOST", raising=False)
    ports: list[int] = []

    def answer(request: Request) -> tuple[int, bytes]:
        return (200, json.dumps({"port": ports[-1]}).encode()) if ports else (404, b"{}")

    with recorder(answer) as manager:
        found = Asked(ClientPlatform(Platform(server_manager=manager.url), "t"), CLOSED, first_pause=0.01, longest_pause=0.02)
        wait_until(lambda: "HTTP 404" in found.waiting_for)
        assert found.waiting_for == f"the server manager at {manager.url} to name the server of task t (the answer is HTTP 404)"
        assert found.address == ""
        ports.append(5001)
        wait_until(lambda: found.address == "127.0.0.1:5001")
        assert found.waiting_for == ""
        ports.append(5002)
        time.sleep(0.1)
        assert found.address == "127.0.0.1:5001", "nobody has asked"
        found.refresh()
        wait_until(lambda: found.address == "127.0.0.1:5002")
        found.close()


@needs_fedops
def test_a_manager_is_not_asked_more_often_because_many_wish_it() -> None:
    with recorder(lambda request: (200, b'{"port": 5001}')) as manager:
        found = Asked(ClientPlatform(Platform(server_manager=manager.url), "t"), CLOSED, first_pause=0.2, longest_pause=0.4)
        wait_until(lambda: found.address)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            found.refresh()
            time.sleep(0.005)
        assert 3 <= len(manager.seen) <= 9
        found.close()


@needs_fedops
def test_another_machine_that_a_manager_names_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOPS_AGGREGATION_HOST", "far.example")
    with recorder(lambda request: (200, b'{"port": 5001}')) as manager:
        api = ClientPlatform(Platform(server_manager=manager.url), "t")
        refused = Asked(api, CLOSED, first_pause=0.01, longest_pause=0.02)
        wait_until(lambda: "security.insecure=true" in refused.waiting_for)
        assert refused.address == ""
        allowed = Asked(api, OPEN)
        wait_until(lambda: allowed.address == "far.example:5001")
        refused.close()
        allowed.close()


@needs_fedops
def test_a_manager_that_hangs_delays_nothing_else() -> None:
    with raw(silent) as url:
        started = time.monotonic()
        found = Asked(ClientPlatform(Platform(server_manager=url, seconds=0.2), "t"), CLOSED, first_pause=0.01, longest_pause=0.02)
        assert time.monotonic() - started < 0.15
        wait_until(lambda: "no answer in time" in found.waiting_for)
        found.close()


@needs_fedops
def test_the_client_api_sends_through_our_limits() -> None:
    with recorder(lambda request: (422, b"")) as sink:
        api = ClientPlatform(Platform(performance=sink.url), "t")
        with pytest.raises(requests.RequestException, match="HTTP 422"):
            api.server.put_train_result("{}")
        assert sink.paths() == ["PUT /client_perf/train_result/t"]


def test_a_platform_elsewhere_is_reached_over_https_or_not_at_all() -> None:
    far = Platform(
        server_manager="http://user:geheim@far.example:1", performance="https://far.example", client_manager="http://localhost:8004"
    )
    with pytest.raises(
        ConfigError, match=r"FEDOPS_SERVER_MANAGER_URL=http://\*\*\*@far.example:1: what is sent there would not be"
    ) as caught:
        far.secured(CLOSED)
    assert "CLIENT_" not in str(caught.value)
    assert far.secured(OPEN) == far
    with pytest.raises(ConfigError, match="SERVER_MANAGER"):
        far.secured(SecurityConfig(folder="certs"))
    assert Platform(performance="https://far.example").secured(SecurityConfig(folder="certs")).authority == "certs/ca.pem"
