"""`python -m fedmap dashboard`: the server's front over the runs of a folder, without a federation."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from fedmap.config import is_loopback
from fedmap.errors import DataError
from fedmap.service.background import make_server
from fedmap.service.listening import listen, url
from fedmap.service.security import load_token
from fedmap.service.server_front import create_server_app


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted; returns the exit status. On an address that others can reach every request needs the token."""
    outputs: Path = arguments.outputs
    if not outputs.is_dir():
        raise DataError(f"{outputs} is no folder; give the folder that holds the runs, by default outputs")
    if not 0 <= arguments.port < 65536:
        raise DataError(f"--port {arguments.port}: expected 0 to 65535")
    public = not is_loopback(arguments.host)
    token, made = load_token(arguments.token_file)
    with closing(listen(arguments.host, arguments.port)) as listener:
        print(f"the runs in {outputs}: {url(listener)} (Ctrl-C ends it)", flush=True)
        if public:
            print("others can reach this address: every request needs the token, as the password of the user fedmap", flush=True)
        if made:
            print(f"writing needs this token, shown this once and kept in {arguments.token_file}: {token}", flush=True)
        make_server(create_server_app(outputs, token=token, public=public)).run(sockets=[listener])
    return 0
