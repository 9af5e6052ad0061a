"""What a training step costs besides the passes through the model: torch's optimisers without their wrappers, and clipping that
looks before it multiplies.

With a model of a few thousand parameters torch's profiling hooks and tensor grouping take as long as the passes themselves. Every
number here has the bits that torch's own `step`, `zero_grad` and `clip_grad_norm_` give.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, cast

import torch
from torch import nn

P = ParamSpec("P")
_NEAR = 1e-4  # the clipping factor is a float32: this close to 1 torch decides


def bare(kind: Callable[P, torch.optim.Optimizer]) -> Callable[P, torch.optim.Optimizer]:
    """The optimiser without the wrapper that times each step for torch's profiler, and without hooks."""
    assert isinstance(kind, type)
    step: Callable[[Any], object] = inspect.unwrap(cast(type[torch.optim.Optimizer], kind).step)

    def bare_step(self: torch.optim.Optimizer, closure: Any = None) -> None:
        assert closure is None, "the training loop computes the loss itself"
        with torch.no_grad():
            step(self)

    def bare_zero_grad(self: torch.optim.Optimizer, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    bare_step.hooked = True  # type: ignore[attr-defined]  # torch wraps a class's step at its first instance unless it is marked
    add = inspect.unwrap(cast(type[torch.optim.Optimizer], kind).add_param_group)  # its wrapper imports torch's compiler: a second
    return type(kind.__name__, (kind,), {"step": bare_step, "zero_grad": bare_zero_grad, "add_param_group": add, "__module__": __name__})


class SGD(bare(torch.optim.SGD)):  # type: ignore[misc]
    """SGD; a step without momentum and decay is one addition per parameter, which torch's own comes to as well."""

    def step(self, closure: Any = None) -> None:
        """One step."""
        if any(
            group["momentum"] or group["weight_decay"] or group["maximize"] or torch.is_tensor(group["lr"]) for group in self.param_groups
        ):
            super().step(closure)
            return
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=-group["lr"])

    step.hooked = True  # type: ignore[attr-defined]


Adam, AdamW = bare(torch.optim.Adam), bare(torch.optim.AdamW)


def backward(loss: torch.Tensor) -> None:
    """What `loss.backward()` does with a plain number of a loss, without its preparations for everything else."""
    if type(loss) is not torch.Tensor or loss.dim() or loss.dtype != torch.float32 or not loss.is_cpu or not loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
        return
    torch.autograd.Variable._execution_engine.run_backward((loss,), (_ONE,), False, False, (), allow_unreachable=True, accumulate_grad=True)


_ONE = torch.ones(())


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """Scale the gradients down to the Euclidean norm `limit` (which may be infinite), in place; returns their norm before that."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    alike = all(gradient.dtype == torch.float32 and gradient.is_cpu for gradient in gradients)
    if not gradients or not alike:
        return float(nn.utils.clip_grad_norm_(parameters, limit))
    total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    norm = float(total)
    if not math.isfinite(norm) or norm > limit * (1 - _NEAR):  # otherwise the factor is 1, and changes nothing
        nn.utils.clip_grads_with_norm_(parameters, limit, total)
    return norm
