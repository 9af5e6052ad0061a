"""What travels between server and clients, and what a round leaves behind. Frozen, validated, framework-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedmap.errors import UpdateError
from fedmap.metrics import MultilabelCounts
from fedmap.reasons import Reason
from fedmap.weights import Weights

Scalar = bool | int | float | str

_INTEGERS = (  # of an update, each with its least value and the code of a worse one
    ("client_id", 0, Reason.IDENTITY),
    ("round_index", 0, Reason.ROUND),
    ("num_examples", 1, Reason.EXAMPLES),
    ("num_steps", 1, Reason.STEPS),
)


@dataclass(frozen=True)
class Broadcast:
    """What the server sends to a client for one round of training.

    Attributes:
        round_index: the round, counted from 1.
        weights: the global model's shared arrays by name.
        rule: the client half of the algorithm: a name of `fedmap.local.rules` or the dotted path of a user's class.
        extras: further groups of named arrays, e.g. SCAFFOLD's server control under "control".
        scalars: the rule's numbers and switches, e.g. {"mu": 0.01}.
    """

    round_index: int
    weights: Weights
    rule: str = "plain"
    extras: Mapping[str, Weights] = field(default_factory=dict)
    scalars: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientSignals:
    """What a client measured about itself in one round; None means not measured, never zero.

    Attributes:
        f1_before: macro-F1 of the received model on the client's validation split, in [0, 1].
        f1_after: the same after local training, in [0, 1].
        validation_loss: mean loss after training on the validation split, >= 0.
        train_loss: mean loss over all training steps of the round, >= 0.
        update_norm: Euclidean norm of (weights sent - weights received) over trainable parameters, >= 0.
        gradient_norm: mean over all steps of the gradient's Euclidean norm before clipping, >= 0.
        label_imbalance: 1 - H(label counts)/log C, in [0, 1]; 0 is perfectly balanced.
        diversity: share of the C labels that occur in the training split, in [0, 1].
        modality_shares: for each modality the share of training rows that have it, in [0, 1].
        share_complete: share of training rows that have every modality, in [0, 1].
        custom: a user's own signals by name.
    """

    f1_before: float | None = None
    f1_after: float | None = None
    validation_loss: float | None = None
    train_loss: float | None = None
    update_norm: float | None = None
    gradient_norm: float | None = None
    label_imbalance: float | None = None
    diversity: float | None = None
    modality_shares: Mapping[str, float] = field(default_factory=dict)
    share_complete: float | None = None
    custom: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientUpdate:
    """One client's answer to one broadcast.

    Attributes:
        client_id: the client's stable number, >= 0.
        round_index: the round that it answers.
        weights: the arrays the client shares after training, by name.
        num_examples: rows trained on, >= 1.
        num_steps: optimiser steps really taken, >= 1.
        signals: what the client measured about itself.
        extras: further groups of named arrays, e.g. "control-delta" or "last-gradient".
        scalars: the rule's numbers, e.g. "log-likelihood".
        counts: multi-label counts by split and moment, e.g. "val-before", "val-after".
        seconds: wall-clock seconds by phase, e.g. "train", "evaluate".
    """

    client_id: int
    round_index: int
    weights: Weights
    num_examples: int
    num_steps: int
    signals: ClientSignals = field(default_factory=ClientSignals)
    extras: Mapping[str, Weights] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, MultilabelCounts] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least, code in _INTEGERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UpdateError(f"client {self.client_id}: {name} must be an integer of at least {least}, got {value!r:.40}", code)
        for name, number in self.scalars.items():
            if math.isnan(number):
                raise UpdateError(f"client {self.client_id}: scalar {name!r} is not a number", Reason.FINITE)


@dataclass(frozen=True)
class RoundReport:
    """What the aggregator did in one round, returned rather than logged.

    Attributes:
        round_index: the round, counted from 1.
        client_weights: each client's share in the aggregate; the shares sum to 1 where the notion applies.
        diagnostics: the algorithm's own numbers, e.g. {"masked-share": 0.3}.
        notes: sentences for the user, e.g. about a client that was left out.
    """

    round_index: int
    client_weights: Mapping[int, float] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
