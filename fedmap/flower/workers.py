"""The worker processes of the local grid: each keeps one resident model and answers messages until its pipe closes.

What all clients of a round receive alike is sent to each worker once, array by array from where it lies. Messages whose clients train
together go and come as one bunch; most bunches are of one message. A worker may be sent some bunches ahead, so that it need not wait while
the server takes in an answer. These are short: a long one could meet a long answer in the pipe, and neither process would read.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from flwr.app import Context, Message, RecordDict

from fedmap.flower import pipes

AHEAD = 8  # messages that one worker may hold
_SHORT = 8192  # bytes of a message that may be sent ahead
_SHORT_BUNCH = AHEAD * _SHORT  # the same of a bunch of several; of these only one is ever ahead
_ENOUGH = 8, 1 << 20  # answers, and bytes of answers, that are sent before the bunch's others are made
Bunch = list[Message]


@dataclass(eq=False)
class Worker:
    """One worker process, as the grid sees it.

    Attributes:
        process: it.
        pipe: to it.
        tasks: bunches of messages that it has not answered, in the order in which it works on them; none is empty.
        has: the content that it was sent last.
    """

    process: BaseProcess
    pipe: Connection
    tasks: deque[Bunch] = field(default_factory=deque)
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

    def send(self, bunch: Bunch, contexts: Sequence[Context]) -> bool:
        """Send messages with one content to answer; False if they are too long to be sent ahead of others.

        Raises:
            OSError: the process has ended.
        """
        parts = []
        for message, context in zip(bunch, contexts, strict=True):
            shell = copy.copy(message)
            shell.__dict__["_content"] = None
            state = context.state if len(context.state) else None
            parts.append((shell, context.node_config, context.run_id, context.node_id, state))
        data = pickle.dumps(parts, protocol=5)
        content = bunch[0].content
        known = self.has is content
        if self.tasks and (not known or len(data) > (_SHORT if len(bunch) == 1 else _SHORT_BUNCH)):
            return False
        self.tasks.append(list(bunch))
        if not known:
            self.has = None
            self.pipe.send_bytes(b"content")
            pipes.send(self.pipe, content)
            self.has = content
        self.pipe.send_bytes(data)
        return True

    def receive(self) -> Iterator[tuple[Message, Message, RecordDict]]:
        """The messages that have been answered, each with its reply and the client's state; none if the process has only just started.

        Raises:
            EOFError: the process has ended.
            OSError: likewise.
        """
        for reply, state in pipes.receive(self.pipe):
            message = self.tasks[0].pop(0)
            if not self.tasks[0]:
                self.tasks.popleft()
            yield message, reply, RecordDict() if state is None else state

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
    from fedmap.flower.exchange import content_bytes

    with contextlib.suppress(OSError):
        pipes.send(pipe, ())
    content: RecordDict | None = None
    sender = ThreadPoolExecutor(1, "fedmap-sender")
    while True:
        try:
            data = pipe.recv_bytes()
            if data == b"content":
                content = None  # the old one goes before the new one comes
                content = pipes.receive(pipe)
                continue
        except (EOFError, OSError):
            return
        bunch, contexts = [], []
        for message, node_config, run_id, node_id, state in pickle.loads(data):
            message.__dict__["_content"] = content
            bunch.append(message)
            contexts.append(Context(run_id, node_id, node_config, RecordDict() if state is None else state, {}))
        answers, size = [], 0
        try:
            for context, reply in zip(contexts, run_app(bunch, contexts), strict=True):  # the next ones while the server takes these in
                answers.append((reply, context.state if len(context.state) else None))
                size += content_bytes(reply.content) if reply.has_content() else 0
                if len(answers) >= _ENOUGH[0] or size > _ENOUGH[1] or context is contexts[-1]:
                    sending = sender.submit(_send, pipe, answers, size <= _ENOUGH[1])
                    if size > _ENOUGH[1]:
                        sending.result()  # large ones do not pile up
                    answers, size = [], 0
        except OSError:
            return


def _send(pipe: Connection, answers: object, small: bool) -> None:
    """Send answers from a thread; a server that waits for what cannot be sent has to see that this process has ended."""
    try:
        pipes.send(pipe, answers, small=small)
    except OSError:
        raise
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _leave_with_server() -> None:
    """A server that was killed cannot end its workers, and one that trains looks at its pipe only when it is done."""
    server = multiprocessing.parent_process()
    assert server is not None
    wait([server.sentinel])
    os._exit(1)


def run_app(bunch: Bunch, contexts: Sequence[Context]) -> Iterator[Message]:
    """The client app's answers; the clients of several messages have trained together before the first one is answered."""
    from fedmap.flower.client_app import app, train_together

    if len(bunch) > 1:
        train_together(bunch, contexts)
    for message, context in zip(bunch, contexts, strict=True):
        yield app(message, context)
