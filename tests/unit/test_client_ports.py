"""Several clients on one machine each get a front; a port that somebody has chosen is theirs or an error."""

import contextlib
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedmap.config import RunConfig, compose_and_resolve, parse
from fedmap.errors import FederationError
from fedmap.participation import Participation
from fedmap.service.client import DEFAULT_PORT, _front


@pytest.fixture(autouse=True)
def no_chosen_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDOPS_CLIENT_PORT", raising=False)


def config(*overrides: str) -> RunConfig:
    return parse(compose_and_resolve("client", ["model=digits", "dataset=digits", *overrides]))


@contextlib.contextmanager
def taken(port: int) -> Iterator[int]:
    """A port that another program listens on; whose it is does not matter."""
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))
            port = listener.getsockname()[1]
        except OSError:
            assert port, "some port is free"
        yield port


def front(said: list[str], *overrides: str) -> contextlib.AbstractContextManager[None]:
    return _front(config(*overrides), Participation(), None, said.append)


def url(sentence: str) -> str:
    found = re.search(r"http://\S+?:\d+", sentence)
    assert found, sentence
    return found[0]


def test_clients_beside_each_other_find_free_ports_and_leave_the_managers_alone() -> None:
    said: list[str] = []
    with taken(DEFAULT_PORT), front(said), front(said, "client_id=1"):
        ports = [int(url(sentence).rpartition(":")[2]) for sentence in said]
        assert len(set(ports)) == 2
        assert min(ports) >= 8005, "8004 is the port of FedOps' client manager"
        assert all(f"(port {DEFAULT_PORT} is taken)" in sentence for sentence in said)
        assert [httpx.get(f"{url(sentence)}/status").json()["client_id"] for sentence in said] == [0, 1]


def test_a_chosen_port_that_is_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with taken(0) as port:
        with pytest.raises(FederationError, match=rf"client.port={port} \(or FEDOPS_CLIENT_PORT\) is taken by another program; choose"):
            front([], f"client.port={port}").__enter__()
        monkeypatch.setenv("FEDOPS_CLIENT_PORT", str(port))
        with pytest.raises(FederationError, match=f"client.port={port} "):
            front([]).__enter__()
    said: list[str] = []
    with front(said):
        assert said == [f"client 0: its state is at http://127.0.0.1:{port}/status"]


def test_a_front_can_be_left_out() -> None:
    said: list[str] = []
    with front(said, "client.enabled=false"):
        assert said == []


def test_a_public_front_shows_its_token_once(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "token"
    public = ("client.host=0.0.0.0", "client.port=0", "security.insecure=true", f"service.token_file={file}")
    with front(said, *public):
        token = file.read_text().strip()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert token in said[0]
        assert httpx.get(f"{url(said[1])}/online").status_code == 401
        assert httpx.get(f"{url(said[1])}/online", headers={"authorization": f"Bearer {token}"}).status_code == 200
    said.clear()
    with front(said, *public):
        assert len(said) == 1
        assert token not in said[0]
