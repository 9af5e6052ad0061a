"""A look at the other side before Flower connects: a mistake is said in a sentence, where Flower would try again for ever."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path

from fedmap.errors import FederationError

_SECONDS = 5.0
_LOOK_SECONDS = 1.5  # a program that is no SuperLink may not answer at all
_EXPIRED, _TOO_EARLY, _WRONG_NAMES = 10, 9, (62, 64)  # OpenSSL's X509_V_ERR_* codes


def check_encrypted(host: str, port: int, authority: Path) -> None:
    """Check that a server speaks TLS and is the one that the federation's authority knows. Silent if nobody answers.

    Args:
        host: the server's name or address.
        port: its port.
        authority: the authority's certificate.

    Raises:
        FederationError: it does not speak TLS, or its certificate is not good.
    """
    where = f"{host}:{port}"
    context = ssl.create_default_context(cafile=str(authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        with socket.create_connection((host, port), timeout=_SECONDS) as connection, context.wrap_socket(connection, server_hostname=host):
            return
    except ssl.SSLCertVerificationError as error:
        raise FederationError(f"the server at {where} is not trusted: {_why(error, host, authority)}") from error
    except ssl.SSLError as error:
        if "EOF" in str(error):  # it went away
            return
        raise FederationError(
            f"the server at {where} does not speak TLS ({error.reason or error}), and this client does not talk to it without; "
            "start the server with security=tls"
        ) from error
    except OSError:
        return


def check_plain(host: str, port: int) -> None:
    """Check that a server does not want TLS from a client that has none. Silent if nobody answers.

    Raises:
        FederationError: it speaks TLS.
    """
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=_LOOK_SECONDS) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        if connection.recv(5) == b"HTTP/":
            return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent: whether it speaks TLS is the question
    try:
        with socket.create_connection((host, port), timeout=_LOOK_SECONDS) as connection, context.wrap_socket(connection):
            pass
    except OSError:
        return
    raise FederationError(
        f"the server at {host}:{port} encrypts its connections, and this client does not: "
        "start it with security=tls, with the server's ca.pem and this client's own key"
    )


def _why(error: ssl.SSLCertVerificationError, host: str, authority: Path) -> str:
    if error.verify_code == _EXPIRED:
        return "its certificate has expired; `python -m fedmap certs server` on its machine makes a new one"
    if error.verify_code == _TOO_EARLY:
        return "its certificate is not good yet; look at the clocks of both machines"
    if error.verify_code in _WRONG_NAMES:
        return f"its certificate is not for {host}; use a name that it has, or `python -m fedmap certs server --host {host}` there"
    return f"its certificate was not signed by the authority in {authority} ({error.verify_message}); use the ca.pem of that server"
