"""A deployed client's resident process: it keeps imports, model and data from message to message.

Flower answers each message with a process of its own (`flwr-clientapp`). What takes long in it is not Flower: importing torch,
building the model, reading the data. So this process hands the message to a resident one over a socket in the client's Flower
home, and passes its answer on; the first message starts the resident. It runs the code that Flower installed for the run, in the
SuperNode's session, and ends with the SuperNode. Where it dies (out of memory, for instance), the message is answered with that,
and the next one starts another; where the message's own process is killed, the resident gives up the work and ends.

There is none for clients that client_main.py did not start, nor on Windows: they answer in the message's own process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path

import psutil
from flwr.app import Context, Message

from fedmap.errors import ClientMemoryError, FederationError
from fedmap.flower.pipes import receive, send

_CODE = Path(__file__).resolve().parents[2]  # the folder that holds the app
_LONGEST = 100  # bytes of a socket's path; Linux takes 107, macOS 103
_START_SECONDS = 60.0
_here = False  # whether this process is the resident


def answer(message: Message, context: Context) -> Message | None:
    """The resident's answer, or None where this process is to answer by itself.

    Raises:
        ClientMemoryError: the resident was killed while it worked, as a system short of memory does.
        FederationError: it ended otherwise, or cannot be started.
    """
    place = _socket(context)
    if _here or place is None:
        return None
    with _connected(place) as (pipe, pid):
        asked = message.metadata.message_type
        try:
            send(pipe, (message, context))
            reply, context.state = receive(pipe)
        except (EOFError, OSError) as error:
            reason = f"the client's process {pid} ended while it answered the server's {asked} message"
            raise ClientMemoryError(f"{reason}; it was killed, or the client has too little memory") from error
    assert isinstance(reply, Message)
    return reply


def _socket(context: Context) -> Path | None:
    """Where the resident listens, if this client may have one: client_main.py has made it a Flower home of its own."""
    home = os.environ.get("FLWR_HOME")
    if not context.node_config.get("events") or not home or sys.platform == "win32":
        return None
    place = Path(home).resolve() / "resident"
    return place if len(os.fsencode(place)) <= _LONGEST else None


@contextmanager
def _connected(place: Path) -> Iterator[tuple[Connection, int]]:
    """A connection to the resident of this code, started if need be, and its process's number."""
    end = time.monotonic() + _START_SECONDS
    started: int | None = None
    while True:
        try:
            pipe: Connection = Client(str(place), "AF_UNIX")
            code, pid = pipe.recv()
        except (OSError, EOFError):
            if started is not None and (code := _ended(started)) is not None:
                raise FederationError(f"the client's process ended with exit code {code} as it started") from None
            if time.monotonic() > end:
                raise FederationError(f"the client's process does not answer at {place} within {_START_SECONDS:g} s") from None
            if started is None:
                started = _start(place)
            time.sleep(0.02)
            continue
        if code == str(_CODE):
            break
        send(pipe, None)  # of another run's code: it ends, and makes way
        pipe.close()
        time.sleep(0.02)
    with pipe:
        yield pipe, pid


def _start(place: Path) -> int:
    place.unlink(missing_ok=True)  # of one that was killed
    path = os.pathsep.join(part for part in (str(_CODE), os.environ.get("PYTHONPATH", "")) if part)
    command = [sys.executable, "-P", "-m", "fedmap.flower.resident", str(place)]
    nothing = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    return os.posix_spawn(sys.executable, command, {**os.environ, "PYTHONPATH": path}, file_actions=nothing)  # it outlives this process


def _ended(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def serve(place: Path) -> None:
    """The resident's life: answer one message after the other until a message comes for other code."""
    global _here
    _here = True
    threading.Thread(target=_leave_with_session, daemon=True, name="fedmap-session-watch").start()
    before = os.umask(0o077)  # nobody else may connect
    with Listener(str(place), "AF_UNIX") as listener:
        os.umask(before)
        while True:
            with suppress(EOFError, OSError), listener.accept() as pipe:
                pipe.send((str(_CODE), os.getpid()))
                if not _serve_one(pipe):
                    return


def _serve_one(pipe: Connection) -> bool:
    """Answer one message; False where none comes because other code is to follow."""
    asked = receive(pipe)
    if asked is not None:
        send(pipe, _answered(pipe, *asked))
    return asked is not None


def _answered(pipe: Connection, message: Message, context: Context) -> tuple[Message, object]:
    from fedmap.flower.client_app import app

    done, watched = _pipe()
    watcher = threading.Thread(target=_leave_with_message, args=(pipe, watched), daemon=True, name="fedmap-message-watch")
    watcher.start()
    try:
        return app(message, context), context.state
    finally:
        done.close()
        watcher.join()
        watched.close()


def _pipe() -> tuple[Connection, Connection]:
    from multiprocessing import Pipe

    return Pipe()


def _leave_with_message(pipe: Connection, done: Connection) -> None:
    """Nobody waits for the answer any more: whoever asked says nothing further, so that something to read is the end."""
    if done not in wait([pipe, done]):
        os._exit(1)


def _leave_with_session() -> None:
    """End with the SuperNode, which leads this session; where no leader can be seen, with the process that asked first."""
    watched = next((process for pid in (os.getsid(0), os.getppid()) for process in _alive(pid)), None)
    while watched is not None and _runs(watched):
        time.sleep(1.0)
    os._exit(1)


def _alive(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return [process for process in (psutil.Process(pid),) if _runs(process)]
    return []


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


if __name__ == "__main__":
    from fedmap.flower.resident import serve as _serve  # the module that the app imports, not this second copy of it

    _serve(Path(sys.argv[1]))
