"""`python -m fedmap dashboard`: the server's front over the runs of a folder, without a federation."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from fedmap.access.authority import check_certificate
from fedmap.access.folder import MAKE, AccessFolder
from fedmap.config import is_loopback
from fedmap.errors import ConfigError, DataError
from fedmap.service.background import make_server
from fedmap.service.listening import listen, url
from fedmap.service.security import load_token
from fedmap.service.server_front import create_server_app


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted; returns the exit status.

    On an address that others can reach every request needs the token, and the connection is encrypted unless --insecure is said.
    """
    outputs: Path = arguments.outputs
    if not outputs.is_dir():
        raise DataError(f"{outputs} is no folder; give the folder that holds the runs, by default outputs")
    if not 0 <= arguments.port < 65536:
        raise DataError(f"--port {arguments.port}: expected 0 to 65535")
    public = not is_loopback(arguments.host)
    tls = None if arguments.certs is None else AccessFolder(arguments.certs).server
    if tls is not None:
        check_certificate(tls, f"`{MAKE} server --host <name> --folder {arguments.certs}` makes one")
    elif public and not arguments.insecure:
        raise ConfigError(
            f"--host {arguments.host} is not this machine alone, and the connection would not be encrypted; give --certs FOLDER "
            "(python -m fedmap certs), or --insecure if the network is trusted"
        )
    token, made = load_token(arguments.token_file)
    with closing(listen(arguments.host, arguments.port)) as listener:
        print(f"the runs in {outputs}: {url(listener, tls is not None)} (Ctrl-C ends it)", flush=True)
        if public:
            print("others can reach this address: every request needs the token, as the password of the user fedmap", flush=True)
        if made:
            print(f"writing needs this token, shown this once and kept in {arguments.token_file}: {token}", flush=True)
        make_server(create_server_app(outputs, token=token, public=public), tls).run(sockets=[listener])
    return 0
