"""A federation of real programs with TLS and keys: who has a key takes part, and nobody else sees anything."""

import shutil
import ssl
from pathlib import Path

import httpx
import pytest

from fedmap.cli import main
from fedmap.flower.bundle import stage
from fedmap.outputs import read_history
from tests.deployed import Place
from tests.federations import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(600)]

FEDERATION = ["dataset.num_clients=6", "num_clients=4", "num_rounds=2", "hooks.after_round=null"]
WAITING = """
import os, time
from pathlib import Path

def wait_until_told(update):
    if update.client_id == 3 and update.round_index == 1:
        Path(os.environ["MARKER"]).touch()
        time.sleep(300)
    return update

def go_on_when_told(update):
    while update.round_index == 2 and not Path(os.environ["MARKER"] + "_has_ended").exists():
        time.sleep(0.1)
    return update
"""


def certs(*words: object) -> None:
    assert main(["certs", *map(str, words)]) == 0


def handed_to(client_id: int, of: Path, folder: Path) -> list[str]:
    """What a client's machine gets of the server's files: two of them."""
    (folder / "clients").mkdir(parents=True)
    shutil.copy(of / "ca.pem", folder)
    shutil.move(of / "clients" / f"client_{client_id}.key", folder / "clients")
    return ["security=tls", f"security.folder={folder}"]


def test_clients_with_keys_finish_a_run_and_others_are_refused_with_a_sentence(place: Place) -> None:
    server_files, homes = place.folder / "certs", place.folder / "homes"
    certs("init", "--folder", server_files, "--clients", 5)
    (place.folder / "waiting.py").write_text(WAITING)
    marker = place.folder / "client_3_is_training"
    place.environment = {"PYTHONPATH": str(place.folder), "MARKER": str(marker)}
    place.common = [*FEDERATION, "security=tls"]
    place.code = stage(place.folder / "code")  # clients refuse a server whose code is not theirs: nobody edits this copy meanwhile
    place.server(f"security.folder={server_files}")
    keys = {k: handed_to(k, server_files, homes / str(k)) for k in range(5)}
    certs("revoke", 4, "--folder", server_files)
    certs("key", 5, "--folder", homes / "5")  # made by the client itself, and never shown to the server
    shutil.copy(server_files / "ca.pem", homes / "5")
    for k in (1, 2):
        place.client(k, *keys[k])
    place.client(0, *keys[0], "hooks.after_round=waiting.go_on_when_told")  # so that the server is there when client 3 comes back
    place.client(3, *keys[3], "hooks.after_round=waiting.wait_until_told")
    place.client(4, *keys[4])
    place.client(5, f"security.folder={homes / '5'}")
    place.client(0, "security=loopback", name="client_plain")

    for refused in (4, 5):
        assert place.end(f"client_{refused}", 300) == 1, place.everything_said()
        assert (
            f"error: client {refused} may not join at {place.address}: this key is not accepted: it was never added here, or was revoked"
            in (place.said(f"client_{refused}"))
        )
    assert place.end("client_plain", 300) == 1
    assert f"error: the server at {place.address} encrypts its connections, and this client does not" in place.said("client_plain")

    authority = ssl.create_default_context(cafile=str(server_files / "ca.pem"))
    with httpx.Client(base_url=f"https://{place.address}", verify=authority, timeout=20) as anybody:
        for path in ("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/docs", "/openapi.json", "/health"):
            assert anybody.post(path).status_code == anybody.get(path).status_code == 404
        assert anybody.post("/v1/fleet/pull-messages", content=b"x" * 1000).status_code == 401
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{place.address}/", timeout=20)

    wait_for(marker.exists, 240, place.everything_said)  # while client 3 trains, its key is revoked
    assert "joined" in place.said("client_3")
    certs("revoke", 3, "--folder", server_files)
    assert place.end("client_3", 120) == 1
    assert "this key is not accepted" in place.said("client_3")
    marker.with_name(f"{marker.name}_has_ended").touch()
    assert [place.end(name, 240) for name in ("server", "client_0", "client_1", "client_2")] == [0, 0, 0, 0], place.everything_said()
    assert "client 3's key is no longer accepted: it is cut off" in place.said("server")
    first, second = read_history(place.folder / "run").rounds[1:]
    assert [(c.client_id, c.status) for c in first.clients] == [(0, "ok"), (1, "ok"), (2, "ok"), (3, "failed")]
    assert [(c.client_id, c.status) for c in second.clients] == [(0, "ok"), (1, "ok"), (2, "ok")]
    assert place.left_behind() == []
    assert place.homes() == []
    for file in (place.folder / "run").rglob("*"):
        if file.is_file():
            assert b"PRIVATE KEY" not in file.read_bytes(), file
