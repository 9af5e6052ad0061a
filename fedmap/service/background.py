"""A front in a thread of its own, and a free port for it."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from fedmap.errors import FederationError
from fedmap.service.listening import listen as listen
from fedmap.service.listening import url as url

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_GRACE_SECONDS = 2
_CONNECTIONS = 1000


class _Server(uvicorn.Server):
    """Ends streams that never end by themselves before it waits for open connections."""

    def __init__(self, config: uvicorn.Config, close: Callable[[], None]) -> None:
        super().__init__(config)
        self._close = close

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._close()
        await super().shutdown(sockets)


Tls = tuple[Path, Path]  # a certificate and its private key


def make_server(app: Any, tls: Tls | None = None) -> uvicorn.Server:
    """A uvicorn server of an ASGI application; run it with `run(sockets=[...])`. It calls `app.state.close`, if any, when it ends."""
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=32 * 1024,
        ws="none",
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    return _Server(config, getattr(getattr(app, "state", None), "close", lambda: None))


@dataclass
class Front:
    """An application that is being served by a thread.

    Attributes:
        url: where, e.g. http://127.0.0.1:8080.
    """

    url: str
    _server: uvicorn.Server
    _thread: threading.Thread

    def stop(self) -> None:
        """End it; streams get what is left to send. May be called twice."""
        self._server.should_exit = True
        self._thread.join(_STOP_SECONDS)


def start(app: FastAPI, host: str, port: int, tls: Tls | None = None) -> Front:
    """Serve an application in a thread.

    Raises:
        FederationError: no port is free, or the application does not start.
    """
    listener = listen(host, port)
    server = make_server(app, tls)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="fedmap-front", daemon=True)
    thread.start()
    end = threading.Event()
    waited = 0.0
    while not server.started:
        if not thread.is_alive() or waited > _START_SECONDS:
            server.should_exit = True
            listener.close()
            raise FederationError(f"the page at {host}:{port} does not start; its reason is above")
        end.wait(0.02)
        waited += 0.02
    return Front(url(listener, tls is not None), server, thread)


@contextlib.contextmanager
def serving(app: FastAPI, host: str = "127.0.0.1", port: int = 0, tls: Tls | None = None) -> Iterator[Front]:
    """Serve an application inside the block."""
    front = start(app, host, port, tls)
    try:
        yield front
    finally:
        front.stop()
