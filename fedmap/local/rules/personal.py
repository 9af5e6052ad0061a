"""The part that personalised rules share: some of the client's tensors are its own and come back from its memory."""

from __future__ import annotations

from torch import nn

from fedmap.local.rules.base import LocalRule, Memory
from fedmap.local.tensors import set_weights


class PersonalRule(LocalRule):
    """Keeps a group of tensors in the client's memory and scores the client with them.

    Attributes:
        group: the group of `Memory.arrays` that holds them.
    """

    personal = True
    group = "personal"

    def restore(self, model: nn.Module, memory: Memory) -> bool:
        """Write the remembered tensors into the model; False where there are none yet, in a client's first round."""
        own = memory.arrays.get(self.group)
        if own:
            set_weights(model, own, partial=True)
        return bool(own)

    def load_for_evaluation(self, model: nn.Module, memory: Memory) -> None:
        """The global model with the client's own tensors in it."""
        self.restore(model, memory)
