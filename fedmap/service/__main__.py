"""`python -m fedmap.service HANDLE`: the server's front on a socket that another process has opened; see `fedmap.service.process`."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import threading
import time
from pathlib import Path

_FILES = 4096  # open at once: a watcher needs one
_NICENESS = 15  # the clients' training on the same machine goes first
_LAST_LOOK_SECONDS = 1.5  # for the pages that watch: they read the final results, and leave


def main() -> None:
    """Serve until standard input closes. Its first line holds the settings."""
    os.nice(_NICENESS)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most if most != resource.RLIM_INFINITY and most < _FILES else _FILES, most))
    settings = json.loads(sys.stdin.readline())

    from fedmap.service.background import make_server
    from fedmap.service.manager import Task
    from fedmap.service.server_front import create_server_app

    folder = Path(settings["current"])
    app = create_server_app(
        Path(settings["outputs"]),
        folder,
        token=settings["token"],
        public=settings["public"],
        depth=settings["depth"],
        task=Task(settings["task"]["task_id"], settings["task"]["port"], folder),
    )
    tls = settings["tls"]
    server = make_server(app, tls and (Path(tls[0]), Path(tls[1])))

    def end_with_the_run() -> None:
        sys.stdin.read()
        end = time.monotonic() + _LAST_LOOK_SECONDS
        while app.state.runs.watched and time.monotonic() < end:
            time.sleep(0.05)
        server.should_exit = True

    threading.Thread(target=end_with_the_run, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
