"""One client's part of a round: load, measure, train by the rule, measure, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from fedmap.data.base import Split
from fedmap.errors import ConfigError
from fedmap.local.private import PrivateRound, check_model_for
from fedmap.local.rules import LocalRule, Memory, Outcome, make_rule
from fedmap.local.tensors import layout_of, set_weights
from fedmap.local.together import Trained
from fedmap.local.training import Evaluation, TrainingOptions, TrainingResult, evaluate, progress_of, train
from fedmap.privacy import NO_PRIVACY, Privacy
from fedmap.randomness import generator, torch_seed
from fedmap.records import Broadcast, ClientSignals, ClientUpdate
from fedmap.signals import RowFacts
from fedmap.weights import difference, norm


@dataclass(frozen=True)
class LocalClient:
    """A client with its model and data; the model is reused from round to round and overwritten at each start.

    Attributes:
        client_id: the client's stable number.
        model: on `options.device`.
        splits: "train", and "val" and "test", which may be empty.
        options: how it trains.
        seed: the federation's seed.
        modality_names: the federation's modalities.
        after_round: a hook that may change or add to the update before it is sent (see flclient_patch.py).
        privacy: what is done to the update after that.
        secret: of this client and run; what privacy draws from.
        facts: of the training rows, where they are known already.
        trained: what it has learnt in this round, where it has been trained together with others.
    """

    client_id: int
    model: nn.Module
    splits: Mapping[str, Split]
    options: TrainingOptions
    seed: int
    modality_names: Sequence[str] = ()
    after_round: Callable[[ClientUpdate], ClientUpdate] | None = None
    privacy: Privacy = NO_PRIVACY
    secret: bytes = b""
    facts: RowFacts | None = None
    trained: Trained | None = None

    def train_round(
        self, broadcast: Broadcast, memory: Memory, on_step: Callable[[int, float], None] | None = None
    ) -> tuple[ClientUpdate, Memory]:
        """Train one round from the broadcast and the client's memory; returns the update to send and the new memory."""
        if self.trained is not None:
            return self._take_over(self.trained)
        started = time.perf_counter()
        rule = make_rule(broadcast.rule)
        train_split, val_split = self.splits["train"], self.splits["val"]
        set_weights(self.model, broadcast.weights)
        rule.start(self.model, broadcast, memory)
        before = evaluate(self.model, val_split, self.options)
        evaluated = time.perf_counter()
        place = {"round_index": broadcast.round_index, "client_id": self.client_id}
        private = self._private(broadcast)
        steps = private.steps() if private else None
        with torch_seed(self.seed, purpose="train", **place):
            result = train(self.model, train_split, self.options, rule, generator(self.seed, purpose="batches", **place), on_step, steps)
        trained = time.perf_counter()
        after = evaluate(self.model, val_split, self.options)
        outcome = rule.finish(self.model, progress_of(self.model, train_split, self.options, result, private=steps is not None))
        moved = norm(difference(layout_of(self.model).parameters(outcome.weights), broadcast.weights))
        seconds = {"train": trained - evaluated, "evaluate": (evaluated - started) + (time.perf_counter() - trained)}
        update = self._update(broadcast.round_index, before, after, result, outcome, moved, seconds)
        return (private.sent(update, outcome.extras, outcome.scalars) if private else update), outcome.memory

    def _take_over(self, trained: Trained) -> tuple[ClientUpdate, Memory]:
        """What `train_round` returns, of what was learnt together with others."""
        started = time.perf_counter()
        validation, scores = self.splits["val"], []
        for weights in (trained.broadcast.weights, trained.weights):
            if len(validation):
                set_weights(self.model, weights)
            scores.append(evaluate(self.model, validation, self.options))
        seconds = {"train": trained.seconds, "evaluate": time.perf_counter() - started}
        outcome = Outcome(trained.weights)
        place = trained.broadcast.round_index
        return self._update(place, scores[0], scores[1], trained.result, outcome, trained.update_norm, seconds), outcome.memory

    def _update(
        self,
        round_index: int,
        before: Evaluation,
        after: Evaluation,
        result: TrainingResult,
        outcome: Outcome,
        update_norm: float,
        seconds: Mapping[str, float],
    ) -> ClientUpdate:
        """What is sent, as far as the hook has it so."""
        train_split = self.splits["train"]
        facts = self.facts or RowFacts.of(train_split, self.modality_names)
        has_validation = len(self.splits["val"]) > 0
        signals = ClientSignals(
            f1_before=before.counts.macro_f1 if has_validation else None,
            f1_after=after.counts.macro_f1 if has_validation else None,
            validation_loss=after.loss if has_validation else None,
            train_loss=result.loss,
            update_norm=update_norm,
            gradient_norm=result.gradient_norm,
            label_imbalance=facts.label_imbalance,
            diversity=facts.diversity,
            modality_shares=facts.modality_shares,
            share_complete=facts.share_complete,
        )
        update = ClientUpdate(
            client_id=self.client_id,
            round_index=round_index,
            weights=outcome.weights,
            num_examples=len(train_split),
            num_steps=result.num_steps,
            signals=signals,
            extras=outcome.extras,
            scalars=outcome.scalars,
            counts={"val-before": before.counts, "val-after": after.counts},
            seconds=seconds,
        )
        return self.after_round(update) if self.after_round else update

    def _private(self, broadcast: Broadcast) -> PrivateRound | None:
        if not self.privacy.wanted:
            return None
        check_model_for(self.privacy, self.model)
        return PrivateRound(self.privacy, self.secret, broadcast, self.client_id, repr(self.options))

    def evaluate_round(self, broadcast: Broadcast, memory: Memory, split: str = "test") -> Evaluation:
        """Score the model this client uses (the global one, or its own under a personalised rule) on one split.

        Raises:
            ConfigError: the scores would be sent, and this client's rows are private.
        """
        if self.privacy.wanted:
            raise ConfigError(f"privacy={self.privacy.name}: scores on this client's own rows are not told")
        rule: LocalRule = make_rule(broadcast.rule)
        set_weights(self.model, broadcast.weights)
        rule.load_for_evaluation(self.model, memory)
        return evaluate(self.model, self.splits[split], self.options)
