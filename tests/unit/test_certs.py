"""`python -m fedmap certs`: what it makes, what it refuses, and what a server or a client says of files that cannot be used."""

import re
import shutil
import ssl
import stat
from pathlib import Path

import pytest

from fedmap.access import check_client, check_server
from fedmap.access.authority import certificate_info, check_certificate, make_authority, make_certificate
from fedmap.access.folder import AccessFolder
from fedmap.access.keys import add_client, allowed_keys, make_client_key, revoke_client
from fedmap.cli import main
from fedmap.config import RunConfig, compose_and_resolve, parse
from fedmap.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> AccessFolder:
    made = AccessFolder(tmp_path / "certs")
    make_authority(made)
    make_certificate(made, made.server, ["fl.example.org", "203.0.113.7"])
    for client_id in (0, 1):
        make_client_key(made, client_id)
    return made


def config(folder: Path | None, *overrides: str) -> RunConfig:
    security = ["security=tls", f"security.folder={folder}"] if folder else []
    return parse(compose_and_resolve("config", ["model=digits", "dataset=digits", *security, *overrides]))


def test_the_command_makes_everything_that_a_federation_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ["--folder", str(tmp_path / "certs")]
    assert main(["certs", *here, "--host", "fl.example.org", "--clients", "2"]) == 0
    assert "server_main.py security=tls" in capsys.readouterr().out
    secret = list((tmp_path / "certs").rglob("*.key"))
    assert sorted(path.name for path in secret) == ["ca.key", "client_0.key", "client_1.key", "server.key"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    assert b"BEGIN OPENSSH PRIVATE KEY" in (tmp_path / "certs/clients/client_0.key").read_bytes()
    assert main(["certs", "add", "2", *here]) == 0
    assert main(["certs", "revoke", "1", *here]) == 0
    assert not (tmp_path / "certs/clients/client_1.key").exists()
    assert main(["certs", "add", "1", *here]) == 0, "a client that lost its key gets another one"
    capsys.readouterr()
    assert main(["certs", "list", *here]) == 0
    said = capsys.readouterr().out
    assert "fl.example.org for fl.example.org, localhost, 127.0.0.1, ::1, good until" in said
    assert "(expires in 365 days)" in said
    clients = [line.partition(",")[0] for line in said.splitlines() if line.startswith("client")]
    assert clients[:3] == ["client 0: accepted", "client 1: accepted", "client 2: accepted"]
    assert re.fullmatch(r"client 1: revoked on 20\d\d-\d\d-\d\d", clients[3])


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ["--folder", str(tmp_path / "certs")]
    assert main(["certs", "init", *here, "--clients", "1"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "certs").rglob("*") if path.is_file()}
    for words in (["init"], ["init", "--clients", "1"], ["add", "0"], ["key", "0"]):
        assert main(["certs", *words, *here]) == 2
        assert "exists and is not written over" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "certs").rglob("*") if path.is_file()} == before
    assert main(["certs", "server", *here, "--host", "new.example.org"]) == 0
    assert (tmp_path / "certs/server.key.old").read_bytes() == before[tmp_path / "certs/server.key"]
    assert certificate_info(tmp_path / "certs/server.pem").names[0] == "new.example.org"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["add"], "certs add needs a client's number"),
        (["list", "3"], "certs list takes no client's number"),
        (["add", "-1"], "client -1: expected 0 or more"),
        (["list"], "is no folder with certificates; `python -m fedmap certs init"),
        (["revoke", "7"], "client 7 has no key that could be revoked; clients with one: none"),
        (["server"], "ca.pem is missing; `python -m fedmap certs init` makes an authority"),
        (["init", "--days", "0"], "--days 0: expected more than 0"),
        (["init", "--days", "9999"], "the authority itself is good for 3650 days"),
        (["init", "--clients", "-2"], "--clients -2: expected 0 or more"),
        (["add", "1", "--public-key", "nowhere.pub"], "--public-key nowhere.pub is missing"),
        (["init", "--host", "fl.example.org:8000"], "expected a host name or an IP address, without a port"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    assert main(["certs", "--folder", str(tmp_path / "certs"), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_client_makes_its_own_key_and_the_server_sees_the_public_half_alone(folder: AccessFolder, tmp_path: Path) -> None:
    machine = AccessFolder(tmp_path / "machine")
    make_client_key(machine, 2)
    add_client(folder, 2, machine.client_public(2))
    assert list(allowed_keys(folder)) == [0, 1, 2]
    assert not folder.client_key(2).exists()
    with pytest.raises(ConfigError, match="is the key of client 2; every client needs its own"):
        add_client(folder, 3, machine.client_public(2))
    revoke_client(folder, 2)
    with pytest.raises(ConfigError, match="was revoked; a client that comes back needs a new key"):
        add_client(folder, 2, machine.client_public(2))
    for content, sentence in ((b"no key", "holds no public key"), (b"ssh-ed25519 " + ED25519, "holds a key of another kind")):
        (tmp_path / "other.pub").write_bytes(content)
        with pytest.raises(ConfigError, match=sentence):
            add_client(folder, 2, tmp_path / "other.pub")
    shutil.copy(folder.client_public(0), folder.client_public(9))
    with pytest.raises(ConfigError, match="clients 0 and 9 have the same key"):
        allowed_keys(folder)


ED25519 = b"AAAAC3NzaC1lZDI1NTE5AAAAIJXrFc2rBnXkpZp3b4CkTsU4bU9dP7kRk7yGzq0L0nZJ"


def test_what_is_made_is_good_for_tls(folder: AccessFolder) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*folder.server)
    for name in ("fl.example.org", "203.0.113.7", "127.0.0.1", "localhost"):
        shake_hands(server, folder.authority, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch|not valid for"):
        shake_hands(server, folder.authority, "other.example.org")


def shake_hands(server: ssl.SSLContext, authority: Path, name: str) -> None:
    """A TLS handshake in memory, with the strictest checks that Python has."""
    client = ssl.create_default_context(cafile=str(authority))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(to_client, to_server, server_hostname=name), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert sides[0].version() in ("TLSv1.2", "TLSv1.3")


def test_files_that_cannot_be_used_are_named_with_what_mends_them(folder: AccessFolder, tmp_path: Path) -> None:
    warned: list[str] = []
    check_server(config(folder.path), warned.append)
    check_client(config(folder.path, "client_id=1"), warned.append)
    assert warned == []
    with pytest.raises(ConfigError, match=r"client_5.key is missing; `python -m fedmap certs add 5` on the server's machine makes it"):
        check_client(config(folder.path, "client_id=5"), warned.append)
    folder.client_key(1).chmod(0o644)
    with pytest.raises(ConfigError, match=r"client_1.key can be read by others \(mode 644\); `chmod 600"):
        check_client(config(folder.path, "client_id=1"), warned.append)
    folder.client_key(0).write_text("nothing")
    with pytest.raises(ConfigError, match="holds no private key in OpenSSH's format"):
        check_client(config(folder.path), warned.append)
    shutil.copy(folder.authority_key, folder.server[1])
    with pytest.raises(ConfigError, match="server.key is not the key of .*server.pem"):
        check_server(config(folder.path), warned.append)
    with pytest.raises(ConfigError, match="ca.pem is missing; `python -m fedmap certs init"):
        check_server(config(tmp_path / "nowhere"), warned.append)
    for client_id in (0, 1):
        revoke_client(folder, client_id)
    for path in folder.server:
        path.unlink()
    make_certificate(folder, folder.server, [], days=10)
    with pytest.raises(ConfigError, match="no client has a key in .*certs add <k>"):
        check_server(config(folder.path), warned.append)
    assert ["server.pem expires in 10 days; `python -m fedmap certs server` makes a new one" in text for text in warned] == [True]


def test_an_expired_certificate_is_refused(folder: AccessFolder, tmp_path: Path) -> None:
    files = tmp_path / "old.pem", tmp_path / "old.key"
    make_certificate(folder, files, [], days=-1)
    with pytest.raises(ConfigError, match=r"old.pem has expired on \d{4}-\d\d-\d\d; renew it"):
        check_certificate(files, "renew it")
    with pytest.raises(ConfigError, match="cannot be read as a certificate"):
        certificate_info(files[1])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["runtime.address=0.0.0.0:8000"], "runtime.address at 0.0.0.0: NOTHING IS ENCRYPTED, .* run code on every client; security=tls"),
        (["service.host=0.0.0.0"], "service.host at 0.0.0.0: NOTHING IS ENCRYPTED"),
    ],
)
def test_what_is_open_to_others_is_shouted(overrides: list[str], words: str) -> None:
    warned: list[str] = []
    check_server(config(None, "security.insecure=true", *overrides), warned.append)
    assert len(warned) == 1
    assert re.search(words, warned[0])
    warned.clear()
    check_server(config(None, "security.insecure=true"), warned.append)
    assert warned == []
    check_client(config(None, "security.insecure=true", "client.host=0.0.0.0", "runtime.address=far.example:1"), warned.append)
    assert any("client.host at 0.0.0.0" in text for text in warned)
    assert any("the connection to far.example:1 is not encrypted" in text for text in warned)
