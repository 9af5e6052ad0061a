"""Where certificates and keys lie, and how they are written: never over what is there, private ones for their owner alone.

ca.pem                    the authority's certificate: every machine has it
ca.key                    the authority's key: `python -m fedmap certs` alone reads it; it may be kept elsewhere between times
server.pem, server.key    the server's certificate, with its names and addresses
clients/client_3.pub      the key by which the server knows client 3
clients/client_3.key      its private half, on client 3's machine
clients/client_3_front.*  the certificate of client 3's own HTTP front, where other machines may reach that
revoked/                  public keys that are no longer accepted
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedmap.errors import ConfigError, StorageError

MAKE = "python -m fedmap certs"


@dataclass(frozen=True)
class AccessFolder:
    """The files of one federation.

    Attributes:
        path: the folder, `security.folder`.
    """

    path: Path

    @property
    def authority(self) -> Path:
        """The authority's certificate."""
        return self.path / "ca.pem"

    @property
    def authority_key(self) -> Path:
        """The authority's private key."""
        return self.path / "ca.key"

    @property
    def server(self) -> tuple[Path, Path]:
        """The server's certificate and its private key."""
        return self.path / "server.pem", self.path / "server.key"

    @property
    def clients(self) -> Path:
        """The folder of the keys that are accepted."""
        return self.path / "clients"

    @property
    def revoked(self) -> Path:
        """The folder of the keys that are no longer accepted."""
        return self.path / "revoked"

    def client_key(self, client_id: int) -> Path:
        """A client's private key."""
        return self.clients / f"client_{client_id}.key"

    def client_public(self, client_id: int) -> Path:
        """A client's public key."""
        return self.clients / f"client_{client_id}.pub"

    def front(self, client_id: int) -> tuple[Path, Path]:
        """The certificate and private key of a client's own HTTP front."""
        return self.clients / f"client_{client_id}_front.pem", self.clients / f"client_{client_id}_front.key"


def present(path: Path, how: str) -> Path:
    """The file, if it is there.

    Args:
        path: the file.
        how: what makes or mends it, for the message.

    Raises:
        ConfigError: it is missing.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is missing; {how}")
    return path


def private(path: Path, how: str) -> Path:
    """The file, if it is there and its owner alone can read it.

    Raises:
        ConfigError: it is missing, or others can read it.
    """
    mode = present(path, how).stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:o}); `chmod 600 {path}`")
    return path


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not exist yet.

    Raises:
        ConfigError: it exists.
        StorageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    except FileExistsError:
        raise ConfigError(f"{path} exists and is not written over; move it away first, or choose another --folder") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); choose another --folder") from error


def absent(*paths: Path) -> None:
    """Check that none of the files exists, before the first of them is made.

    Raises:
        ConfigError: one exists.
    """
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} exists and is not written over; `{MAKE} list` shows what there is. Move it away for a new one")
