"""The end of a run on the clients: each scores the model that it uses on its own test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message, MessageType

from fedmap.checkpoint import load_state, save_state
from fedmap.config import RunConfig
from fedmap.errors import CheckpointError, UpdateError
from fedmap.flower.exchange import lifetime
from fedmap.flower.registry import Registry
from fedmap.flower.wire import RunInfo, broadcast_to_content, content_to_counts
from fedmap.metrics import MultilabelCounts
from fedmap.records import Broadcast

_FILE = "client_tests.state"


@dataclass(frozen=True)
class ClientTests:
    """The clients' final counts on their test rows, kept so that a server which dies after them need not ask again.

    Attributes:
        round_index: how many rounds the run had.
        counts: by client.
    """

    round_index: int
    counts: Mapping[int, MultilabelCounts] = field(default_factory=dict)


def load_tests(folder: Path, round_index: int) -> ClientTests | None:
    """The clients' final counts after so many rounds, if they are known already."""
    path = folder / "checkpoints" / _FILE
    if not path.exists():
        return None
    try:
        tests = load_state(path, ClientTests)
    except CheckpointError:
        return None  # the clients are asked again
    return tests if tests.round_index == round_index else None


def save_tests(folder: Path, tests: ClientTests) -> None:
    """Keep the clients' final counts.

    Raises:
        CheckpointError: they cannot be written.
    """
    save_state(folder / "checkpoints" / _FILE, tests)


def ask_for_tests(config: RunConfig, registry: Registry, info: RunInfo, broadcast: Broadcast) -> dict[int, MultilabelCounts]:
    """Tell the clients that the run has ended, and with which model; returns by client how it does there.

    Args:
        config: the run's configuration; with privacy the clients say nothing.
        registry: the clients.
        info: about the run, whose end it is.
        broadcast: around the chosen model.
    """
    registry.refresh(5.0)
    clients = {node: client_id for client_id, node in registry.nodes.items()}
    if not clients:
        return {}
    content = broadcast_to_content(broadcast, info)
    seconds = config.runtime.round_seconds
    messages = {node: Message(content, node, MessageType.EVALUATE, ttl=lifetime(seconds), group_id="final") for node in clients}
    answers = registry.exchange.ask(messages, seconds)
    if config.privacy.wanted:  # they learn that the run has ended, and say nothing
        registry.note(f"privacy={config.privacy.name}: the clients do not tell how the model does on their own rows")
        return {}
    found = {}
    for node, answer in answers.items():
        try:
            if answer.content is None:
                raise UpdateError(answer.failure)
            client_id, counts = content_to_counts(answer.content, len(registry.label_names))
            if client_id != clients[node] or "test" not in counts:
                raise UpdateError("the answer is another client's, or has no counts of the test split")
            found[client_id] = counts["test"]
        except UpdateError as error:
            registry.note(f"client {clients[node]} is missing from the final scores: {error}")
    return found
