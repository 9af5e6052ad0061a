"""The client half of personalised FedMAP: a Gaussian prior around gamma, and a model of the client's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from fedmap.errors import ConfigError
from fedmap.local.rules.base import Memory, Outcome, Progress
from fedmap.local.rules.gradients import learning_rates, pull, trainable
from fedmap.local.rules.personal import PersonalRule
from fedmap.local.tensors import get_weights, layout_of, set_weights
from fedmap.records import Broadcast

if TYPE_CHECKING:
    from fedmap.local.training import TrainingOptions

VARIANCE = "prior-variance"


class MapPrior(PersonalRule):
    """Minimises mean loss + sum (theta - gamma)^2 / (2 sigma^2) over the covered parameters, from the client's own theta_k.

    The prior's gradient (theta - gamma) / sigma^2 is added after the backward pass, which is the same as adding the term
    to the loss. The loss of the training loop is taken for -log P of one example.
    """

    starts_anew = False

    def start(self, model: nn.Module, broadcast: Broadcast, memory: Memory) -> None:
        """Remember gamma, then go on from theta_k where there is one."""
        variances = broadcast.extras.get(VARIANCE)
        if not variances:
            raise ConfigError(f"the rule {broadcast.rule!r} needs the group {VARIANCE!r}, which the server's strategy did not broadcast")
        self.model = model
        parameters = trainable(model)
        self.covered = [name for name in parameters if name in variances]
        self.parameters = [parameters[name] for name in self.covered]
        self.anchors = [parameter.detach().clone() for parameter in self.parameters]
        self.variances = [torch.as_tensor(variances[name], dtype=torch.float64) for name in self.covered]
        values = {float(variance.item()) if variance.numel() == 1 else None for variance in self.variances}
        single = values.pop() if len(values) == 1 else None
        self.strength: float | list[torch.Tensor] = (
            1 / single
            if single is not None
            else [(1 / v).to(p.device, p.dtype) for v, p in zip(self.variances, self.parameters, strict=True)]
        )
        if broadcast.scalars.get("warm-start", True):
            self._restore_own(model, memory, shared_rest=broadcast.scalars.get("uncovered", "shared") == "shared")

    def _restore_own(self, model: nn.Module, memory: Memory, *, shared_rest: bool) -> None:
        """Put theta_k into the model; what lies outside the prior follows gamma if it is shared, buffers with their layers."""
        own = memory.arrays.get(self.group, {})
        if shared_rest and len(self.covered) < len(trainable(model)):
            layers = {name.rpartition(".")[0] for name in self.covered}
            buffers = layout_of(model).buffers
            own = {n: a for n, a in own.items() if n in self.covered or (n in buffers and n.rpartition(".")[0] in layers)}
        if own:
            set_weights(model, own, partial=True)

    def asks_for_rows(self, broadcast: Broadcast) -> bool:
        """For the mean loss."""
        return True

    def check(self, options: TrainingOptions) -> None:
        """Refuse a step size at which the prior alone makes plain SGD diverge: eta / sigma^2 >= 2 (1 + momentum)."""
        if options.optimizer != "sgd":
            return
        rates = learning_rates(self.model, options)
        for name, variance in zip(self.covered, self.variances, strict=True):
            least = float(variance.min())
            if rates[name] >= 2 * (1 + options.momentum) * least:
                raise ConfigError(
                    f"learning_rate={rates[name]:g} with sigma^2={least:g} ({name}): SGD diverges on the prior alone; "
                    f"lower the learning rate below {2 * (1 + options.momentum) * least:g}, raise sigma, or use training.optimizer=adam"
                )

    def correct_gradients(self, model: nn.Module) -> None:
        """g <- g + (theta - gamma) / sigma^2."""
        pull(self.parameters, self.anchors, self.strength)

    def finish(self, model: nn.Module, progress: Progress) -> Outcome:
        """Send theta_k and the two terms of log omega_k; keep theta_k."""
        energy = 0.0
        with torch.no_grad():
            for parameter, anchor, variance in zip(self.parameters, self.anchors, self.variances, strict=True):
                offset = (parameter - anchor).double()
                energy += float((offset.square() / variance.to(offset.device)).sum()) / 2
        weights = get_weights(model)
        return Outcome(
            weights=weights,
            memory=Memory(arrays={self.group: weights}),
            scalars={"log-likelihood": -progress.mean_loss(), "prior-energy": energy},
        )
