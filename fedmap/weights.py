"""Arithmetic on named arrays: the form in which models travel and are aggregated.

A model's shared state is a mapping from tensor name to NumPy array. `Layout` tells trainable parameters from buffers
(BatchNorm statistics, integer counters) and which of both belong to normalisation layers, because algorithms treat
them differently and names do not tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Weights = Mapping[str, Array]

_BLOCK = 1 << 16  # elements per block: a float64 accumulator of this size stays in the processor's cache


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


def weighted_sum(models: Sequence[Weights], coefficients: Sequence[float]) -> dict[str, Array]:
    """sum_k a_k w_k, accumulated in float64 in the order given and rounded once to each array's dtype.

    Float arrays are summed with the coefficients; integer and boolean arrays keep their dtype and take the maximum over
    the models whose coefficient is not zero.

    Args:
        models: K >= 1 models with the same names, shapes and dtypes.
        coefficients: K finite numbers; they need not sum to one.

    Raises:
        ValueError: no models, or a different number of models and coefficients.
    """
    if not models or len(models) != len(coefficients):
        raise ValueError(
            f"expected as many coefficients as models and at least one; got {len(models)} models and {len(coefficients)} coefficients"
        )
    return {name: _combine([model[name] for model in models], coefficients) for name in models[0]}


def _combine(arrays: Sequence[Array], coefficients: Sequence[float]) -> Array:
    first = arrays[0]
    if not is_float(first):
        counted = [array for array, a in zip(arrays, coefficients, strict=True) if a != 0] or list(arrays)
        # NumPy turns the maximum of 0-d arrays into a scalar
        largest: Array = np.asarray(np.maximum.reduce([np.asarray(array) for array in counted]), dtype=first.dtype)
        return largest
    flats = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    result = np.empty(first.size, dtype=first.dtype)
    for start in range(0, first.size, _BLOCK):
        block = slice(start, min(start + _BLOCK, first.size))
        total = flats[0][block].astype(np.float64) * coefficients[0]
        for flat, a in zip(flats[1:], coefficients[1:], strict=True):
            total += flat[block].astype(np.float64) * a
        result[block] = total
    return result.reshape(first.shape)


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
    return {
        # asarray: NumPy turns sums of 0-d arrays into scalars
        name: np.asarray(array.astype(np.float64) + scale * delta[name].astype(np.float64), dtype=array.dtype)
        if name in delta and is_float(array)
        else array
        for name, array in base.items()
    }


def difference(left: Weights, right: Weights) -> dict[str, Array]:
    """left - right for every float array of `left`; integer arrays are left out."""
    return {name: np.asarray(np.subtract(array, right[name])) for name, array in left.items() if is_float(array)}


def norm(weights: Weights, names: Iterable[str] | None = None) -> float:
    """The Euclidean norm over all float arrays (or the named ones), accumulated in float64."""
    chosen = weights.keys() if names is None else names
    total = 0.0
    for name in chosen:
        array = weights[name]
        if is_float(array):
            flat = array.reshape(-1).astype(np.float64)
            total += float(flat @ flat)
    return float(np.sqrt(total))


def zeros_like(weights: Weights) -> dict[str, Array]:
    """Zeros with the same names, shapes and dtypes."""
    return {name: np.zeros_like(array) for name, array in weights.items()}
