"""The averaging kernel, compiled for this processor by Numba; see `fedmap.averaging`, which alone calls it.

The sums of a block stay in the cache, and four clients' numbers are read side by side: long streams that the processor fetches
ahead. Numba adds and multiplies as IEEE 754 says and contracts nothing, so that the bits are NumPy's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

_FLOATS: Any = types.CPointer(types.float32)  # type: ignore[no-untyped-call]
_BLOCK = 1 << 15  # float64 sums: 256 KiB, within a second-level cache
_WIDE = 4  # clients in one loop; the loops below are written out for this number


@intrinsic
def _at(_context: Any, _address: Any) -> Any:
    """A pointer to float32 numbers from its address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.inttoptr(arguments[0], cgutils.voidptr_t), context.get_value_type(signature.return_type))

    return _FLOATS(types.uint64), generate


_floats_at: Any = _at  # Numba hands the context in by itself


@njit(inline="always")
def _part(addresses: Any, client: int, tensor: int, begin: int, count: int) -> Any:
    """[count] numbers of a client's tensor from `begin` on; a slice, because indices that might be negative are not vectorised."""
    return carray(_floats_at(addresses[client, tensor]), (begin + count,))[begin:]


def _fold(addresses: Any, offsets: Any, coefficients: Any, out: Any, low: int, high: int) -> None:
    """Sum [low, high) of the flat result.

    Args:
        addresses: [K, T] uint64, where the float32 numbers of tensor t of client k begin.
        offsets: [T + 1] int64, where tensor t begins in the flat result.
        coefficients: [K] float64.
        out: [offsets[T]] float32 or float64, the flat result.
        low: where to begin.
        high: where to end.
    """
    clients = addresses.shape[0]
    total = np.empty(min(_BLOCK, high - low), dtype=np.float64)
    tensor: Any = np.searchsorted(offsets, low, side="right") - 1
    at = low
    while at < high:
        while offsets[tensor + 1] <= at:
            tensor += 1
        begin = at - offsets[tensor]
        count = min(high, offsets[tensor + 1], at + _BLOCK) - at
        alone = clients % _WIDE
        for k in range(alone):
            s, a = _part(addresses, k, tensor, begin, count), coefficients[k]
            if k == 0:
                for i in range(count):
                    total[i] = a * s[i]
            else:
                for i in range(count):
                    total[i] += a * s[i]
        for k in range(alone, clients, _WIDE):
            s, a = _part(addresses, k, tensor, begin, count), coefficients[k]
            t, b = _part(addresses, k + 1, tensor, begin, count), coefficients[k + 1]
            u, c = _part(addresses, k + 2, tensor, begin, count), coefficients[k + 2]
            v, d = _part(addresses, k + 3, tensor, begin, count), coefficients[k + 3]
            if k == 0:
                for i in range(count):
                    total[i] = ((a * s[i] + b * t[i]) + c * u[i]) + d * v[i]
            else:
                for i in range(count):
                    total[i] = (((total[i] + a * s[i]) + b * t[i]) + c * u[i]) + d * v[i]
        target = out[at : at + count]
        for i in range(count):
            target[i] = total[i]
        at += count


_SIGNATURES = [
    types.void(
        types.Array(types.uint64, 2, "C"),
        types.Array(types.int64, 1, "C"),
        types.Array(types.float64, 1, "C"),
        types.Array(result, 1, "C"),
        types.int64,
        types.int64,
    )
    for result in (types.float32, types.float64)
]


def _compiled() -> Callable[..., None]:
    try:
        made = njit(_SIGNATURES, nogil=True, cache=True)(_fold)
    except RuntimeError:  # nowhere to keep what was compiled: every process compiles it anew, which takes a second
        made = njit(_SIGNATURES, nogil=True)(_fold)
    function: Callable[..., None] = made
    return function


fold = _compiled()
