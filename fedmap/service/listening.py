"""A socket for a front, and the address of a page on it. Imports no framework."""

from __future__ import annotations

import errno
import socket

from fedmap.errors import FederationError

_PORTS_TRIED = 100


def listen(host: str, port: int) -> socket.socket:
    """A listening socket at the port, or at the next free one; 0 takes any.

    Raises:
        FederationError: nothing is free there, or the host is not an address of this machine.
    """
    error: OSError | None = None
    for candidate in [0] if port == 0 else range(port, min(port + _PORTS_TRIED, 65536)):
        try:
            return bound(host, candidate)
        except OSError as problem:
            error = problem
            if problem.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
    raise FederationError(f"no page can be served at {host}:{port}: {error}; choose another host or port")


def bound(host: str, port: int) -> socket.socket:
    """A listening socket at just this port.

    Raises:
        OSError: it is taken, or the host is not an address of this machine.
    """
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host.strip("[]"), port))
        server.listen(512)
    except OSError:
        server.close()
        raise
    server.set_inheritable(False)
    return server


def url(listener: socket.socket, tls: bool = False) -> str:
    """The address at which a browser on this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'https' if tls else 'http'}://{host}:{port}"
