"""The fronts in the configuration: what is public needs to be said twice."""

import pytest

from fedmap.config import ClientConfig, ServiceConfig, compose_and_resolve, is_loopback, parse
from fedmap.errors import ConfigError


def config(*overrides: str) -> tuple[ServiceConfig, ClientConfig]:
    made = parse(compose_and_resolve("config", ["runtime=local", *overrides]))
    return made.service, made.client


def test_fronts_listen_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDOPS_CLIENT_PORT", raising=False)
    service, client = config()
    assert (service.enabled, service.host, service.port, service.token_file) == (True, "127.0.0.1", 8080, ".fedmap/token")
    assert (client.enabled, client.autostart, client.host, client.port) == (True, True, "127.0.0.1", 8003)
    monkeypatch.setenv("FEDOPS_CLIENT_PORT", "9003")
    assert config()[1].port == 9003


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["service.host=0.0.0.0"], "service.host='0.0.0.0' is not this machine alone.*security.insecure=true"),
        (["service.host=0.0.0.0", "security.insecure=true", "service.token_file=null"], "would let everybody in without a token"),
        (["client.host=0.0.0.0", "security.insecure=true", "service.token_file=null"], "client.host=.0.0.0.0. would let everybody in"),
        (["client.host=192.168.0.3"], "client.host='192.168.0.3' is not this machine alone"),
        (["client.enabled=false", "client.autostart=false"], "waits for POST /start"),
        (["service.port=70000"], "service.port=70000: expected an integer between 0 and 65535"),
        (["service.port=-1"], "service.port=-1"),
        (["service.enabled=3"], "service.enabled=3: expected true or false"),
        (["service.token_file=''"], "service.token_file='': expected a text"),
        (["service.hots=a"], "did you mean 'service.host'"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(*overrides)


def test_what_is_not_served_may_have_any_address() -> None:
    assert not config("service.enabled=false", "service.host=0.0.0.0")[0].enabled
    assert config("service.host=0.0.0.0", "security.insecure=true")[0].host == "0.0.0.0"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("a.b", False),
        ("", False),
    ],
)
def test_addresses_of_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
