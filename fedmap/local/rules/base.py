"""The client halves of the algorithms: small hooks into the one training loop.

A rule is made anew for each round. It sees the model after the broadcast weights have been written into it, may change
them (`start`), may add to the loss (`penalty`) or to the gradients (`correct_gradients`), and says at the end what is
sent and what is remembered (`finish`). The broadcast names the rule: a name of `RULES` or a user's "module.Class".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedmap.errors import ConfigError
from fedmap.local.tensors import get_weights
from fedmap.records import Broadcast
from fedmap.weights import Weights

if TYPE_CHECKING:
    from fedmap.local.training import TrainingOptions


@dataclass(frozen=True)
class Memory:
    """What a client keeps for itself between rounds; it never leaves the client.

    Attributes:
        arrays: groups of named arrays, e.g. {"control": {...}, "personal": {...}}.
        scalars: named numbers.
    """

    arrays: Mapping[str, Weights] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """What the training loop tells a rule at the end of a round.

    Attributes:
        num_steps: optimiser steps taken.
        learning_rate: the (head's) learning rate of those steps.
        num_examples: rows of the training split.
        mean_gradient: computes the mean loss gradient over the whole training split at the model's present weights, in
            evaluation mode (no dropout, fixed statistics) and without any correction; one extra pass over the data.
        mean_loss: computes the mean loss over the whole training split at the model's present weights.
    """

    num_steps: int
    learning_rate: float
    num_examples: int
    mean_gradient: Callable[[], dict[str, torch.Tensor]]
    mean_loss: Callable[[], float]


@dataclass(frozen=True)
class Outcome:
    """What a rule sends and keeps at the end of a round.

    Attributes:
        weights: the named arrays that are sent as the client's model.
        memory: what the client keeps.
        extras: further groups of named arrays to send.
        scalars: numbers to send.
    """

    weights: Weights
    memory: Memory = field(default_factory=Memory)
    extras: Mapping[str, Weights] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)


class LocalRule:
    """Plain local training, and the base class of every other rule: override what differs.

    `personal` says that the client's own model, and not the global one, is what the client uses and is scored with.
    `starts_anew` says that what it sends is the broadcast and one round's change, and not a model that lives on on the client.
    """

    personal: bool = False
    starts_anew: bool = True

    def asks_for_rows(self, broadcast: Broadcast) -> bool:
        """Whether `finish` sends what it learns from further passes over the training rows, which privacy of rows does not cover."""
        return False

    def check(self, options: TrainingOptions) -> None:
        """Called once after `start` to refuse training options the algorithm cannot work with, by raising a ConfigError."""

    def start(self, model: nn.Module, broadcast: Broadcast, memory: Memory) -> None:
        """Called once before training, after the broadcast weights have been written into the model."""

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """A term added to each batch's loss, or None."""
        return None

    def correct_gradients(self, model: nn.Module) -> None:
        """Called after each backward pass (and before clipping) to change the gradients in place."""

    def finish(self, model: nn.Module, progress: Progress) -> Outcome:
        """What is sent and what is kept, after the last step."""
        return Outcome(weights=get_weights(model))

    def load_for_evaluation(self, model: nn.Module, memory: Memory) -> None:
        """Turn the global model, already written into `model`, into the one this client is scored with."""


RULES: dict[str, str] = {
    "plain": "fedmap.local.rules.base.LocalRule",
    "individual": "fedmap.local.rules.individual.Individual",
    "proximal": "fedmap.local.rules.proximal.Proximal",
    "keep-normalisation": "fedmap.local.rules.keep_normalisation.KeepNormalisation",
    "map-prior": "fedmap.local.rules.map_prior.MapPrior",
    "control-variate": "fedmap.local.rules.control_variate.ControlVariate",
    "last-gradient": "fedmap.local.rules.last_gradient.LastGradient",
}


def make_rule(name: str) -> LocalRule:
    """A fresh rule by its name in `RULES` or by the dotted path of a user's class.

    Raises:
        ConfigError: there is no such rule, or it is not a LocalRule.
    """
    path = RULES.get(name, name)
    module_name, _, class_name = path.rpartition(".")
    try:
        rule_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"no local rule {name!r}: expected one of {sorted(RULES)} or an importable 'module.Class' ({error})") from error
    if not isinstance(rule_class, type) or not issubclass(rule_class, LocalRule):
        raise ConfigError(f"{path} is not a subclass of fedmap.local.rules.LocalRule")
    return rule_class()
