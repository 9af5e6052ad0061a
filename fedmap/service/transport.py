"""HTTP requests that always come back soon: time-outs, a bounded answer, and redirects on the same host alone.

`Bounded` has the two functions of `requests` that FedOps' `client_api` calls, so that the module can be given one in their place.
"""

from __future__ import annotations

import re
import ssl
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter

MAX_ANSWER_BYTES = 1 << 20  # a platform's answers are a few numbers
_MAX_REDIRECTS = 3


class Refused(requests.RequestException):
    """The other side answered, and will not take this request however often it is sent (status 4xx)."""


class _Trusting(HTTPAdapter):
    """Trusts one more authority than requests does by itself."""

    def __init__(self, authority: str) -> None:
        self._context = ssl.create_default_context()
        self._context.load_verify_locations(authority)
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options, ssl_context=self._context)


class Bounded:
    """`requests.get` and `requests.put` with limits.

    Attributes:
        seconds: to connect, between two packets, and for the answer's body as a whole.
        authority: the file of a certificate authority that is trusted besides the usual ones; "" for none.
    """

    def __init__(self, seconds: float, authority: str = "") -> None:
        self.seconds = seconds
        self.authority = authority

    def get(self, url: str, **options: Any) -> requests.Response:
        """`requests.get`; see `_send`."""
        return self._send("GET", url, options)

    def put(self, url: str, **options: Any) -> requests.Response:
        """`requests.put`; see `_send`."""
        return self._send("PUT", url, options)

    def _send(self, method: str, url: str, options: dict[str, Any]) -> requests.Response:
        """Send a request and read its whole answer.

        Raises:
            Refused: the status is 4xx.
            requests.RequestException: no connection, no answer in time, too long an answer, or a status of 5xx.
        """
        options |= {"timeout": self.seconds, "stream": True, "allow_redirects": False}
        with requests.Session() as session:
            if self.authority:
                session.mount("https://", _Trusting(self.authority))
            for _ in range(_MAX_REDIRECTS + 1):
                with session.request(method, url, **options) as response:
                    try:
                        body = self._body(response)
                    except requests.RequestException:
                        raise
                    except Exception as error:  # of urllib3: the rest did not come, or could not be unpacked
                        raise requests.ConnectionError(str(error)) from error
                response._content = body  # the answer stays readable after its connection was closed
                if not response.is_redirect:
                    return _checked(response)
                url = _same_host(url, response.headers["location"])
                options.pop("params", None)  # they are part of the new address
        raise requests.TooManyRedirects(f"more than {_MAX_REDIRECTS} redirects")

    def _body(self, response: requests.Response) -> bytes:
        end = time.monotonic() + self.seconds
        body = b""
        while chunk := response.raw.read1(1 << 14, decode_content=True):  # what there is: `iter_content` waits for whole chunks
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise requests.RequestException(f"the answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")
            if time.monotonic() > end:
                raise requests.Timeout(f"the answer did not end within {self.seconds:g} s")
        return body


def _same_host(url: str, location: str) -> str:
    try:
        old, new = urlsplit(url), urlsplit(urljoin(url, location))
        port = new.port
    except ValueError as error:
        raise Refused(f"the answer points to what is no address ({error})") from error
    if (old.scheme, old.hostname, old.port) != (new.scheme, new.hostname, port):
        raise Refused(f"the answer points to another host ({new.hostname})")
    return new._replace(netloc=old.netloc).geturl()  # with the user's name and password, if there are some


def _checked(response: requests.Response) -> requests.Response:
    status = response.status_code
    if 400 <= status < 500 and status not in (408, 425, 429):
        raise Refused(f"the answer is HTTP {status}{' (does the address hold the token?)' if status == 401 else ''}")
    if not 200 <= status < 300:
        raise requests.RequestException(f"the answer is HTTP {status}")
    return response


def reason_of(error: BaseException) -> str:
    """A short reason for people, without a password that an address may hold."""
    if isinstance(error, requests.ConnectTimeout | requests.ReadTimeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return without_password(str(error) or type(error).__name__)[:400]


def without_password(text: str) -> str:
    """The text with the name and password of every address in it hidden."""
    return re.sub(r"(://)[^/@\s]*@", r"\1***@", text)
