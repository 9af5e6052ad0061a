"""What a client says of a server whose TLS does not fit, before Flower would try for ever. The servers are real ones."""

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from fastapi import FastAPI

from fedmap.access.authority import make_authority, make_certificate
from fedmap.access.folder import AccessFolder
from fedmap.access.handshake import check_encrypted, check_plain
from fedmap.errors import FederationError
from fedmap.service import background
from fedmap.service.transport import Bounded


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> AccessFolder:
    made = AccessFolder(tmp_path_factory.mktemp("access") / "certs")
    make_authority(made)
    make_certificate(made, made.server, [])
    return made


@contextlib.contextmanager
def answering(tls: tuple[Path, Path] | None) -> Iterator[int]:
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "well"

    with background.serving(app, tls=tls) as front:
        yield int(front.url.rpartition(":")[2])


def test_who_fits_is_let_pass(access: AccessFolder) -> None:
    with answering(access.server) as port:
        check_encrypted("127.0.0.1", port, access.authority)
        check_encrypted("localhost", port, access.authority)
    with answering(None) as port:
        check_plain("127.0.0.1", port)
    check_plain("127.0.0.1", port)  # nobody is there any more: nothing is wrong yet
    check_encrypted("127.0.0.1", port, access.authority)


def test_one_side_without_tls_is_named(access: AccessFolder) -> None:
    with answering(access.server) as port, pytest.raises(FederationError, match=f"the server at 127.0.0.1:{port} encrypts its connections"):
        check_plain("127.0.0.1", port)
    with answering(None) as port, pytest.raises(FederationError, match="does not speak TLS .* start the server with security=tls"):
        check_encrypted("127.0.0.1", port, access.authority)


@pytest.mark.parametrize(
    ("names", "days", "host", "sentence"),
    [
        ([], -1.0, "127.0.0.1", "its certificate has expired; `python -m fedmap certs server`"),
        (["fl.example.org"], 1.0, "127.0.0.2", "its certificate is not for 127.0.0.2; use a name that it has"),
    ],
)
def test_a_certificate_that_is_not_good_is_named(
    access: AccessFolder, tmp_path: Path, names: list[str], days: float, host: str, sentence: str
) -> None:
    files = tmp_path / "server.pem", tmp_path / "server.key"
    make_certificate(access, files, names, days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    with socket.create_server((host, 0)) as listener:

        def shake() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=shake)
        thread.start()
        with pytest.raises(FederationError, match=re.escape(sentence)):
            check_encrypted(host, listener.getsockname()[1], access.authority)
        thread.join(10)


def test_another_authority_is_not_believed(access: AccessFolder, tmp_path: Path) -> None:
    other = AccessFolder(tmp_path / "other")
    make_authority(other)
    with answering(access.server) as port, pytest.raises(FederationError, match="was not signed by the authority in .*use the ca.pem"):
        check_encrypted("127.0.0.1", port, other.authority)


def test_a_platform_is_asked_under_the_federations_authority(access: AccessFolder, tmp_path: Path) -> None:
    other = AccessFolder(tmp_path / "other")
    make_authority(other)
    with answering(access.server) as port:
        url = f"https://localhost:{port}/health"
        assert Bounded(5, str(access.authority)).get(url).json() == "well"
        for authority in ("", str(other.authority)):
            with pytest.raises(requests.exceptions.SSLError):
                Bounded(5, authority).get(url)
        with pytest.raises(requests.RequestException):
            Bounded(5).get(f"http://localhost:{port}/health")
