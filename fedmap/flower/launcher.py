"""`launcher.py SOCKET PROGRAM`: starts a Python program again and again without importing Flower each time.

Flower starts `flwr-clientapp` for each message, and its imports (FastAPI, SQLAlchemy, gRPC and more) take a second of processor time.
So a SuperNode finds, first on its PATH, a small program that asks this one for a copy of itself (fork), which has imported
Flower already and runs the real program from there: a fresh process, as before. For the first message the small program starts this one
and runs the real program itself, as it does where this one does not answer. It ends with the SuperNode.

Flower also unpacks the app's bundle for each message, hundreds of files. A copy leaves that out if an earlier one has unpacked the same bytes.

Linux alone: elsewhere a process with threads of the system's libraries cannot be copied safely, and Flower's own program is run.
"""

import contextlib
import gc
import hashlib
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any

_LONGEST = 100  # bytes of a socket's path; Linux takes 107
_WATCH_SECONDS = 1.0

_FRONT = """#!{python} -IS
import json, os, socket, sys
try:
    with socket.socket(socket.AF_UNIX) as launcher:
        launcher.connect({place!r})
        launcher.sendall(json.dumps(sys.argv).encode() + b"\\n")
        if launcher.recv(1):
            launcher.recv(1)  # the end of the copy
            sys.exit()
except OSError:
    nothing = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    os.posix_spawn({python!r}, {launcher!r}, os.environ, file_actions=nothing)
os.execv({python!r}, [{python!r}, {program!r}, *sys.argv[1:]])
"""


def install(home: Path, program: Path) -> Path | None:
    """Write the small program.

    Args:
        home: the SuperNode's Flower home.
        program: what it stands for, a Python script.

    Returns:
        The folder that must come first on the SuperNode's PATH; None where processes are not copied.
    """
    place = home.resolve() / "launcher"
    if sys.platform != "linux" or len(os.fsencode(place)) > _LONGEST:
        return None
    folder = home / "start"
    folder.mkdir(parents=True, exist_ok=True)
    front = folder / program.name
    command = [sys.executable, "-P", str(Path(__file__).resolve()), str(place), str(program)]
    front.write_text(_FRONT.format(python=sys.executable, place=str(place), launcher=command, program=str(program)), encoding="utf-8")
    front.chmod(0o700)
    return folder


def main(place: Path, program: str) -> None:
    """Copy this process whenever somebody asks; in a copy, run the program."""
    leader = os.getsid(0)
    if leader == 0:  # nobody to end with can be seen
        return
    with socket.socket(socket.AF_UNIX) as listener:
        with contextlib.suppress(FileNotFoundError):
            place.unlink()  # of one that was killed
        mask = os.umask(0o077)  # nobody else may connect
        listener.bind(str(place))
        os.umask(mask)
        listener.listen()
        _import(place.parent)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the copies
        listener.settimeout(_WATCH_SECONDS)
        asked = _serve(listener, leader)
    if asked is not None:  # this is a copy
        with asked[0]:  # stays open for as long as the program runs
            sys.argv = [program, *asked[1]]
            runpy.run_path(program, run_name="__main__")


def _import(home: Path) -> None:
    import multiprocessing.connection

    import flwr.supernode.cli
    import httpx
    import numpy
    import psutil

    httpx.HTTPTransport(verify=False).close()  # imports what a connection takes, which otherwise the first connection of every copy would
    unpack_once(sys.modules.get("flwr.supernode.runtime.run_clientapp"), home)
    del multiprocessing, flwr, httpx, numpy, psutil
    gc.freeze()  # or collecting garbage would write to pages that all copies share


def unpack_once(flower: Any, home: Path) -> None:
    """Replace the function by which Flower's program unpacks an app, if there is one; `own_app` puts another in its place.

    Args:
        flower: the module that calls it.
        home: the SuperNode's Flower home, into which apps are unpacked.
    """
    unpack = getattr(flower, "install_from_fab", None)
    if not callable(unpack):  # another version
        return

    def unpack_new(bundle: Any, *arguments: Any, **options: Any) -> None:
        done = home / f"unpacked-{hashlib.sha256(bundle).hexdigest()}" if isinstance(bundle, bytes) else None
        if done is None or not done.exists():
            unpack(bundle, *arguments, **options)
            if done is not None:
                done.touch()

    flower.install_from_fab = unpack_new


def _serve(listener: socket.socket, leader: int) -> tuple[socket.socket, list[str]] | None:
    """Who asked, and with which arguments, in a copy; None in the process itself, when the session's leader is gone."""
    while _runs(leader):
        try:
            connection = listener.accept()[0]
        except TimeoutError:
            continue
        with contextlib.suppress(OSError, ValueError):
            connection.settimeout(_WATCH_SECONDS)
            with connection.makefile("rb") as file:
                arguments = json.loads(file.readline())[1:]
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                connection.sendall(b"+")
                return connection, arguments
        connection.close()
    return None


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
