"""Several clients' training at once: their models lie stacked, parameter by parameter, and each step is one pass for all of them.

A small model's passes are mostly the calls and not the arithmetic, so that sixteen clients together take little longer than one. Each
client has the rows, the order and the steps of `fedmap.local.training.train`; what differs is how products are grouped, and with it the last
bits. Everything that works number by number (the optimiser, a rule's correction of the gradients) is the same code on larger tensors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from fedmap.data.base import Batch, Split
from fedmap.errors import ConfigError, DataError
from fedmap.local.rules import Memory, make_rule
from fedmap.local.rules.gradients import trainable
from fedmap.local.tensors import layout_of, set_weights
from fedmap.local.training import TrainingOptions, TrainingResult, batches_of, loss_of, make_optimizer, to_device
from fedmap.records import Broadcast
from fedmap.weights import Weights

RULES = frozenset({"plain", "proximal"})  # start from the broadcast alone, and touch gradients number by number
_Signature = tuple[tuple[str, torch.Size, torch.dtype], ...]


@dataclass(frozen=True)
class Trained:
    """One client's share of what was trained together.

    Attributes:
        broadcast: what it began with.
        weights: after the last step, by name.
        result: what training measured.
        update_norm: Euclidean norm of the change.
        seconds: its share of the time.
    """

    broadcast: Broadcast
    weights: Weights
    result: TrainingResult
    update_norm: float
    seconds: float


def check_together(model: nn.Module, options: TrainingOptions, rule: str) -> None:
    """Refuse what cannot be stacked.

    Raises:
        ConfigError: says what it is.
    """
    problem = ""
    if rule not in RULES:
        problem = f"this strategy's clients train by the rule {rule!r}, and only {' and '.join(sorted(RULES))} can be stacked"
    elif options.amp:
        problem = "training.amp=true cannot be stacked"
    elif buffers := sorted(layout_of(model).buffers):
        problem = f"the model keeps statistics of the rows that it has seen ({buffers[0]}); norm layers without them can be stacked"
    elif any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules()):
        problem = "the model has dropout, whose random numbers would be others than a client's own"
    if problem:
        raise ConfigError(f"several clients at once: {problem}; set runtime.clients_at_once=1")


def train_together(
    model: nn.Module, broadcast: Broadcast, splits: Sequence[Split], options: TrainingOptions, rngs: Sequence[np.random.Generator]
) -> list[Trained]:
    """Train one round of several clients from one broadcast.

    Args:
        model: on `options.device`; it is left with the broadcast's weights.
        broadcast: with one of `RULES`.
        splits: the clients' training rows; each at least one.
        options: see `TrainingOptions`.
        rngs: one for each client, which orders its rows.

    Raises:
        ConfigError: see `check_together`.
        DataError: a split is empty.
        RuntimeError: torch cannot run this model stacked: it draws random numbers (dropout), or looks at values to decide what to do.
    """
    check_together(model, options, broadcast.rule)
    if not all(len(split) for split in splits):
        raise DataError("a training split has no rows")
    began, count = time.perf_counter(), len(splits)
    set_weights(model, broadcast.weights)
    plans = [list(batches_of(split, options, rng)) for split, rng in zip(splits, rngs, strict=True)]
    last = np.array([len(plan) for plan in plans])
    losses, norms = torch.zeros(2, count, dtype=torch.float64)
    with _stacked(model, count) as parameters:
        ends = {name: torch.empty_like(parameter, device="cpu") for name, parameter in parameters.items()}
        rule = make_rule(broadcast.rule)
        rule.start(model, broadcast, Memory())
        rule.check(options)
        optimizer = make_optimizer(model, options)
        losses_of = _losses_of(model)
        for step in range(last.max()):
            optimizer.zero_grad()
            batches = {k: to_device(splits[k].batch(plans[k][step]), options.device) for k in range(count) if step < last[k]}
            found = torch.zeros(count, dtype=torch.float64)
            total = torch.zeros((), device=options.device)
            for members, batch in _grouped(batches):
                chosen = parameters if len(members) == count else {name: p[members] for name, p in parameters.items()}
                own = losses_of(chosen, batch)
                found[members] = own.detach().double().cpu()
                total = total + own.sum()
            penalty = rule.penalty(model)
            (total if penalty is None else total + penalty).backward()  # type: ignore[no-untyped-call]
            rule.correct_gradients(model)
            lengths = _clip(list(parameters.values()), options.clip_norm or float("inf"))
            optimizer.step()
            losses += found
            norms += lengths * torch.from_numpy(last > step)
            if len(done := np.flatnonzero(last == step + 1)):  # the others go on, and what becomes of these places is nobody's business
                for name, parameter in parameters.items():
                    ends[name][done] = parameter.detach()[done].cpu()
    arrays = {name: end.numpy() for name, end in ends.items()}
    squares = sum(np.square(a - broadcast.weights[n], dtype=np.float64).reshape(count, -1).sum(axis=1) for n, a in arrays.items())
    measured = (losses.numpy() / last, norms.numpy() / last, np.sqrt(squares), last)
    share = (time.perf_counter() - began) / count
    return [
        Trained(broadcast, {name: a[client] for name, a in arrays.items()}, TrainingResult(steps, loss, norm), update_norm, share)
        for client, (loss, norm, update_norm, steps) in enumerate(zip(*(values.tolist() for values in measured), strict=True))
    ]


@contextmanager
def _stacked(model: nn.Module, count: int) -> Iterator[dict[str, nn.Parameter]]:
    """The model with `count` copies of each trainable parameter, [count, ...]; the one that was there comes back at the end."""
    parameters = trainable(model)
    alone = {name: parameter.data for name, parameter in parameters.items()}
    model.train()
    try:
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.data = alone[name].expand(count, *alone[name].shape).clone()
        yield parameters
    finally:
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.data = alone[name]


def _losses_of(model: nn.Module) -> Callable[[Mapping[str, torch.Tensor], Batch], torch.Tensor]:
    """From stacked parameters and a stacked batch to the losses, [n]."""
    loss_function = loss_of(model)

    def loss(parameters: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        return loss_function(functional_call(model, dict(parameters), (batch,)), batch)

    stacked: Callable[..., torch.Tensor] = vmap(loss, randomness="error")
    if not any(isinstance(module, nn.MaxPool2d) for module in model.modules()):
        return stacked

    def losses(parameters: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        with _ChannelsTogether():
            return stacked(parameters, batch)

    return losses


def _grouped(batches_by_client: Mapping[int, Batch]) -> Iterator[tuple[list[int], Batch]]:
    """Clients whose batches have the same shapes, with these batches stacked."""
    groups: dict[_Signature, tuple[list[int], list[Batch]]] = {}
    for client, batch in batches_by_client.items():
        signature = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.items())
        members, batches = groups.setdefault(signature, ([], []))
        members.append(client)
        batches.append(batch)
    for members, batches in groups.values():
        yield members, {name: _stack([batch[name] for batch in batches]) for name in batches[0]}


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """[n, ...]; pictures [n, b, C, H, W] so that client and channel lie innermost, which is how stacked convolutions are fast."""
    if tensors[0].dim() != 4:
        return torch.stack(list(tensors))
    return torch.stack([tensor.permute(0, 2, 3, 1) for tensor in tensors], dim=3).permute(3, 0, 4, 1, 2)


@torch.no_grad()
def _clip(parameters: Sequence[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale each client's gradients down to the Euclidean norm `limit`, in place; returns their norms before that, [n] float64."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]), dim=0)
    if limit < float("inf"):
        factors = (limit / (norms + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_ has it
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))
    found: torch.Tensor = norms.double().cpu()
    return found


class _ChannelsTogether(TorchFunctionMode):
    """Stacked pooling as if clients were channels, as torch has stacked convolutions; torch's own puts them into the batch, and copies."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Part of torch's interface."""
        named = dict(kwargs or {})
        if func is nn.functional.max_pool2d and not named.get("return_indices") and len(args) == 2 and args[0].dim() == 4:
            return _MaxPool.apply(*args, *(named.get(key, usual) for key, usual in _POOLING.items()))  # type: ignore[no-untyped-call]
        return func(*args, **named)


_POOLING: Mapping[str, Any] = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, *args: Any) -> torch.Tensor:
        """Of one client; only its stacked form is ever run."""
        pooled: torch.Tensor = nn.functional.max_pool2d(x, *args)
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Part of torch's interface."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: torch.Tensor, *args: Any) -> tuple[torch.Tensor, int]:
        """[b, n, C, H', W'], of inputs with the clients at `in_dims[0]`."""
        together = x.movedim(in_dims[0] or 0, 1).flatten(1, 2)
        return nn.functional.max_pool2d(together, *args).unflatten(1, (info.batch_size, -1)), 1
