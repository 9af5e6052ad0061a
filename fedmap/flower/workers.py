"""The worker processes of the local grid: each keeps one resident model and answers messages until its pipe closes.

What all clients of a round receive alike is sent to each worker once, array by array from where it lies. A worker may be sent some messages ahead,
so that it need not wait while the server takes in an answer. Messages ahead are short: a long one could meet a long answer in
the pipe, and neither process would read.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from flwr.app import Context, Message, RecordDict

from fedmap.flower import pipes

AHEAD = 8  # messages that one worker may hold
_SHORT = 8192  # bytes of a message that may be sent ahead


@dataclass(eq=False)
class Worker:
    """One worker process, as the grid sees it.

    Attributes:
        process: it.
        pipe: to it.
        tasks: messages that it has not answered, in the order in which it works on them.
        has: the content that it was sent last.
    """

    process: BaseProcess
    pipe: Connection
    tasks: deque[Message] = field(default_factory=deque)
    has: RecordDict | None = None

    @staticmethod
    def start() -> Worker:
        """A fresh one."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True, name="fedmap-worker")
        process.start()
        theirs.close()
        return Worker(process, ours)

    def send(self, message: Message, context: Context) -> bool:
        """Send a message to answer; False if it is too long to be sent ahead of others.

        Raises:
            OSError: the process has ended.
        """
        shell = copy.copy(message)
        shell.__dict__["_content"] = None
        state = context.state if len(context.state) else None
        data = pickle.dumps((shell, context.node_config, context.run_id, context.node_id, state), protocol=5)
        content = message.content
        known = self.has is content
        if self.tasks and (not known or len(data) > _SHORT):
            return False
        self.tasks.append(message)
        if not known:
            self.has = None
            self.pipe.send_bytes(b"content")
            pipes.send(self.pipe, content)
            self.has = content
        self.pipe.send_bytes(data)
        return True

    def receive(self) -> tuple[Message, Message, RecordDict] | None:
        """The message that has been answered, the reply and the client's state; None if the process has only just started.

        Raises:
            EOFError: the process has ended.
            OSError: likewise.
        """
        received = pipes.receive(self.pipe)
        if received is None:
            return None
        reply, state = received
        return self.tasks.popleft(), reply, RecordDict() if state is None else state

    def end(self) -> str:
        """Wait for a process that is about to end, and say how it did."""
        self.process.join(timeout=5)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return "was killed (by the system, if it took more memory than there is: use fewer runtime.workers or a smaller batch_size)"
        return f"ended with exit code {code}"

    def renew(self) -> None:
        """Put a fresh process in the place of one that has ended, or soon will."""
        self.pipe.close()
        self.process.join(timeout=5)
        fresh = Worker.start()
        self.process, self.pipe, self.tasks, self.has = fresh.process, fresh.pipe, fresh.tasks, None


def _serve(pipe: Connection) -> None:
    """A worker's life: answer messages until the pipe closes. Ctrl-C is the server's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with_server, daemon=True, name="fedmap-server-watch").start()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import fedmap.flower.session  # noqa: F401  (with everything that takes long to import)

    with contextlib.suppress(OSError):
        pipes.send(pipe, None)
    content: RecordDict | None = None
    while True:
        try:
            data = pipe.recv_bytes()
            if data == b"content":
                content = None  # the old one goes before the new one comes
                content = pipes.receive(pipe)
                continue
        except (EOFError, OSError):
            return
        message, node_config, run_id, node_id, state = pickle.loads(data)
        message.__dict__["_content"] = content
        context = Context(run_id, node_id, node_config, RecordDict() if state is None else state, {})
        reply = run_app(message, context)
        try:
            pipes.send(pipe, (reply, context.state if len(context.state) else None))
        except OSError:
            return


def _leave_with_server() -> None:
    """A server that was killed cannot end its workers, and one that trains looks at its pipe only when it is done."""
    server = multiprocessing.parent_process()
    assert server is not None
    wait([server.sentinel])
    os._exit(1)


def run_app(message: Message, context: Context) -> Message:
    """The client app's answer."""
    from fedmap.flower.client_app import app

    return app(message, context)
