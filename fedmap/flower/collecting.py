"""One round's answers: asked for, read, checked and put away one by one as they come in, and compared when all are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message, MessageType

from fedmap.config import RunConfig
from fedmap.errors import UpdateError
from fedmap.flower.exchange import Answer, Exchange, content_bytes, lifetime
from fedmap.flower.wire import RunInfo, broadcast_to_content, content_to_update
from fedmap.guard import Ladder, Settled
from fedmap.history import FAILED, REJECTED, ClientRecord
from fedmap.progress import Progress
from fedmap.reasons import Reason
from fedmap.spill import Spill


@dataclass(frozen=True)
class Collected:
    """What came of asking a round's clients to train.

    Attributes:
        settled: the updates that may be aggregated, and what was found of them.
        lost: the clients whose answer did not come or is not used.
        bytes_up: by client that answered.
        bytes_down: by client that was asked.
    """

    settled: Settled
    lost: Sequence[ClientRecord]
    bytes_up: Mapping[int, int]
    bytes_down: Mapping[int, int]


@dataclass
class Collection:
    """One round's, from the message to the updates that may be aggregated.

    Attributes:
        config: the run's configuration.
        ladder: what the answers have to pass; its broadcast is what the clients are sent.
        clients: the client behind each node that is asked.
        num_labels: of the task.
        folder: where updates wait that are too many for memory.
        progress: told who answers, who is left out and why.
    """

    config: RunConfig
    ladder: Ladder
    clients: Mapping[int, int]
    num_labels: int
    folder: Path
    progress: Progress
    _size: int = field(default=0, init=False)  # bytes of the message to each client
    _up: dict[int, int] = field(default_factory=dict, init=False)  # by client, bytes of its answer
    _lost: dict[int, ClientRecord] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        kinds = [kind for group in self.ladder.form.groups.values() for kind in group.values()]
        self._spill = Spill(self.folder, len(self.clients) * sum(kind.nbytes for kind in kinds))

    def ask(self, exchange: Exchange, info: RunInfo) -> Collected:
        """Send every client the broadcast, and wait until all have answered, have left, or the time is over."""
        content = broadcast_to_content(self.ladder.broadcast, info, self.config.compression)
        self._size = content_bytes(content)
        seconds, group = self.config.runtime.round_seconds, str(self.ladder.broadcast.round_index)
        messages = {node: Message(content, node, MessageType.TRAIN, ttl=lifetime(seconds), group_id=group) for node in self.clients}
        exchange.ask(messages, seconds, self._take)
        settled = self.ladder.settle(self._spill.keep)
        self._spill.close()
        for refusal in settled.refused:
            update, sent = refusal.update, self._up[refusal.update.client_id]
            self._lose(
                ClientRecord.of(update, status=REJECTED, reason=refusal.reason, code=refusal.code, bytes_up=sent, bytes_down=self._size)
            )
        for client_id, remarks in settled.remarks.items():
            for code, remark in remarks.items():
                self.progress.note(f"client {client_id} in round {group} ({code}): {remark}")
        return Collected(settled, [self._lost[k] for k in sorted(self._lost)], self._up, dict.fromkeys(self.clients.values(), self._size))

    def _take(self, node: int, answer: Answer) -> None:
        client_id = self.clients[node]
        status, code, reason = FAILED, str(Reason.NO_ANSWER), answer.failure
        if answer.content is not None:
            self._up[client_id] = content_bytes(answer.content)
            ladder = self.ladder
            try:
                update = content_to_update(
                    answer.content, self.num_labels, ladder.broadcast, self.config.compression, ladder.form, ladder.defence.max_bytes
                )
                if update.client_id != client_id:
                    raise UpdateError(f"the node of client {client_id} answered as client {update.client_id}", Reason.IDENTITY)
                ladder.admit(self._spill.keep(update))
            except UpdateError as error:
                code, reason = error.code, str(error)
                status = FAILED if code == Reason.PROBLEM else REJECTED
            else:
                self.progress.client_done(update)
                return
        down = None if answer.content is None else self._size
        self._lose(ClientRecord(client_id, status, reason, code=code, bytes_up=self._up.get(client_id), bytes_down=down))

    def _lose(self, record: ClientRecord) -> None:
        self._lost[record.client_id] = record
        round_index = self.ladder.broadcast.round_index
        self.progress.client_lost(round_index, record)
        code = f" ({record.code})" if record.status == REJECTED else ""
        self.progress.note(f"client {record.client_id} is left out of round {round_index}{code}: {record.reason}")
