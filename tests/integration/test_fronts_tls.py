"""Fronts that other machines can reach speak https with `security=tls`, want the token, and refuse what is not encrypted."""

import contextlib
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from fedmap.access.authority import make_authority, make_certificate
from fedmap.access.folder import AccessFolder
from fedmap.access.keys import make_client_key
from fedmap.cli import main
from fedmap.config import RunConfig, compose_and_resolve, parse
from fedmap.participation import Participation
from fedmap.service.client import _front
from fedmap.service.process import front
from tests.federations import wait_for
from tests.fronts import BEARER, TOKEN

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> AccessFolder:
    folder = tmp_path_factory.mktemp("fronts")
    made = AccessFolder(folder / "certs")
    make_authority(made)
    make_certificate(made, made.server, [])
    make_client_key(made, 0)
    make_certificate(made, made.front(0), ["client-0.example.org"])
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    return made


def config(access: AccessFolder, *overrides: str) -> RunConfig:
    common = ["model=digits", "dataset=digits", "runtime=local", f"service.token_file={access.path.parent / 'token'}", "service.port=0"]
    return parse(compose_and_resolve("config", [*common, "security=tls", f"security.folder={access.path}", "client.port=0", *overrides]))


def check(address: str, access: AccessFolder, path: str) -> None:
    """The page at an address is encrypted, is the federation's own, and wants the token."""
    port = address.rpartition(":")[2]
    assert address.startswith("https://")
    with httpx.Client(
        base_url=f"https://localhost:{port}", verify=ssl.create_default_context(cafile=str(access.authority)), timeout=60
    ) as http:
        assert http.get(path).status_code == 401
        assert http.get(path, headers=BEARER).status_code == 200
        assert http.get("/health/live").status_code == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://localhost:{port}{path}", timeout=20)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://localhost:{port}{path}", timeout=20)


def test_the_servers_front(access: AccessFolder, tmp_path: Path) -> None:
    with front(config(access, "service.host=0.0.0.0"), tmp_path, print) as address:
        check(address, access, "/status")
    with front(config(access), tmp_path, print) as address:
        assert address.startswith("http://127.0.0.1:"), "on this machine alone nothing travels"
        assert httpx.get(f"{address}/status", timeout=60).status_code == 200


def test_a_clients_front(access: AccessFolder) -> None:
    said: list[str] = []
    with _front(config(access, "client.host=0.0.0.0"), Participation(), None, said.append):
        check(said[-1].partition("its state is at ")[2].partition("/status")[0], access, "/status")


def test_the_dashboard(access: AccessFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dashboard", str(tmp_path), "--host", "0.0.0.0", "--port", "0", "--token-file", str(access.path.parent / "token")]
    assert main(words) == 2
    assert "the connection would not be encrypted; give --certs FOLDER" in capsys.readouterr().err
    assert main([*words, "--certs", str(tmp_path / "nowhere")]) == 2
    assert "server.pem is missing; `python -m fedmap certs server" in capsys.readouterr().err
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "fedmap", *words, "--certs", str(access.path)], stdout=output, stderr=output)
    with contextlib.ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.terminate)
        wait_for(lambda: "https://" in log.read_text(), 60, log.read_text)
        check(log.read_text().partition("runs in ")[2].partition(": ")[2].partition(" ")[0], access, "/api/runs")
