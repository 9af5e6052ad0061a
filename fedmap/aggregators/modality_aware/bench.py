"""One round's workbench: the usable updates, the judge, and real evaluations, each made once and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedmap.aggregators.judge import Logits, logits_of_several
from fedmap.aggregators.modality_aware.mixing import Mix, apply_mix, stepped
from fedmap.aggregators.modality_aware.objective import HOPELESS, Objective, Verdict
from fedmap.records import ClientUpdate
from fedmap.weights import Layout, Weights, all_finite, distance


@dataclass
class Bench:
    """Mixes and evaluates models of one round.

    Attributes:
        objective: scores logits.
        updates: K updates whose arrays are finite.
        received: the weights that the clients started from.
        layout: says which part of the model belongs to which modality.
        evaluations: forward passes over the validation rows so far.
    """

    objective: Objective
    updates: Sequence[ClientUpdate]
    received: Weights
    layout: Layout
    evaluations: int = 0
    _known: dict[bytes, Verdict] = field(default_factory=dict)

    def logits(self) -> list[Logits]:
        """[n, C] logits of every client's own model; each counts as one evaluation."""
        self.evaluations += len(self.updates)
        found = logits_of_several(self.objective.judge, [lambda own=update.weights: own for update in self.updates])  # type: ignore[misc]
        return [logits for logits in found if logits is not None]

    def model(self, mix: Mix) -> dict[str, Any]:
        """The clients' models mixed."""
        mixed = apply_mix([update.weights for update in self.updates], mix, self.layout)
        return stepped(mixed, self.received, mix.step, self.layout)

    def verdict(self, mix: Mix) -> Verdict:
        """How the really mixed model does."""
        return self.verdicts([mix])[0]

    def verdicts(self, mixes: Sequence[Mix]) -> list[Verdict]:
        """How really mixed models do; those that nobody has asked for yet are evaluated together."""
        keys = [mix.key() for mix in mixes]
        new = {key: mix for key, mix in zip(keys, mixes, strict=True) if key not in self._known}
        found = logits_of_several(self.objective.judge, [lambda mix=mix: self._finite_model(mix) for mix in new.values()])  # type: ignore[misc]
        for key, logits in zip(new, found, strict=True):
            self.evaluations += logits is not None
            self._known[key] = HOPELESS if logits is None else self.objective.verdict(logits)
        return [self._known[key] for key in keys]

    def _finite_model(self, mix: Mix) -> Weights | None:
        model = self.model(mix)
        return model if all_finite(model) else None


def finite_only(updates: Sequence[ClientUpdate]) -> tuple[list[ClientUpdate], list[str]]:
    """The updates whose float arrays are finite, and a sentence for each of the others."""
    good, notes = [], []
    for update in updates:
        if all_finite(update.weights):
            good.append(update)
        else:
            notes.append(f"client {update.client_id} was left out: its model holds NaN or infinite numbers")
    return good, notes


def update_norm(update: ClientUpdate, received: Weights, layout: Layout) -> float:
    """||w_k - w_t|| over the trainable parameters, measured by the server."""
    return distance(update.weights, received, [name for name in layout.parameters(update.weights) if name in received])
