"""A FedOps platform's answers to a client, byte for byte from a socket. The first byte says what was asked."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import requests

from benchmarks.fuzzing.choices import Choices
from fedmap.service.platform import ClientPlatform, Platform, is_endpoint

_SECONDS = 0.5


class Platforms:
    """An address, a version or a confirmation, or an error that the caller expects, soon and without much memory."""

    allowed = (requests.RequestException, ValueError)  # as `ClientPlatform` documents
    processes = True

    def __init__(self, folder: Path) -> None:
        self.answer = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.client = ClientPlatform(Platform(url, url, url, "", _SECONDS), "movies")

    def seeds(self) -> Sequence[bytes]:
        """Good answers, redirects, chunks, packed and endless ones."""
        bodies = (b'{"port": 8000}', b'{"GL_Model_V": 3}', b"{}", b"[]", b'{"port": "x"}')
        plain = [
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body) for body in bodies
        ]
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ne\r\n" + bodies[0] + b"\r\n0\r\n\r\n"
        odd = (
            b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 301 Moved\r\nLocation: http://[::1/\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Type: text/html; charset=utf-7\r\n\r\n+ADw-",
            b"HTTP/1.0 503 x\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n1e400",
        )
        return [bytes([which]) + answer for which in range(3) for answer in (*plain, chunked, *odd)]

    def run(self, data: bytes) -> None:
        """See the module."""
        choices = Choices(data)
        what = choices.byte() % 3
        self.answer = choices.rest()
        if what == 0:
            assert is_endpoint(self.client.address())
        elif what == 1:
            assert isinstance(self.client.model_version(), int)
        else:
            self.client.tell_manager("fin")

    def _serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_SECONDS)
                connection.recv(1 << 16)
                connection.sendall(self.answer)
