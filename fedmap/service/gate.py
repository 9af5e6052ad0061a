"""What every request passes: whose page asks, who may read and write, how much may be sent, and headers of safety."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedmap.config import is_loopback
from fedmap.service.security import matches

_READS = ("GET", "HEAD", "OPTIONS")
_OPEN = ("/health/live", "/health/ready")
_BODY_BYTES = 64 * 1024
_BODY_SECONDS = 30.0
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Rules:
    """Who may do what.

    Attributes:
        token: what writing needs, as a Bearer token or the password of Basic; None: nobody may write.
        public: the front can be reached from other machines: reading needs the token, too. Otherwise only pages that
            were opened under a name of this machine may ask, so that a foreign site cannot reach it through a browser.
        forms: paths to which a page of this front on this machine may send without the token.
        bodies: bytes that a request to a path may send, where it is not 64 KiB.
    """

    token: str | None = None
    public: bool = False
    forms: frozenset[str] = frozenset()
    bodies: Mapping[str, int] = field(default_factory=dict)

    def refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence for a request that may not pass; None if it may."""
        if not self.public and not is_loopback(_name(headers.get("host", ""))):
            return 421, "this server answers on this machine alone: open it as http://127.0.0.1 or http://localhost with its port"
        if path in _OPEN and method in _READS:
            return None
        if method not in _READS and _foreign(headers):  # a browser may know the password
            return 403, "a page of another site asks for this"
        if matches(self.token, headers.get("authorization", "")):
            return None
        if method in _READS:
            return (401, _HOW) if self.public else None
        if not self.public and path in self.forms and _from_a_page(headers):
            return None
        if self.token is None:
            return 403, "nobody may write here: the server was started without service.token_file"
        return 401, _HOW

    def limit(self, path: str) -> int:
        """Bytes that a request to the path may send."""
        return self.bodies.get(path, _BODY_BYTES)


_HOW = (
    "this needs the token: send `Authorization: Bearer TOKEN`, or use http://fedmap:TOKEN@host:port; "
    "the server showed it at its first start and keeps it in service.token_file"
)


def _name(host: str) -> str:
    """The host name of a Host header, without the port."""
    if host.startswith("["):
        return host.partition("]")[0][1:]
    return host.partition(":")[0]


def _from_a_page(headers: Headers) -> bool:
    """Whether a browser sends this, and not another program: browsers set these headers, and no page can change them."""
    return "sec-fetch-site" in headers or "origin" in headers


def _foreign(headers: Headers) -> bool:
    """Whether a page of another site than this front sends this."""
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")  # none: the user, not a page
    return "origin" in headers and headers["origin"].partition("://")[2] != headers.get("host", "")


class Gate:
    """ASGI middleware that applies `Rules`; `answered` is told the method and status of every answer."""

    def __init__(self, app: ASGIApp, rules: Rules, answered: Callable[[str, int], None] = lambda method, status: None) -> None:
        self.app = app
        self.rules = rules
        self.answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that may not pass; hand on the others."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]

        async def safe_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.answered(scope["method"], message["status"])
                response = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    response.setdefault(name, value)
                response.setdefault("cache-control", "no-store")
            try:
                await send(message)
            except RuntimeError as error:  # uvloop's, where a client hangs up at the moment it is answered
                if "closed" not in str(error):
                    raise

        limit = self.rules.limit(path)
        refusal = self.rules.refusal(scope["method"], path, headers)
        if refusal is None and _declared(headers) > limit:
            refusal = 413, _too_large(limit)
        if refusal is not None:
            await _answer(safe_send, *refusal)
            return
        await self.app(scope, _bounded(receive, limit), safe_send)


def _declared(headers: Headers) -> int:
    value = headers.get("content-length", "0")
    return int(value) if value.isdecimal() and len(value) < 20 else 0


def _too_large(limit: int) -> str:
    return f"the request is too large: at most {limit:,} bytes are taken here"


def _bounded(receive: Receive, limit: int) -> Receive:
    """`receive` that ends a request whose body is too long, or that takes too long to come."""
    seen, whole, end = 0, False, asyncio.get_running_loop().time() + _BODY_SECONDS

    async def bounded() -> Message:
        nonlocal seen, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, f"the request did not come whole within {_BODY_SECONDS:.0f} s") from error
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, _too_large(limit))
        whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return bounded


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="fedmap", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
