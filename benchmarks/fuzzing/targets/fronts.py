"""Raw requests, byte for byte, to the server's front and to a client's front, both live behind uvicorn.

The first byte says which front. A picture that is uploaded is read, and answered without a model: there is none here, and what a
model's process does with a picture is the target "image".
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.fuzzing.sample_run import make_run
from fedmap.participation import CONNECTED, Participation
from fedmap.service import background
from fedmap.service.client_front import Identity, create_client_app, rules_for
from fedmap.service.manager import Task
from fedmap.service.server_front import create_server_app

_TOKEN = "a-token-for-fuzzing-0123456789"
_FIRST_SECONDS, _MORE_SECONDS = 0.2, 0.05  # how long to wait for an answer to begin, and to go on
_ALIVE_EVERY = 64
_UNEXPECTED = re.compile(rb"HTTP/1\.1 (5(?!03)\d\d)")  # 503: it is busy, or not ready


class _Errors(logging.Handler):
    """Keeps what uvicorn says of applications that fail."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


class Fronts:
    """Whatever is sent, no answer is a server's error, nothing is logged as one, and the front answers the next request."""

    allowed = (OSError,)  # the front may close the connection
    processes = True

    def __init__(self, folder: Path) -> None:
        run = make_run(folder / "outputs" / "run")
        participation = Participation()
        participation.update(prepared=True, state=CONNECTED, address="127.0.0.1:9")
        server = create_server_app(run.parent, run, token=_TOKEN, task=Task("movies", 9191, run))
        client = create_client_app(Identity(3, "movies"), participation, rules_for("127.0.0.1", None))
        self.fronts = [background.start(app, "127.0.0.1", 0) for app in (server, client)]
        self.errors = _Errors()
        logging.getLogger("uvicorn.error").addHandler(self.errors)
        logging.getLogger("uvicorn.error").propagate = False
        self.count = 0

    def seeds(self) -> Sequence[bytes]:
        """A request for each route, and some that have to be refused."""
        gets = (
            "/",
            "/run/run",
            "/predict",
            "/health/live",
            "/health/ready",
            "/metrics",
            "/openapi.json",
            "/docs",
            "/api/runs",
            "/api/runs/run",
        )
        gets += ("/api/runs/run/files", "/api/runs/run/files/results.csv", "/api/runs/run/files/..%2f..%2fx", "/api/runs/run/archive/best")
        gets += (
            "/api/rounds",
            "/api/clients",
            "/api/models",
            "/api/runs/run/events?after=2",
            "/FLSe/getPort/movies",
            "/api/tasks/movies?limit=5",
        )
        json_body = b'{"fl_task_id": "movies", "round": 1, "accuracy": 0.5}'
        puts = ("/client_perf/train_result/movies", "/server_perf/gl_model_evaluation/movies", "/FLSe/FLSeUpdate/movies")
        form = (
            b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\nA robot.\r\n--b\r\nContent-Disposition: form-data; name="poster"; '
            b'filename="a.png"\r\nContent-Type: image/png\r\n\r\n\x89PNG\r\n--b--\r\n'
        )
        chunked = b'4\r\n{"a"\r\n4\r\n: 1}\r\n0\r\n\r\n'
        return [
            *(b"\0" + _request("GET", path) for path in gets),
            *(b"\0" + _request("PUT", path, json_body) for path in puts),
            b"\0" + _request("PUT", "/FLSe/cluster/movies", b'{"client_mac": "aa:bb", "cluster_id": 3}'),
            b"\0" + _request("PUT", puts[0], chunked, "Transfer-Encoding: chunked"),
            b"\0" + _request("POST", "/predict", form, "Content-Type: multipart/form-data; boundary=b"),
            b"\0" + _request("POST", "/predict", b"text=A+robot&explain=true", "Content-Type: application/x-www-form-urlencoded"),
            b"\0" + _request("HEAD", "/api/runs") + _request("OPTIONS", "*"),
            *(b"\1" + _request("GET", path) for path in ("/online", "/status", "/health/ready", "/metrics", "/info", "/openapi.json")),
            *(b"\1" + _request("POST", path, b"{}") for path in ("/start", "/stop")),
        ]

    def run(self, data: bytes) -> None:
        """See the module."""
        front = self.fronts[(data[0] if data else 0) % 2]
        self.count += 1
        answer = self._ask(front.url, data[1:])
        seen, self.errors.seen = self.errors.seen, []
        if found := _UNEXPECTED.search(answer):
            raise AssertionError(f"HTTP {found[1].decode()}: {answer[-300:]!r}; {seen}")
        if seen:
            raise AssertionError(f"the front failed: {seen[0][-3000:]}")
        if self.count % _ALIVE_EVERY == 0 and not self._ask(front.url, _request("GET", "/health/live"), 20.0).startswith(b"HTTP/1.1 200"):
            raise AssertionError("the front does not answer any more")

    def _ask(self, url: str, request: bytes, seconds: float = _FIRST_SECONDS) -> bytes:
        host, port = urlsplit(url).hostname, urlsplit(url).port
        answer = b""
        with socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(request.replace(b"HOST", f"127.0.0.1:{port}".encode()))
            connection.settimeout(seconds)
            try:
                while len(answer) < 1 << 20 and (part := connection.recv(1 << 16)):
                    answer += part
                    head, divider, body = answer.partition(b"\r\n\r\n")
                    length = re.search(rb"content-length: (\d+)", head)
                    if divider and length and len(body) >= int(length[1]):
                        break
                    connection.settimeout(_MORE_SECONDS)
            except TimeoutError:
                pass
        return answer


def _request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: HOST", f"Authorization: Bearer {_TOKEN}", *headers]
    if body and not any("chunked" in line for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body
