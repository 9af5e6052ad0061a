"""Platforms that behave, or do not: small servers on loopback for tests of what is sent to a FedOps platform."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    """What arrived."""

    method: str
    path: str
    body: bytes


@dataclass
class Recorder:
    """A server that keeps every request and answers as it is told.

    Attributes:
        answer: (status, body) or (status, body, headers) for a request.
    """

    answer: Callable[[Request], tuple[int, bytes] | tuple[int, bytes, dict[str, str]]]
    seen: list[Request] = field(default_factory=list)
    url: str = ""

    def paths(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.seen]

    def wait_for(self, number: int, seconds: float = 10.0) -> list[Request]:
        end = time.monotonic() + seconds
        while len(self.seen) < number and time.monotonic() < end:
            time.sleep(0.01)
        assert len(self.seen) >= number, f"{len(self.seen)} of {number} requests came: {self.paths()}"
        return self.seen


@contextlib.contextmanager
def recorder(
    answer: Callable[[Request], tuple[int, bytes] | tuple[int, bytes, dict[str, str]]] = lambda r: (200, b"{}"),
) -> Iterator[Recorder]:
    made = Recorder(answer)

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            length = int(self.headers.get("content-length", 0))
            request = Request(self.command, self.path, self.rfile.read(length))
            made.seen.append(request)
            status, body, *headers = made.answer(request)
            self.send_response(status)
            for name, value in (headers[0] if headers else {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = _do

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal of the tests."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that has gone away is none of the test's business."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def raw(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that accepts every connection and then does what `talk` says, on the bare socket; gives its address as a URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(1.0)
            talk(connection)
            ended.wait(60)

    def accept() -> None:
        while not ended.is_set():
            try:
                connection = listener.accept()[0]
            except TimeoutError:
                continue
            threads.append(threading.Thread(target=one, args=(connection,), daemon=True))
            threads[-1].start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        for each in [thread, *threads]:
            each.join(timeout=5)
        listener.close()


def silent(connection: socket.socket) -> None:
    """Accepts and never answers."""


def endless(connection: socket.socket) -> None:
    """A body that never ends, as fast as it is read."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def dripping(connection: socket.socket) -> None:
    """A body that comes byte by byte, each before any time-out."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def rubbish(connection: socket.socket) -> None:
    """Something that is no HTTP."""
    connection.recv(65536)
    connection.sendall(b"\x00\xff\xfe SSH-2.0 what?\r\n\r\n")
    connection.shutdown(socket.SHUT_RDWR)


def stopping(connection: socket.socket) -> None:
    """Half an answer."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nxxx")


def garbled(connection: socket.socket) -> None:
    """An answer that says it is compressed and is not."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-encoding: gzip\r\n\r\nhello")
