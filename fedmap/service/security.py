"""The token that writing needs: made at first start, kept in a file that its owner alone can read."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import secrets
import tempfile
from pathlib import Path

from fedmap.errors import ConfigError

_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,256}")
_BYTES = 24


def load_token(path: Path) -> tuple[str, bool]:
    """The token of a file, and whether it has just been made, so that it can be shown this once.

    Raises:
        ConfigError: the file cannot be read or made, others can read it, or it holds no token.
    """
    try:
        made = not path.exists() and _make(path)
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise ConfigError(f"{path} can be read by others (mode {mode:o}); `chmod 600 {path}`, or delete it for a new token")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be used ({error}); choose another service.token_file") from error
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{path} holds no token: expected 16 to 256 letters, digits, - or _; delete it for a new one")
    return token, made


def _make(path: Path) -> bool:
    """Write a new token in one step; of several programs that start at once, one makes it and the others read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(_BYTES) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
            return True
        return False
    finally:
        os.unlink(name)


def credentials(authorization: str) -> str:
    """The token in an Authorization header, "" if there is none: a Bearer token, or the password of Basic."""
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def matches(token: str | None, authorization: str) -> bool:
    """Whether the header carries the token, compared in constant time; never where there is no token."""
    given = credentials(authorization)
    return token is not None and secrets.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())
