"""The client half of FedBN: normalisation layers never leave the client."""

from __future__ import annotations

from torch import nn

from fedmap.local.rules.base import Memory, Outcome, Progress
from fedmap.local.rules.personal import PersonalRule
from fedmap.local.tensors import get_weights, layout_of
from fedmap.records import Broadcast


class KeepNormalisation(PersonalRule):
    """Keeps the parameters and statistics of normalisation layers, found by module type, and shares everything else."""

    group = "normalisation"

    def start(self, model: nn.Module, broadcast: Broadcast, memory: Memory) -> None:
        """Put the client's own normalisation layers into the received model."""
        self.restore(model, memory)

    def finish(self, model: nn.Module, progress: Progress) -> Outcome:
        """Send what is shared, keep what is not."""
        kept = layout_of(model).normalisation
        weights = get_weights(model)
        return Outcome(
            weights={name: array for name, array in weights.items() if name not in kept},
            memory=Memory(arrays={self.group: {name: array for name, array in weights.items() if name in kept}}),
        )
