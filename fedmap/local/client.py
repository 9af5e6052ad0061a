"""One client's part of a round: load, measure, train by the rule, measure, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedmap.data.base import Split
from fedmap.errors import ConfigError
from fedmap.local.private import PrivateRound, check_model_for
from fedmap.local.rules import LocalRule, Memory, make_rule
from fedmap.local.rules.gradients import trainable
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
        if self.trained is not None:
            result = self._learn(self.trained)
        else:
            rng = generator(self.seed, purpose="batches", **place)
            with torch_seed(self.seed, purpose="train", **place):
                result = train(self.model, train_split, self.options, rule, rng, on_step, steps)
        trained = time.perf_counter()
        after = evaluate(self.model, val_split, self.options)
        outcome = rule.finish(self.model, progress_of(self.model, train_split, self.options, result, private=steps is not None))
        facts = self.facts or RowFacts.of(train_split, self.modality_names)
        has_validation = len(val_split) > 0
        signals = ClientSignals(
            f1_before=before.counts.macro_f1 if has_validation else None,
            f1_after=after.counts.macro_f1 if has_validation else None,
            validation_loss=after.loss if has_validation else None,
            train_loss=result.loss,
            update_norm=norm(difference(layout_of(self.model).parameters(outcome.weights), broadcast.weights)),
            gradient_norm=result.gradient_norm,
            label_imbalance=facts.label_imbalance,
            diversity=facts.diversity,
            modality_shares=facts.modality_shares,
            share_complete=facts.share_complete,
        )
        finished = time.perf_counter()
        update = ClientUpdate(
            client_id=self.client_id,
            round_index=broadcast.round_index,
            weights=outcome.weights,
            num_examples=len(train_split),
            num_steps=result.num_steps,
            signals=signals,
            extras=outcome.extras,
            scalars=outcome.scalars,
            counts={"val-before": before.counts, "val-after": after.counts},
            seconds={
                "train": trained - evaluated + (self.trained.seconds if self.trained else 0.0),
                "evaluate": (evaluated - started) + (finished - trained),
            },
        )
        update = self.after_round(update) if self.after_round else update
        return (private.sent(update, outcome.extras, outcome.scalars) if private else update), outcome.memory

    @torch.no_grad()
    def _learn(self, trained: Trained) -> TrainingResult:
        """Take over what was learnt together with others."""
        for name, parameter in trainable(self.model).items():
            parameter.copy_(trained.parameters[name])
        return trained.result

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
