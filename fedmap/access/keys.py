"""The clients' keys: elliptic curve P-384 in OpenSSH's format, which Flower's SuperNodes sign their requests with."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedmap.access.folder import MAKE, AccessFolder, absent, private, write_new
from fedmap.errors import ConfigError

_PUBLIC_FILE = re.compile(r"client_(\d+)\.pub")


def make_client_key(folder: AccessFolder, client_id: int) -> Path:
    """Make a client's key pair; returns the private key's file.

    Raises:
        ConfigError: the client has a key already.
    """
    files = folder.client_key(client_id), folder.client_public(client_id)
    absent(*files)
    key = ec.generate_private_key(ec.SECP384R1())
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    write_new(files[0], secret, 0o600)
    write_new(files[1], _line(key.public_key(), client_id), 0o644)
    return files[0]


def add_client(folder: AccessFolder, client_id: int, public_key: Path) -> None:
    """Accept a key that a client has made itself.

    Args:
        folder: the federation's.
        client_id: whose key it is.
        public_key: its public half.

    Raises:
        ConfigError: the client has a key already, the file holds none, another client has this key, or it was revoked.
    """
    target = folder.client_public(client_id)
    absent(target)
    key = read_public(public_key)
    for other, pem in allowed_keys(folder).items():
        if pem == _pem(key):
            raise ConfigError(f"{public_key} is the key of client {other}; every client needs its own")
    if fingerprint(_pem(key)) in {path.stem.rpartition("_")[2] for path in folder.revoked.glob("*.pub")}:
        raise ConfigError(f"{public_key} was revoked; a client that comes back needs a new key")
    write_new(target, _line(key, client_id), 0o644)


def revoke_client(folder: AccessFolder, client_id: int) -> Path:
    """Accept a client's key no longer; returns where the public key is kept now. The client may get another key afterwards.

    Raises:
        ConfigError: the client has no key.
    """
    path = folder.client_public(client_id)
    if not path.exists():
        known = ", ".join(map(str, allowed_keys(folder))) or "none"
        raise ConfigError(f"{path} is missing: client {client_id} has no key that could be revoked; clients with one: {known}")
    kept = folder.revoked / f"client_{client_id}_{datetime.now(UTC):%Y%m%dT%H%M%S}_{fingerprint(_pem(read_public(path)))}.pub"
    folder.revoked.mkdir(parents=True, exist_ok=True)
    path.rename(kept)
    folder.client_key(client_id).unlink(missing_ok=True)  # where it was made here; it is good for nothing any more
    return kept


def allowed_keys(folder: AccessFolder) -> dict[int, bytes]:
    """The public keys that are accepted, by client: PEM, as Flower compares them.

    Raises:
        ConfigError: a file holds no key, or two clients have the same one.
    """
    found: dict[int, bytes] = {}
    for path in folder.clients.glob("client_*.pub"):
        if match := _PUBLIC_FILE.fullmatch(path.name):
            try:
                found[int(match[1])] = _pem(read_public(path))
            except FileNotFoundError:  # revoked this moment
                continue
    owners: dict[bytes, int] = {}
    for client_id, pem in sorted(found.items()):
        if pem in owners:
            raise ConfigError(f"clients {owners[pem]} and {client_id} have the same key in {folder.clients}; every client needs its own")
        owners[pem] = client_id
    return dict(sorted(found.items()))


def read_public(path: Path) -> ec.EllipticCurvePublicKey:
    """A public key in OpenSSH's format.

    Raises:
        ConfigError: the file holds none on a curve that Flower takes.
        FileNotFoundError: it is missing.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} holds no public key: expected a line ecdsa-sha2-nistp384 ... ({error})") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path} holds a key of another kind; `{MAKE} key` makes one that Flower takes (ecdsa-sha2-nistp384)")
    return key


def check_client_key(folder: AccessFolder, client_id: int) -> Path:
    """A client's private key, if it can be used: it is there, whole, and its owner alone can read it.

    Raises:
        ConfigError: it cannot be used.
    """
    path = private(
        folder.client_key(client_id),
        f"`{MAKE} add {client_id}` on the server's machine makes it, or `{MAKE} key {client_id}` here; see docs/guides/security.md",
    )
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} holds no private key in OpenSSH's format without a password: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds a key of another kind; `{MAKE} key {client_id}` makes one that Flower takes")
    return path


def fingerprint(pem: bytes) -> str:
    """The first 16 hexadecimal digits of a public key's SHA-256: enough to tell keys apart."""
    return hashlib.sha256(pem).hexdigest()[:16]


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _line(key: ec.EllipticCurvePublicKey, client_id: int) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + f" client_{client_id}\n".encode()
