"""What a private client sends: the model by its mechanism, what follows from that, and nothing else that it knows of its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fedmap.errors import ConfigError
from fedmap.local.rules import LocalRule
from fedmap.local.tensors import layout_of
from fedmap.privacy.mechanism import PrivateSteps, private_weights
from fedmap.privacy.secret import derived, digest, noise_generator
from fedmap.privacy.settings import Privacy
from fedmap.records import Broadcast, ClientSignals, ClientUpdate

ASKS_FOR_ROWS = (
    "privacy=record: this strategy's clients send what they compute over all of their training rows after training, which would not be "
    "private; choose another strategy (strategy=fedavg, or scaffold with server.strategy.option=II), or privacy=none"
)


@dataclass(frozen=True)
class PrivateRound:
    """One client's privacy in one round.

    Attributes:
        privacy: with a name other than "none".
        secret: of the client and the run.
        broadcast: what the round begins with.
        client_id: whose.
        about: what else an answer depends on, so that no two answers that differ share their noise.
    """

    privacy: Privacy
    secret: bytes
    broadcast: Broadcast
    client_id: int
    about: str = ""

    def _generator(self, purpose: str) -> np.random.Generator:
        place = (purpose, self.client_id, digest(self.broadcast), repr(self.privacy), self.about)
        return noise_generator(derived(self.secret, *place))

    def steps(self) -> PrivateSteps | None:
        """For the training loop; None where single steps are not private."""
        return PrivateSteps(self.privacy, self._generator("steps")) if self.privacy.name == "record" else None

    def sent(self, update: ClientUpdate, extras: Iterable[str], scalars: Iterable[str]) -> ClientUpdate:
        """The update as it may leave: without signals, counts and seconds, and with the model privatised if single steps were not.

        Args:
            update: as it would be sent without privacy.
            extras: names of the groups that the rule made. Others, of a hook's, stay here.
            scalars: names of the numbers that the rule made.

        Raises:
            ConfigError: the rule sends more than a model, which "client" does not cover.
        """
        groups, numbers = tuple(extras), tuple(scalars)
        weights = update.weights
        if self.privacy.name == "client":
            if groups or numbers:
                raise ConfigError(more_than_a_model([*groups, *numbers]))
            weights = private_weights(weights, self.broadcast.weights, self.privacy, self._generator("model"))
        return replace(
            update,
            weights=weights,
            signals=ClientSignals(),
            extras={name: update.extras[name] for name in groups if name in update.extras},
            scalars={name: update.scalars[name] for name in numbers if name in update.scalars},
            counts={},
            seconds={},
        )


def more_than_a_model(names: Iterable[str]) -> str:
    """The sentence for a strategy whose clients send more than "client" covers."""
    return (
        f"privacy=client covers the model alone, and this strategy's clients also send {', '.join(names)}; choose another strategy "
        "(strategy=fedavg, for example) or privacy=record"
    )


def check_model_for(privacy: Privacy, model: nn.Module) -> None:
    """Refuse a model that says more of its rows than its gradients do.

    Raises:
        ConfigError: it sends statistics of the rows it has seen.
    """
    if privacy.wanted and (buffers := sorted(layout_of(model).buffers)):
        raise ConfigError(
            f"privacy={privacy.name}: the model sends statistics of the rows that it has seen ({len(buffers)} arrays, first {buffers[:2]}), "
            "which no noise covers; use norm=layer and vision_norm=group, or freeze such towers (freeze_vision=true), or privacy=none"
        )


def check_rule_for(privacy: Privacy, rule: LocalRule, broadcast: Broadcast, extras: Iterable[str], scalars: Iterable[str]) -> None:
    """Refuse a strategy whose clients would send what the mechanism does not cover.

    Args:
        privacy: of the run.
        rule: the clients' half.
        broadcast: of a round.
        extras: groups of arrays that the server wants of them.
        scalars: numbers that it wants of them.

    Raises:
        ConfigError: says why and what to choose.
    """
    if privacy.name == "record" and rule.asks_for_rows(broadcast):
        raise ConfigError(ASKS_FOR_ROWS)
    if privacy.name == "client" and (more := [*extras, *scalars]):
        raise ConfigError(more_than_a_model(more))
