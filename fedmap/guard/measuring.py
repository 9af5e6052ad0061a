"""One pass over an update's arrays: whether they are finite, how far they are from what was broadcast, and a digest of their bits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmap.errors import UpdateError
from fedmap.reasons import Reason
from fedmap.weights import Array, Weights, is_float

_BLOCK = 1 << 16  # elements; a block and its difference stay in the processor's cache
_MOST_COUNTED = 1 << 31  # an integer buffer counts batches, and no round has more


@dataclass(frozen=True)
class Measured:
    """What one pass found.

    Attributes:
        norm: Euclidean norm of the change of the trainable parameters, >= 0.
        buffer_norm: of the float buffers, >= 0.
        digest: of all bits, two numbers below 2^64. It tells equal arrays from others; it is no seal.
    """

    norm: float
    buffer_norm: float
    digest: tuple[int, int]

    @property
    def unchanged(self) -> bool:
        """Whether the arrays are what was broadcast, buffers and all."""
        return self.norm == 0 and self.buffer_norm == 0


def measure(who: str, arrays: Weights, received: Weights | None, buffers: Collection[str] = ()) -> Measured:
    """Look at every array once.

    Args:
        who: begins the sentence of a refusal.
        arrays: of the expected kinds.
        received: what the client started from; None: the arrays are changes themselves.
        buffers: names of the arrays that are not trained.

    Raises:
        UpdateError: a number is not finite, or an integer buffer has gone where no training takes it.
    """
    squares = {False: 0.0, True: 0.0}
    digest = hashlib.blake2b(digest_size=16)
    with np.errstate(over="ignore", invalid="ignore"):
        for name in sorted(arrays):
            array, reference = arrays[name], None if received is None else received[name]
            flat = np.ascontiguousarray(array).reshape(-1)
            for part in _folded(flat):
                digest.update(part)
            if is_float(array):
                squares[name in buffers] += _square(who, name, flat, reference)
            elif array.dtype.kind in "iu" and reference is not None:
                _check_counted(who, name, array, reference)
    bits = digest.digest()
    return Measured(
        math.sqrt(squares[False]), math.sqrt(squares[True]), (int.from_bytes(bits[:8], "little"), int.from_bytes(bits[8:], "little"))
    )


def digest_of(weights: Weights) -> tuple[int, int]:
    """The digest of arrays that need no other look."""
    return measure("the broadcast", weights, None).digest


def _folded(flat: Array) -> Iterator[bytes]:
    """A block's bits folded to 16 bytes, and the rest of the last block as it is; a hash of all would take as long as everything else."""
    octets = flat.view(np.uint8)
    whole = len(octets) // 8 * 8
    words = octets[:whole].view(np.uint64)
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK]
        yield np.add.reduce(block, dtype=np.uint64).tobytes() + np.bitwise_xor.reduce(block).tobytes()
    yield octets[whole:].tobytes()


def _square(who: str, name: str, flat: Array, reference: Array | None) -> float:
    """The squared norm of the difference."""
    own = None if reference is None else np.ascontiguousarray(reference).reshape(-1)
    kind = np.float32 if flat.dtype == np.float32 else np.float64
    total = 0.0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        change = _change(block, None if own is None else own[start : start + _BLOCK], kind)
        square = float(np.dot(change, change))
        if not math.isfinite(square):
            if not np.isfinite(block).all():
                raise UpdateError(f"{who}: {name} holds NaN or infinite numbers; lower the learning rate or check the data", Reason.FINITE)
            change = _change(block, None if own is None else own[start : start + _BLOCK], np.float64)
            square = float(np.dot(change, change))
        total += square
    return total


def _change(block: Array, own: Array | None, kind: Any) -> npt.NDArray[np.floating[Any]]:
    change: npt.NDArray[np.floating[Any]] = block.astype(kind) if own is None else np.subtract(block, own, dtype=kind)
    return change


def _check_counted(who: str, name: str, array: Array, reference: Array) -> None:
    if array.size == 0:
        return
    least, most, before = int(array.min()), int(array.max()), (int(reference.min()), int(reference.max()))
    if least < before[0] - _MOST_COUNTED or most > before[1] + _MOST_COUNTED:
        raise UpdateError(
            f"{who}: {name} counts from {least} to {most}, and the server's own from {before[0]} to {before[1]}; no training counts that far",
            Reason.NORM,
        )


def check_model(weights: Weights) -> None:
    """Refuse what an aggregator has made of accepted updates, if it is not finite.

    Raises:
        UpdateError: names the first such array.
    """
    for name, array in weights.items():
        if is_float(array) and not np.isfinite(array).all():
            raise UpdateError(
                f"the aggregated model's {name} holds NaN or infinite numbers; lower the strategy's learning rate", Reason.FINITE
            )
