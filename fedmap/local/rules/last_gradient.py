"""The client half of FedGMA (2021): plain training, and the last step's gradient is sent along."""

from __future__ import annotations

from torch import nn

from fedmap.local.rules.base import LocalRule, Outcome, Progress
from fedmap.local.rules.gradients import trainable
from fedmap.local.tensors import get_weights

GROUP = "last-gradient"


class LastGradient(LocalRule):
    """Sends w_k and g_k, the mini-batch gradient that the last optimiser step used (after clipping, if clipping is on)."""

    def finish(self, model: nn.Module, progress: Progress) -> Outcome:
        """The loop clears gradients before a step and not after it, so the last step's are still there."""
        gradient = {
            name: (parameter.new_zeros(parameter.shape) if parameter.grad is None else parameter.grad).detach().cpu().numpy().copy()
            for name, parameter in trainable(model).items()
        }
        return Outcome(weights=get_weights(model), extras={GROUP: gradient})
