"""A client's secret, from which its noise is drawn: whoever knows the noise can take it away, so the federation's seed will not do.

The same run, round and broadcast give the same noise again, so that a round that is repeated after a crash says nothing new; anything
else gives other noise, so that two answers never share theirs.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import tempfile
from pathlib import Path

import numpy as np

from fedmap.errors import StorageError
from fedmap.records import Broadcast

_BYTES = 32


def load_secret(path: Path) -> bytes:
    """The secret of a file that its owner alone can read; made at the first call.

    Raises:
        StorageError: the file cannot be read or made, others can read it, or it holds no secret.
    """
    try:
        if not path.exists():
            _make(path)
        if path.stat().st_mode & 0o077:
            raise StorageError(
                f"{path} can be read by others, and with it their noise can be told; chmod 600 it, or delete it for a new one"
            )
        secret = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: the secret of privacy's noise cannot be read or made ({error.strerror})") from error
    if len(secret) != _BYTES:
        raise StorageError(f"{path} holds {len(secret)} bytes, expected a secret of {_BYTES}; delete it for a new one")
    return secret


def _make(path: Path) -> None:
    """Write a new secret in one step; of several processes that start at once, one makes it and the others read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(os.urandom(_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)


def derived(secret: bytes, *parts: object) -> bytes:
    """A secret for one purpose; parts are told apart by their texts."""
    return hmac.digest(secret, "\x1f".join(map(str, parts)).encode(), "sha256")


def digest(broadcast: Broadcast) -> str:
    """Of everything in a broadcast that a client's answer depends on."""
    found = hashlib.blake2b(repr((broadcast.round_index, broadcast.rule, sorted(broadcast.scalars.items()))).encode(), digest_size=32)
    for group, arrays in (("", broadcast.weights), *sorted(broadcast.extras.items())):
        for name, array in sorted(arrays.items()):
            found.update(f"{group}\x1f{name}\x1f{array.dtype}{array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def noise_generator(secret: bytes) -> np.random.Generator:
    """A generator with all bits of a secret; its numbers are those of a simulation, not of cryptography."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(secret, "little"))))
