"""A model's shared tensors as named arrays, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from fedmap.errors import ModelError, UpdateError
from fedmap.memory import give_back
from fedmap.weights import Array, Layout, ModalityPart, Weights

NORMALISATION = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
_SOME = 1 << 25  # bytes
_SAME = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64), torch.int64: np.dtype(np.int64)}  # written without torch


@dataclass
class _Table:
    """What has been found of a model, and what tells whether it still holds; walking through the modules takes longer than a small step.

    Attributes:
        shared: the tensors that travel, by name.
        parts: (a module's own table, name there, what stands there) of every parameter, buffer and submodule.
        sizes: (a module's own table, its length) of every table.
        trained: (parameter, whether it is trained) of every parameter.
        layout: see `layout_of`, once it has been asked for.
    """

    shared: dict[str, torch.Tensor]
    parts: list[tuple[Mapping[str, object], str, object]]
    sizes: list[tuple[Mapping[str, object], int]]
    trained: list[tuple[torch.Tensor, bool]]
    layout: Layout | None = None

    @staticmethod
    def of(model: nn.Module) -> _Table:
        own = [table for module in model.modules() for table in (module._parameters, module._buffers, module._modules)]
        return _Table(
            shared=dict(_walk(model)),
            parts=[(table, name, value) for table in own for name, value in table.items()],
            sizes=[(table, len(table)) for table in own],
            trained=[(parameter, parameter.requires_grad) for parameter in model.parameters()],
        )

    def holds(self) -> bool:
        return (
            all(parameter.requires_grad is trained for parameter, trained in self.trained)
            and all(len(table) == size for table, size in self.sizes)
            and all(table.get(name) is value for table, name, value in self.parts)
        )


_TABLES: WeakKeyDictionary[nn.Module, _Table] = WeakKeyDictionary()


def _table_of(model: nn.Module) -> _Table:
    table = _TABLES.get(model)
    if table is None or not table.holds():
        table = _TABLES[model] = _Table.of(model)
    return table


def shared_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that travel: trainable parameters, and the buffers of modules that are not wholly frozen.

    A frozen tower never changes, so neither its parameters nor its BatchNorm statistics are sent. A module without any
    parameters of its own follows its nearest ancestor that has some.
    """
    yield from _table_of(model).shared.items()


def _walk(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
    persistent = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in persistent and _is_trained(model, name):
            yield name, buffer


def _is_trained(model: nn.Module, buffer_name: str) -> bool:
    path = buffer_name.rpartition(".")[0]
    while True:
        parameters = list(model.get_submodule(path).parameters())
        if parameters:
            return any(parameter.requires_grad for parameter in parameters)
        if not path:
            return True
        path = path.rpartition(".")[0]


def get_weights(model: nn.Module) -> dict[str, Array]:
    """Copies of the model's shared tensors as NumPy arrays, by name."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in shared_tensors(model)}


def weights_in(model: nn.Module) -> dict[str, Array]:
    """The model's shared tensors by name, parameters as they lie in the model's own memory and buffers as copies.

    So a server has its global model once and not twice. It holds as long as nothing is written into the parameters: `put_weights`
    gives the model other memory instead, and leaves whoever still holds these arrays what they have.
    """
    parameters = {name for name, _ in model.named_parameters()}
    return {
        name: tensor.detach().numpy()
        if name in parameters and tensor.device.type == "cpu" and tensor.is_contiguous()
        else tensor.detach().cpu().numpy().copy()
        for name, tensor in shared_tensors(model)
    }


def put_weights(model: nn.Module, weights: Weights) -> dict[str, Array]:
    """Give the model these weights in memory of its own, where nothing trains on it; they are then to be read as `weights_in` has them.

    One tensor after the other takes the place of the old one, so that it takes no more than the arrays and the model.

    Raises:
        UpdateError: see `set_weights`.
    """
    own = _fitting(model, weights, partial=False)
    freed = 0
    with torch.no_grad():
        for name, array in weights.items():
            tensor, size, stride = own[name], own[name].size(), own[name].stride()
            tensor.data = tensor.new_empty(0)  # the old numbers go, unless somebody holds them, before the new ones come
            fresh = torch.empty_strided(
                size, stride, dtype=tensor.dtype, device=tensor.device
            )  # aligned as torch does it, which may decide bits
            fresh.copy_(torch.from_numpy(array if array.flags.writeable else np.array(array)))
            tensor.data = fresh
            if (freed := freed + array.nbytes) > _SOME:  # the allocator does not reuse all of the old blocks
                give_back(freed)
                freed = 0
    there = weights_in(model)
    return {name: there[name] if there[name].dtype == array.dtype else np.array(array) for name, array in weights.items()}


def set_weights(model: nn.Module, weights: Weights, *, partial: bool = False) -> None:
    """Write named arrays into the model's shared tensors, in place.

    Args:
        model: the model to write to.
        weights: arrays by name, with the model's own shapes.
        partial: whether some of the model's shared tensors may be left as they are.

    Raises:
        UpdateError: a name is unknown or missing, or a shape differs; the first offenders are named.
    """
    own = _fitting(model, weights, partial)
    with torch.no_grad():
        for name, array in weights.items():
            tensor = own[name]
            if tensor.device.type == "cpu" and _SAME.get(tensor.dtype) == array.dtype:
                np.copyto(
                    tensor.detach().numpy(), array
                )  # from arrays that nobody may write to, too, which torch does not take as they are
            else:
                tensor.copy_(torch.from_numpy(np.array(array, copy=True)))


def _fitting(model: nn.Module, weights: Weights, partial: bool) -> dict[str, torch.Tensor]:
    own = dict(shared_tensors(model))
    unknown = [name for name in weights if name not in own]
    missing = [] if partial else [name for name in own if name not in weights]
    wrong = [
        f"{name} is {tuple(np.shape(array))}, expected {tuple(own[name].shape)}"
        for name, array in weights.items()
        if name in own and tuple(np.shape(array)) != tuple(own[name].shape)
    ]
    if unknown or missing or wrong:
        problems = []
        if unknown:
            problems.append(f"{len(unknown)} unknown, first {unknown[:3]}")
        if missing:
            problems.append(f"{len(missing)} missing, first {missing[:3]}")
        problems += wrong[:3]
        raise UpdateError(
            "the weights do not fit this model (" + "; ".join(problems) + "); use the same model configuration on server and clients"
        )
    return own


def layout_of(model: nn.Module) -> Layout:
    """Which of the model's shared tensors are buffers, which belong to normalisation layers (by module type), and which to a modality."""
    table = _table_of(model)
    if table.layout is None:
        table.layout = _layout(model, table.shared)
    return table.layout


def _layout(model: nn.Module, shared: Mapping[str, torch.Tensor]) -> Layout:
    parameters = {name for name, _ in model.named_parameters()}
    normalisation = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, NORMALISATION)
        for name in (*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False)))
    }
    return Layout(
        buffers=frozenset(name for name in shared if name not in parameters),
        normalisation=frozenset(shared) & frozenset(normalisation),
        modality_parts=_modality_parts(model, shared),
    )


def _modality_parts(model: nn.Module, shared: Mapping[str, torch.Tensor]) -> dict[str, tuple[ModalityPart, ...]]:
    """What the model's own `modality_of_parameters()` says of the tensors that travel; nothing if it has none.

    Raises:
        ModelError: a part lies outside its tensor, or parts overlap.
    """
    own = getattr(model, "modality_of_parameters", None)
    found: dict[str, tuple[ModalityPart, ...]] = {}
    for name, parts in (own() if callable(own) else {}).items():
        if name not in shared:
            continue
        found[name] = tuple(parts)
        width = shared[name].shape[-1] if shared[name].dim() else 1
        end = 0
        for part in found[name]:
            stop = width if part.stop is None else part.stop
            if not end <= part.start < stop <= width:
                raise ModelError(
                    f"modality_of_parameters(): {name} has {width} columns, and the part [{part.start}, {stop}) of {part.modality!r} "
                    "lies outside them or overlaps the part before it"
                )
            end = stop
    return found
