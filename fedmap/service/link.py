"""`python -m fedmap.service.link`: the process of a SuperLink with `security=tls`; see `fedmap.flower.link`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from fedmap.access.folder import AccessFolder
from fedmap.errors import FederationError
from fedmap.flower import processes
from fedmap.flower.link import make_link
from fedmap.service.background import make_server
from fedmap.service.listening import bound


def main() -> int:
    """Serve until terminated; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="certificates and keys")
    parser.add_argument("address", help="host:port for clients")
    parser.add_argument("control", help="host:port for this machine")
    parser.add_argument("nodes", type=Path, help="the file that says which node is which client's")
    arguments = parser.parse_args()
    own = logging.StreamHandler()  # Flower's log lines have a handler of their own
    own.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger("fedmap").addHandler(own)
    folder = AccessFolder(arguments.folder)
    try:
        world = bound(*processes.split_address(arguments.address))
        local = bound(*processes.split_address(arguments.control))
        link = make_link(folder, local.getsockname()[1], arguments.nodes)
    except (FederationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    make_server(link, folder.server).run(sockets=[local, world])
    return 0


if __name__ == "__main__":
    sys.exit(main())
