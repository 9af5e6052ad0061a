"""The client half of SCAFFOLD: every step is corrected by the server's control minus the client's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fedmap.errors import ConfigError
from fedmap.local.rules.base import LocalRule, Memory, Outcome, Progress
from fedmap.local.rules.gradients import gradients, learning_rates, trainable
from fedmap.local.tensors import get_weights, set_weights
from fedmap.records import Broadcast

if TYPE_CHECKING:
    from fedmap.local.training import TrainingOptions

CONTROL = "control"
CONTROL_DELTA = "control-delta"


class ControlVariate(LocalRule):
    """y <- y - eta_l (g_k(y) - c_k + c), with c_k in the client's memory, zero until its first round.

    Weight decay of plain SGD is a gradient of the local objective like any other, so it biases nothing. Parameters with a
    learning rate of their own have their own eta_l in option II.
    """

    def start(self, model: nn.Module, broadcast: Broadcast, memory: Memory) -> None:
        """Take x and c from the server and c_k from memory."""
        server = broadcast.extras.get(CONTROL)
        if server is None:
            raise ConfigError(f"the rule {broadcast.rule!r} needs the group {CONTROL!r}, which the server's strategy did not broadcast")
        parameters = trainable(model)
        own = memory.arrays.get(CONTROL, {})
        for place, control in (("the server's control", server), ("this client's remembered control", own or server)):
            if set(control) != set(parameters):
                first = sorted(set(control) ^ set(parameters))[:3]
                raise ConfigError(
                    f"{place} does not fit the model's trainable parameters, first {first}; start a new run, or keep the model as it was"
                )
        self.model = model
        self.option = str(broadcast.scalars.get("option", "II"))
        self.received = broadcast.weights
        self.parameters = parameters
        self.server = [torch.as_tensor(np.array(server[n]), dtype=p.dtype, device=p.device) for n, p in parameters.items()]
        self.own = [
            torch.as_tensor(np.array(own[n]), dtype=p.dtype, device=p.device) if own else torch.zeros_like(p) for n, p in parameters.items()
        ]
        self.correction = torch._foreach_sub(self.server, self.own)

    def asks_for_rows(self, broadcast: Broadcast) -> bool:
        """Option I asks for the mean gradient."""
        return str(broadcast.scalars.get("option", "II")) == "I"

    def check(self, options: TrainingOptions) -> None:
        """Refuse everything that makes (x - y) / (K eta_l) differ from the mean corrected gradient."""
        problems = []
        if options.optimizer != "sgd":
            problems.append(f"training.optimizer={options.optimizer} (set sgd)")
        if options.momentum != 0:
            problems.append(f"training.momentum={options.momentum:g} (set 0)")
        if options.num_updates is None:
            problems.append("no training.num_updates (set the number of optimiser steps per round, for example 20)")
        if self.option == "II" and options.clip_norm > 0:
            problems.append(f"training.clip_norm={options.clip_norm:g} (set 0, or server.strategy.option=I)")
        if problems:
            raise ConfigError(
                "SCAFFOLD's controls are right only for plain SGD with a known number of steps, but there is " + ", ".join(problems)
            )
        rates = learning_rates(self.model, options)
        self.rates = [rates[name] for name in self.parameters]

    def correct_gradients(self, model: nn.Module) -> None:
        """g <- g - c_k + c."""
        torch._foreach_add_(gradients(list(self.parameters.values())), self.correction)

    def finish(self, model: nn.Module, progress: Progress) -> Outcome:
        """Send y and the change of c_k, keep the new c_k.

        Raises:
            ConfigError: the model has gained or lost trainable parameters during the round.
        """
        if set(trainable(model)) != set(self.parameters):
            changed = sorted(set(trainable(model)) ^ set(self.parameters))[:3]
            raise ConfigError(
                f"requires_grad changed during the round, first {changed}; SCAFFOLD's controls need the same parameters throughout"
            )
        weights = get_weights(model)
        renewed = self._at_server_model(model, progress) if self.option == "I" else self._from_path(progress)
        delta = torch._foreach_sub(renewed, self.own)
        arrays = [{n: t.cpu().numpy().copy() for n, t in zip(self.parameters, group, strict=True)} for group in (renewed, delta)]
        return Outcome(weights=weights, memory=Memory(arrays={CONTROL: arrays[0]}), extras={CONTROL_DELTA: arrays[1]})

    def _from_path(self, progress: Progress) -> list[torch.Tensor]:
        """Option II: c_k - c + (x - y) / (K eta_l)."""
        renewed = []
        for (name, y), c, rate in zip(self.parameters.items(), self.correction, self.rates, strict=True):
            x = torch.as_tensor(np.array(self.received[name]), dtype=y.dtype, device=y.device)
            moved = (x - y.detach()) / (progress.num_steps * rate) if rate > 0 else torch.zeros_like(x)
            renewed.append(moved - c)
        return renewed

    def _at_server_model(self, model: nn.Module, progress: Progress) -> list[torch.Tensor]:
        """Option I: the mean gradient over the training split at x; the model is put back as it was."""
        trained = get_weights(model)
        set_weights(model, self.received)
        gradient = progress.mean_gradient()
        set_weights(model, trained)
        return [gradient.get(name, torch.zeros_like(p)).detach() for name, p in self.parameters.items()]
