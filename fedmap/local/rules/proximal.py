"""The client half of FedProx: a spring to the global model."""

from __future__ import annotations

from torch import nn

from fedmap.local.rules.base import LocalRule, Memory
from fedmap.local.rules.gradients import pull, scalar, trainable
from fedmap.records import Broadcast


class Proximal(LocalRule):
    """Minimises F_k(w) + mu/2 ||w - w_t||^2 over the trainable parameters.

    The gradient mu (w - w_t) is added after the backward pass and before clipping. With mu = 0 nothing is touched, so
    that the round is FedAvg's bit for bit.
    """

    def start(self, model: nn.Module, broadcast: Broadcast, memory: Memory) -> None:
        """Remember w_t."""
        self.mu = scalar(broadcast, "mu")
        self.parameters = list(trainable(model).values())
        self.anchors = [parameter.detach().clone() for parameter in self.parameters]

    def correct_gradients(self, model: nn.Module) -> None:
        """g <- g + mu (w - w_t)."""
        if self.mu > 0:
            pull(self.parameters, self.anchors, self.mu)
