"""What several rules do with parameters and gradients, over whole lists of tensors at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedmap.errors import ConfigError
from fedmap.records import Broadcast

if TYPE_CHECKING:
    from fedmap.local.training import TrainingOptions


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """The parameters' gradients; a parameter that took no part in the loss is given a gradient of zero."""
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    return found


@torch.no_grad()
def pull(parameters: Sequence[nn.Parameter], anchors: Sequence[torch.Tensor], strength: float | Sequence[torch.Tensor]) -> None:
    """Add the gradient of sum strength/2 (w - anchor)^2, which is strength * (w - anchor), to the parameters' gradients.

    The same as adding the term to the loss, without the pass through autograd: one fused pass over the tensors.

    Args:
        parameters: after a backward pass.
        anchors: one per parameter, of its shape.
        strength: one number, or one tensor per parameter that broadcasts to its shape.
    """
    offsets = torch._foreach_sub(list(parameters), list(anchors))
    if isinstance(strength, (int, float)):
        torch._foreach_add_(gradients(parameters), offsets, alpha=float(strength))
    else:
        torch._foreach_add_(gradients(parameters), torch._foreach_mul(offsets, list(strength)))


def scalar(broadcast: Broadcast, name: str) -> float:
    """A number that the rule cannot do without.

    Raises:
        ConfigError: the broadcast does not carry it.
    """
    value = broadcast.scalars.get(name)
    if value is None:
        raise ConfigError(f"the rule {broadcast.rule!r} needs the scalar {name!r}, which the server's strategy did not broadcast")
    return float(value)


def learning_rates(model: nn.Module, options: TrainingOptions) -> dict[str, float]:
    """The learning rate of every trainable parameter: a model's `parameter_groups` may set rates of their own."""
    names = {id(parameter): name for name, parameter in trainable(model).items()}
    own = getattr(model, "parameter_groups", None)
    groups = own(options) if callable(own) else []
    rates = dict.fromkeys(names.values(), options.learning_rate)
    for group in groups:
        rates.update({names[id(p)]: float(group.get("lr", options.learning_rate)) for p in group["params"] if id(p) in names})
    return rates
