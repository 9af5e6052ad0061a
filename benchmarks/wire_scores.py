"""What each way of packing does to macro-F1: federations on movies whose messages really are packed and unpacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.modality_ground import Ground
from benchmarks.modality_runs import run
from fedmap.compression import Compression
from fedmap.compression.parcels import pack_update
from fedmap.flower.exchange import content_bytes
from fedmap.flower.feedback import residuals_of, with_residuals
from fedmap.flower.wire import RunInfo, broadcast_to_content, content_to_broadcast, content_to_update, update_to_content
from fedmap.local.client import LocalClient
from fedmap.local.rules import Memory
from fedmap.records import Broadcast, ClientUpdate


@dataclass(frozen=True)
class PackedClient(LocalClient):
    """A client behind the messages of a run: what it receives and what the server gets of it have been packed.

    Attributes:
        settings: of the run.
        bytes_sent: of all messages of this client, down and up, is added to.
    """

    settings: Compression = field(default_factory=Compression)
    bytes_sent: list[int] = field(default_factory=list)

    def train_round(
        self, broadcast: Broadcast, memory: Memory, on_step: Callable[[int, float], None] | None = None
    ) -> tuple[ClientUpdate, Memory]:
        """See `LocalClient`."""
        info = RunInfo("wire", self.seed, num_rounds=1)
        down = broadcast_to_content(broadcast, info, self.settings)
        received = content_to_broadcast(down, {name: array.shape for name, array in broadcast.weights.items()})
        update, after = super().train_round(received, memory, on_step)
        parcels, residuals = pack_update(update, received, self.settings, self.seed, residuals_of(memory))
        up = update_to_content(update, parcels)
        self.bytes_sent.append(content_bytes(down) + content_bytes(up))
        return content_to_update(up, None, broadcast, self.settings), with_residuals(after, residuals)


def scores(ground: Ground, strategy: str, trials: int, settings: Compression) -> dict[str, Any]:
    """One federation's figures; see `benchmarks.modality_runs.run`. "bytes" is the mean of a client's round."""
    sent: list[int] = []
    clients: list[LocalClient] = [
        PackedClient(**{name: getattr(client, name) for name in client.__dataclass_fields__}, settings=settings, bytes_sent=sent)
        for client in ground.clients
    ]
    found = run(replace(ground, clients=clients), strategy, trials)
    return {**found, "bytes": sum(sent) / len(sent)}
