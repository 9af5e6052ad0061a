"""The client half of individual training: go on with the client's own model and send nothing of it."""

from __future__ import annotations

from torch import nn

from fedmap.local.rules.base import Memory, Outcome, Progress
from fedmap.local.rules.personal import PersonalRule
from fedmap.local.tensors import get_weights
from fedmap.records import Broadcast


class Individual(PersonalRule):
    """Round 1 starts from the common initial model, every later round from where this client stopped."""

    def start(self, model: nn.Module, broadcast: Broadcast, memory: Memory) -> None:
        """Replace the received model by the client's own."""
        self.restore(model, memory)

    def finish(self, model: nn.Module, progress: Progress) -> Outcome:
        """Keep everything, send no tensors."""
        return Outcome(weights={}, memory=Memory(arrays={self.group: get_weights(model)}))
