"""A Flower grid on one machine without Ray: every client of the federation, answered by a few worker processes.

Each worker keeps one resident model and runs the same ClientApp on the same messages as a deployed SuperNode. Which
worker answers for which client never matters for the result: everything random is drawn from (seed, round, client).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedmap.flower.exchange import content_bytes
from fedmap.flower.workers import AHEAD, Bunch, Worker, run_app

log = logging.getLogger("fedmap.local")
_SERVER_NODE = 1
_RUN_ID = 1
_CLIENT_FAILED = 2  # Flower's code for an exception in a ClientApp
_START_SECONDS = 120.0
_BATCH_SECONDS = 0.05  # without workers, replies are handed out this often
_LARGE = 8 << 20  # bytes of an answer
_LOOK_AHEAD = 64  # so many waiting messages are looked through for one whose client a worker already knows


@dataclass
class LocalGrid(Grid):
    """Messages between one server and the clients of one machine.

    Attributes:
        node_configs: for each client's node its Flower node configuration, e.g. {"client-id": 0, "config": "/path.yaml"}.
        workers: worker processes, >= 0; 0 answers inside this process, when a reply is asked for.
        clients_at_once: so many clients at most train together, see `fedmap.local.together`. Who goes with whom is a matter of their order
            alone, so that results do not depend on the workers.
    """

    node_configs: Mapping[int, Mapping[str, Any]]
    workers: int
    clients_at_once: int = 1
    poll_seconds = 0.0
    closed = True  # no further node can come
    _states: dict[int, RecordDict] = field(default_factory=dict, init=False)
    _waiting: deque[Bunch] = field(default_factory=deque, init=False)
    _replies: dict[str, Message] = field(default_factory=dict, init=False)
    _pool: list[Worker] = field(default_factory=list, init=False)
    _sent: int = field(default=0, init=False)
    _homes: dict[int, Worker] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = _RUN_ID, _SERVER_NODE, 0
        self._run = Run.create_empty(_RUN_ID)

    def __enter__(self) -> LocalGrid:
        self._pool = [Worker.start() for _ in range(self.workers)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._pool:
            worker.pipe.close()  # an idle worker sees the end of its pipe and leaves
        for worker in self._pool:
            if worker.tasks:
                worker.process.terminate()
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._pool = []

    def set_run(self, run: Run) -> None:
        """Part of Flower's interface; a local grid has one run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The one run of this grid."""
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """Part of Flower's interface; the constructor of `Message` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes of all clients; local clients never leave."""
        return sorted(self.node_configs)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes of all clients."""
        return [NodeInfo(node_id=node_id) for node_id in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for the workers; returns their ids in order."""
        ids = []
        sent = list(messages)
        for message in sent:
            self._sent += 1
            message_id = f"local-{self._sent}"
            message.metadata.__dict__["_message_id"] = message_id
            ids.append(message_id)
        self._waiting.extend(_bunches(sent, self.clients_at_once))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to the given messages that have arrived; hands out queued work and waits a moment for results."""
        self._work()
        asked = set(message_ids)
        return [self._replies.pop(message_id) for message_id in list(self._replies) if message_id in asked]

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Give up messages that have not been answered. A worker that is busy with one is ended, and a fresh one takes its place.

        Fresh workers are waited for, so that the time that they need to start is not the next round's.
        """
        given_up = set(message_ids)
        fresh = []

        def left(bunches: Iterable[Bunch]) -> list[Bunch]:
            kept = [[message for message in bunch if message.metadata.message_id not in given_up] for bunch in bunches]
            return [bunch for bunch in kept if bunch]

        self._waiting = deque(left(self._waiting))
        for worker in self._pool:
            if any(task.metadata.message_id in given_up for bunch in worker.tasks for task in bunch):
                self._waiting.extendleft(reversed(left(worker.tasks)))
                worker.process.kill()
                self._renew(worker)
                fresh.append(worker)
        end = time.monotonic() + _START_SECONDS
        for worker in fresh:
            with contextlib.suppress(EOFError, OSError):  # it died; that is noticed when it gets work
                if worker.pipe.poll(max(end - time.monotonic(), 0.0)):
                    list(worker.receive())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and collect the replies until all have come or `timeout` seconds have passed."""
        left = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while left and (end is None or time.monotonic() < end):
            arrived = list(self.pull_messages(left))
            replies += arrived
            left -= {reply.metadata.reply_to_message_id for reply in arrived}
        return replies

    def _contexts(self, bunch: Bunch) -> list[Context]:
        nodes = [message.metadata.dst_node_id for message in bunch]
        return [Context(_RUN_ID, node, dict(self.node_configs[node]), self._states.setdefault(node, RecordDict()), {}) for node in nodes]

    def _work(self) -> None:
        if self.workers == 0:
            end = time.monotonic() + _BATCH_SECONDS
            while self._waiting and time.monotonic() < end:
                bunch = self._waiting.popleft()
                contexts = self._contexts(bunch)
                for message, context, reply in zip(bunch, contexts, run_app(bunch, contexts), strict=True):
                    self._keep(message, reply, context.state)
            return
        for worker in self._pool:
            self._feed(worker)
        busy = {worker.pipe: worker for worker in self._pool if worker.tasks}
        for pipe in wait(list(busy), timeout=0.2):
            worker = busy[pipe]  # type: ignore[index]
            large = False
            try:
                while worker.tasks and not large and worker.pipe.poll():
                    for message, reply, state in worker.receive():
                        self._keep(message, reply, state)
                        large = large or (reply.has_content() and content_bytes(reply.content) > _LARGE)
            except (EOFError, OSError):
                self._replace(worker)
            self._feed(worker)
            if large:  # the server takes it in before the next one comes
                break
        if not self._waiting and not any(worker.tasks for worker in self._pool):
            for worker in self._pool:
                worker.has = None

    def _feed(self, worker: Worker) -> None:
        """Give the worker something to do: one bunch, and some to go on with while there are plenty."""
        if self._waiting and not worker.tasks and not worker.process.is_alive():  # killed while it had nothing to do: nothing is lost
            log.warning("an idle worker process has ended with exit code %s; another one takes its place", worker.process.exitcode)
            self._renew(worker)
        ahead, plenty = (AHEAD, AHEAD) if self.clients_at_once == 1 else (2, 1)
        while self._waiting and (not worker.tasks or (len(worker.tasks) < ahead and len(self._waiting) >= plenty * len(self._pool))):
            bunch = self._next(worker)
            try:
                if not worker.send(bunch, self._contexts(bunch)):
                    self._waiting.appendleft(bunch)
                    return
            except OSError:
                self._replace(worker)

    def _next(self, worker: Worker) -> Bunch:
        """A waiting bunch whose first client the worker has had before, and so has its data at hand, if one is near."""
        for place, bunch in enumerate(itertools.islice(self._waiting, _LOOK_AHEAD)):
            if self._homes.setdefault(bunch[0].metadata.dst_node_id, worker) is worker:
                del self._waiting[place]
                return bunch
        return self._waiting.popleft()

    def _keep(self, message: Message, reply: Message, state: RecordDict) -> None:
        self._states[message.metadata.dst_node_id] = state
        self._replies[message.metadata.message_id] = reply

    def _replace(self, worker: Worker) -> None:
        """A worker died (killed, or out of memory): the message that it worked on failed, and a fresh worker takes its place.

        Of several that it worked on at once nobody knows which one it was: they are asked again, each by itself.
        """
        tasks, *rest = worker.tasks
        alone = [[task] for task in tasks] if len(tasks) > 1 else []
        self._waiting.extendleft(reversed([*alone, *rest]))
        reason = f"the worker process {worker.end()} while it answered"
        log.warning("%s; another one takes its place", reason)
        if not alone:
            self._replies[tasks[0].metadata.message_id] = Message(Error(code=_CLIENT_FAILED, reason=reason), reply_to=tasks[0])
        self._renew(worker)

    def _renew(self, worker: Worker) -> None:
        self._homes = {node: home for node, home in self._homes.items() if home is not worker}
        worker.renew()


def _bunches(messages: list[Message], at_once: int) -> Iterator[Bunch]:
    """The messages in their order, those for training in bunches of at most `at_once` that are about equally long."""
    for (kind, _), group in itertools.groupby(messages, key=lambda message: (message.metadata.message_type, id(message.content))):
        found = list(group)
        count = math.ceil(len(found) / at_once) if kind == MessageType.TRAIN else len(found)
        for part in range(count):
            yield found[part * len(found) // count : (part + 1) * len(found) // count]
