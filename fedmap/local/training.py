"""The one training loop, and evaluation. Every algorithm trains through here; its client half is a rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedmap.data.base import Batch, Split
from fedmap.errors import ConfigError, DataError
from fedmap.local import steps
from fedmap.local.private import ASKS_FOR_ROWS
from fedmap.local.rules import LocalRule, Progress
from fedmap.metrics import MultilabelCounts
from fedmap.privacy.mechanism import PrivateSteps, expected_rows, steps_per_round

LossFunction = Callable[[torch.Tensor, Batch], torch.Tensor]


@dataclass(frozen=True)
class TrainingOptions:
    """How a client trains.

    Attributes:
        learning_rate: of everything but the parameters a model gives a rate of their own.
        num_epochs: passes over the training split per round; ignored where num_updates is set.
        num_updates: optimiser steps per round, instead of epochs.
        batch_size: rows per step, >= 1. A last batch of a single row joins the batch before it.
        optimizer: "adamw", "adam" or "sgd".
        momentum: of SGD, in [0, 1).
        weight_decay: >= 0.
        clip_norm: gradients are scaled down to this Euclidean norm; 0 never clips.
        tower_learning_rate: of pretrained towers that are not frozen (models with `parameter_groups`).
        device: torch device, e.g. "cpu" or "cuda".
        amp: training and scoring in mixed precision: bfloat16 where torch's autocast deems it safe; parameters, losses and logits
            stay float32. On a processor without bfloat16 instructions that is slower.
        evaluation_batch_size: rows scored at a time, >= 1; None is `batch_size`.
    """

    learning_rate: float = 1e-3
    num_epochs: int = 1
    num_updates: int | None = None
    batch_size: int = 32
    optimizer: str = "adamw"
    momentum: float = 0.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    tower_learning_rate: float = 2e-5
    device: str = "cpu"
    amp: bool = False
    evaluation_batch_size: int | None = field(default=None, repr=False)  # no part of what a private answer depends on


@dataclass(frozen=True)
class TrainingResult:
    """What one round of local training measured.

    Attributes:
        num_steps: optimiser steps taken.
        loss: mean loss over all steps, without the rule's penalty.
        gradient_norm: mean over all steps of the gradient's norm before clipping.
    """

    num_steps: int
    loss: float
    gradient_norm: float


@dataclass(frozen=True)
class Evaluation:
    """A model on a split: pooled counts at threshold 0.5, mean loss, logits [n, C] and labels [n, C]."""

    counts: MultilabelCounts
    loss: float
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]


def loss_of(model: nn.Module) -> LossFunction:
    """The model's own `loss(logits, batch)` if it has one, else binary cross-entropy with logits over all labels."""
    own = getattr(model, "loss", None)
    if callable(own):
        return own  # type: ignore[no-any-return]
    return lambda logits, batch: nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"])


def predictions_of(model: nn.Module, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """The model's own `decide(logits)` if it has one (e.g. argmax for single-label tasks), else probability >= 0.5."""
    own = getattr(model, "decide", None)
    return np.asarray(own(logits) if callable(own) else logits >= 0.0, dtype=bool)


def epoch_batches(num_rows: int, batch_size: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """One epoch's rows in random order, in batches; a last batch of one row joins the one before it."""
    order = rng.permutation(num_rows)
    starts = list(range(0, num_rows, batch_size))
    if len(starts) > 1 and num_rows - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], num_rows], strict=True):
        yield order[start:end]


def batches_of(split: Split, options: TrainingOptions, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """The rows of each step of a round."""
    if options.num_updates is None:
        for _ in range(options.num_epochs):
            yield from epoch_batches(len(split), options.batch_size, rng)
        return
    left = options.num_updates
    while left > 0:
        for rows in epoch_batches(len(split), options.batch_size, rng):
            if left == 0:
                return
            left -= 1
            yield rows


def _drawn(split: Split, options: TrainingOptions, private: PrivateSteps) -> Iterator[npt.NDArray[np.int64]]:
    steps = steps_per_round(len(split), options.batch_size, options.num_epochs, options.num_updates)
    return private.batches(len(split), options.batch_size, steps)


def make_optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters; a model's `parameter_groups(options)` may set rates per group."""
    own = getattr(model, "parameter_groups", None)
    groups: Any = own(options) if callable(own) else [{"params": [p for p in model.parameters() if p.requires_grad]}]
    if options.optimizer == "sgd":
        return steps.SGD(groups, lr=options.learning_rate, momentum=options.momentum, weight_decay=options.weight_decay)
    if options.optimizer == "adam":
        return steps.Adam(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    if options.optimizer == "adamw":
        return steps.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    raise ConfigError(f"optimizer={options.optimizer!r}: expected one of adamw, adam, sgd")


def to_device(batch: Batch, device: str) -> Batch:
    """The batch's tensors on the device."""
    return batch if device == "cpu" else {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _logits(model: nn.Module, batch: Batch, options: TrainingOptions) -> torch.Tensor:
    """[n, C] the model's logits, float32 in mixed precision, too."""
    if not options.amp:
        return model(batch)  # type: ignore[no-any-return]
    with torch.autocast(options.device.partition(":")[0], torch.bfloat16):
        output: torch.Tensor = model(batch)
    return output.float()


def train(
    model: nn.Module,
    split: Split,
    options: TrainingOptions,
    rule: LocalRule,
    rng: np.random.Generator,
    on_step: Callable[[int, float], None] | None = None,
    private: PrivateSteps | None = None,
) -> TrainingResult:
    """Train the model in place on a split for one round.

    Args:
        model: on `options.device`; only parameters with requires_grad are trained.
        split: at least one row.
        options: see `TrainingOptions`.
        rule: already started.
        rng: orders the rows. Dropout draws from torch's global generator; see `fedmap.randomness.torch_seed`.
        on_step: called after each step with (steps so far, this step's loss).
        private: draws the rows and makes each step's gradient instead; `options.clip_norm` is not used then, since each row's
            gradient has been clipped.

    Raises:
        DataError: the split is empty.
        ConfigError: the rule refuses the options.
    """
    if len(split) == 0:
        raise DataError("the training split has no rows; give the client rows or leave it out of the federation")
    rule.check(options)
    loss_function = loss_of(model)
    optimizer = make_optimizer(model, options)
    parameters = [p for p in model.parameters() if p.requires_grad]
    limit = options.clip_norm if options.clip_norm > 0 and private is None else math.inf
    model.train()
    losses, norms = 0.0, 0.0
    count = 0

    def loss_of_rows(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        batch = to_device(split.batch(rows), options.device)
        return loss_function(_logits(model, batch, options), batch)

    for rows in batches_of(split, options, rng) if private is None else _drawn(split, options, private):
        optimizer.zero_grad()
        if private is None:
            loss = loss_of_rows(rows)
            penalty = rule.penalty(model)
            total: torch.Tensor = loss if penalty is None else loss + penalty
            steps.backward(total)
            value = loss.item()
        else:
            value = private.gradient(parameters, rows, expected_rows(len(split), options.batch_size), loss_of_rows)
            if (penalty := rule.penalty(model)) is not None:  # of the model, not of the rows
                penalty.backward()  # type: ignore[no-untyped-call]
        rule.correct_gradients(model)
        norms += steps.clip_gradients(parameters, limit)
        optimizer.step()
        count += 1
        losses += value
        if on_step is not None:
            on_step(count, value)
    return TrainingResult(num_steps=count, loss=losses / count, gradient_norm=norms / count)


def progress_of(model: nn.Module, split: Split, options: TrainingOptions, result: TrainingResult, *, private: bool = False) -> Progress:
    """What a rule's `finish` may ask for; the passes over the data happen only when it does, and are refused where rows are private."""

    def passes() -> Iterator[tuple[torch.Tensor, float]]:
        if private:
            raise ConfigError(ASKS_FOR_ROWS)
        loss_function = loss_of(model)
        for start in range(0, len(split), options.batch_size):
            rows = np.arange(start, min(start + options.batch_size, len(split)))
            batch = to_device(split.batch(rows), options.device)
            yield loss_function(_logits(model, batch, options), batch), len(rows) / len(split)

    def mean_gradient() -> dict[str, torch.Tensor]:
        model.zero_grad(set_to_none=True)
        model.eval()
        for loss, share in passes():
            (loss * share).backward()  # type: ignore[no-untyped-call]
        gradient = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
        model.zero_grad(set_to_none=True)
        return gradient

    def mean_loss() -> float:
        model.eval()
        with torch.inference_mode():
            return sum(float(loss) * share for loss, share in passes())

    return Progress(
        num_steps=result.num_steps,
        learning_rate=options.learning_rate,
        num_examples=len(split),
        mean_gradient=mean_gradient,
        mean_loss=mean_loss,
    )


def evaluate(model: nn.Module, split: Split, options: TrainingOptions) -> Evaluation:
    """The model on a split, in evaluation mode and without gradients; an empty split gives empty counts and loss 0."""
    num_labels = split.labels.shape[1]
    if len(split) == 0:
        nothing = np.zeros((0, num_labels), dtype=np.float32)
        return Evaluation(MultilabelCounts.empty(num_labels), 0.0, nothing, nothing.astype(np.uint8))
    loss_function = loss_of(model)
    model.eval()
    logits: list[npt.NDArray[np.float32]] = []
    loss = 0.0
    at_once = options.evaluation_batch_size or options.batch_size
    with torch.inference_mode():
        for start in range(0, len(split), at_once):
            rows = np.arange(start, min(start + at_once, len(split)))
            batch = to_device(split.batch(rows), options.device)
            output = _logits(model, batch, options)
            loss += float(loss_function(output, batch)) * len(rows) / len(split)
            logits.append(output.float().cpu().numpy())
    stacked = np.concatenate(logits)
    return Evaluation(MultilabelCounts.of(predictions_of(model, stacked), split.labels), loss, stacked, split.labels)
