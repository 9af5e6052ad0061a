"""Arithmetic on named arrays: the form in which models travel and are aggregated.

A model's shared state is a mapping from tensor name to NumPy array. `Layout` tells trainable parameters from buffers
(BatchNorm statistics, integer counters) and which of both belong to normalisation layers, because algorithms treat
them differently and names do not tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmap import averaging

Array = npt.NDArray[np.generic]
Weights = Mapping[str, Array]


@dataclass(frozen=True)
class ModalityPart:
    """A part of an array that only rows with one modality (or only rows without it) reach in training.

    Attributes:
        modality: its name.
        start: first column of the array's last axis.
        stop: the column after the last one; None is the end.
        without: whether it is the rows without the modality that reach it, e.g. a learnt stand-in.
    """

    modality: str
    start: int = 0
    stop: int | None = None
    without: bool = False


@dataclass(frozen=True)
class Layout:
    """Which named arrays of a model are buffers and which belong to normalisation layers.

    Attributes:
        buffers: names of non-trainable arrays; every other name is a trainable parameter.
        normalisation: names of parameters and buffers owned by normalisation layers, found by module type.
        modality_parts: by name, the parts that belong to one modality; the model says so (`modality_of_parameters`), and whatever
            is not named is trained by every row.
    """

    buffers: frozenset[str] = frozenset()
    normalisation: frozenset[str] = frozenset()
    modality_parts: Mapping[str, tuple[ModalityPart, ...]] = field(default_factory=dict)

    @staticmethod
    def of(weights: Weights) -> Layout:
        """A layout for bare arrays: integer and boolean arrays are buffers, there is no normalisation."""
        return Layout(buffers=frozenset(name for name, array in weights.items() if array.dtype.kind not in "fc"))

    def parameters(self, weights: Weights) -> dict[str, Array]:
        """The trainable part of `weights`."""
        return {name: array for name, array in weights.items() if name not in self.buffers}


def is_float(array: Array) -> bool:
    """Whether the array holds floating-point numbers."""
    return array.dtype.kind == "f"


def weighted_sum(models: Sequence[Weights], coefficients: Sequence[float], dtype: npt.DTypeLike | None = None) -> dict[str, Array]:
    """sum_k a_k w_k, accumulated in float64 in the order given and rounded once to each array's dtype, or to `dtype` if float arrays get one.

    Float arrays are summed with the coefficients, see `fedmap.averaging`; integer and boolean arrays keep their dtype and take the
    maximum over the models whose coefficient is not zero. The float arrays of the result are views of one buffer for each dtype.

    Args:
        models: K >= 1 models with the same names, shapes and dtypes.
        coefficients: K finite numbers; they need not sum to one.
        dtype: of the float arrays of the result; None is their own.

    Raises:
        ValueError: no models, a different number of models and coefficients, or arrays of different shapes.
    """
    if not models or len(models) != len(coefficients):
        raise ValueError(
            f"expected as many coefficients as models and at least one; got {len(models)} models and {len(coefficients)} coefficients"
        )
    groups: dict[np.dtype[Any], list[str]] = {}
    summed: dict[str, Array] = {}
    for name, array in models[0].items():
        if is_float(array):
            groups.setdefault(array.dtype, []).append(name)
        else:
            summed[name] = _largest([model[name] for model in models], coefficients)
    for names in groups.values():
        columns = [[model[name] for name in names] for model in models]
        summed |= zip(names, averaging.fold(columns, coefficients, dtype=dtype), strict=True)
    return {name: summed[name] for name in models[0]}


def _largest(arrays: Sequence[Array], coefficients: Sequence[float]) -> Array:
    counted = [array for array, a in zip(arrays, coefficients, strict=True) if a != 0] or list(arrays)
    # NumPy turns the maximum of 0-d arrays into a scalar
    largest: Array = np.asarray(np.maximum.reduce([np.asarray(array) for array in counted]), dtype=arrays[0].dtype)
    return largest


def weighted_mean(models: Sequence[Weights], weights: Sequence[float]) -> dict[str, Array]:
    """sum_k (a_k / sum_j a_j) w_k; see `weighted_sum`.

    Raises:
        ValueError: the weights are not finite, negative, or sum to zero.
    """
    total = float(sum(weights))
    if not np.isfinite(total) or total <= 0 or min(weights) < 0:
        raise ValueError(f"aggregation weights must be finite, not negative and not all zero; got {list(weights)}")
    return weighted_sum(models, [float(a) / total for a in weights])


def add_scaled(base: Weights, delta: Weights, scale: float = 1.0) -> dict[str, Array]:
    """base + scale * delta for the float arrays that `delta` names; everything else is taken from `base`."""
    names = [name for name, array in base.items() if name in delta and is_float(array)]
    if not names:
        return dict(base)
    moved = weighted_sum([{name: base[name] for name in names}, {name: delta[name] for name in names}], [1.0, scale])
    return {name: moved.get(name, array) for name, array in base.items()}


def difference(left: Weights, right: Weights) -> dict[str, Array]:
    """left - right for every float array of `left`; integer arrays are left out."""
    return {name: np.asarray(np.subtract(array, right[name])) for name, array in left.items() if is_float(array)}


def norm(weights: Weights, names: Iterable[str] | None = None) -> float:
    """The Euclidean norm over all float arrays (or the named ones), accumulated in float64."""
    chosen = weights.keys() if names is None else names
    return math.sqrt(sum(averaging.squares(weights[name]) for name in chosen if is_float(weights[name])))


def distance(left: Weights, right: Weights, names: Iterable[str]) -> float:
    """The Euclidean norm of left - right over the float arrays among the named ones, accumulated in float64."""
    return math.sqrt(sum(averaging.squares(left[name], right[name]) for name in names if is_float(left[name])))


def all_finite(weights: Weights) -> bool:
    """Whether no float array holds NaN or infinite numbers."""
    return all(averaging.all_finite(array) for array in weights.values() if is_float(array))


def zeros_like(weights: Weights) -> dict[str, Array]:
    """Zeros with the same names, shapes and dtypes."""
    return {name: np.zeros_like(array) for name, array in weights.items()}
