"""The one kernel under every average of models: sum_k a_k w_k over flat buffers, block by block.

The tensors of one dtype lie end to end in one flat result; a table of offsets says which part is whose. A block of it is
summed over all clients in float64, in the order given, and rounded once, before the next one is begun: every client's number is read
once and nothing is written but the result, which is also all the memory that is taken.

There are two implementations, with the same operations in the same order, so with the same bits: `fedmap.compiled`, compiled for this
processor, and NumPy for small work and other dtypes. Threads share the blocks out between them; no element's sum depends on how.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

_BLOCK = 1 << 17  # elements NumPy works on at a time; fewer spend their time between its calls, more fall out of the cache
_SHARE = 1 << 20  # elements a thread takes at a time where the kernel is compiled
_WORTH = 1 << 25  # numbers to read from which on a caller waits for the compiled kernel, half a second, because it pays within some rounds
_AHEAD = 1 << 22  # the same where nobody waits for it
_COMPILED = "fedmap.compiled"

_threads = 1


def set_threads(count: int) -> None:
    """How many threads an average uses in this process, >= 1; the result does not depend on it."""
    if count < 1:
        raise ValueError(f"threads={count}: expected at least 1")
    global _threads
    _threads = count


def threads() -> int:
    """How many threads an average uses in this process."""
    return _threads


def fold(
    models: Sequence[Sequence[Array]],
    coefficients: Sequence[float],
    *,
    dtype: npt.DTypeLike | None = None,
    compiled: bool | None = None,
) -> list[Array]:
    """sum_k a_k w_k for each of T tensors, accumulated in float64 in the order given and rounded once.

    Args:
        models: K >= 1 models of T >= 1 tensors each. Tensor t has one shape in all models; the first model's tensors share a float dtype.
        coefficients: K numbers.
        dtype: of the result; None is the first model's.
        compiled: whether to use the compiled kernel; None leaves it to the amount of work, and to whether it is installed.

    Returns:
        T tensors, views of one flat buffer.

    Raises:
        ValueError: a tensor's shape differs between models.
    """
    first = models[0]
    for k, model in enumerate(models):
        for own, array in zip(first, model, strict=True):
            if own.shape != array.shape:
                raise ValueError(f"model {k} has a tensor of shape {array.shape} where the first one has {own.shape}")
    flats = [[_flat(array) for array in model] for model in models]
    offsets = np.cumsum([0, *(array.size for array in first)], dtype=np.int64)
    out = np.empty(int(offsets[-1]), dtype=first[0].dtype if dtype is None else dtype)
    if compiled is None:
        fits = out.dtype in (np.float32, np.float64) and all(array.dtype == np.float32 for model in flats for array in model)
        compiled = fits and _pays(len(models) * out.size)
    if compiled:
        kernel = importlib.import_module(_COMPILED)
        addresses = np.array([[array.__array_interface__["data"][0] for array in model] for model in flats], dtype=np.uint64)
        scales = np.array(coefficients, dtype=np.float64)

        def work(low: int, high: int) -> None:
            kernel.fold(addresses, offsets, scales, out, low, high)

        _share_out(out.size, _SHARE, lambda: work)
    else:
        _share_out(out.size, _BLOCK, lambda: _numpy_worker(flats, offsets, coefficients, out))
    return [
        out[start:stop].reshape(array.shape) for start, stop, array in zip(offsets[:-1].tolist(), offsets[1:].tolist(), first, strict=True)
    ]


def prepare(numbers: int) -> threading.Thread | None:
    """Load the compiled kernel in the background if averages of so many numbers, clients times parameters, are to come.

    Returns:
        The thread that loads it; None where there is nothing to do.
    """
    if _COMPILED in sys.modules or numbers < _AHEAD or not _installed():
        return None
    thread = threading.Thread(target=importlib.import_module, args=(_COMPILED,), name="averaging-kernel", daemon=True)
    thread.start()
    return thread


def squares(left: Array, right: Array | None = None) -> float:
    """sum_i (left_i - right_i)^2 in float64; the sum of squares of `left` alone without `right`.

    Block by block and without BLAS, whose sums depend on its threads.
    """
    flat, other = _flat(left), None if right is None else _flat(right)
    if flat.size <= _BLOCK and other is None:  # the same sum, for small arrays in a third of the time
        numbers = flat.astype(np.float64)
        return float(np.add.reduce(np.multiply(numbers, numbers, out=numbers)))
    scratch = np.empty(min(_BLOCK, flat.size))
    total = 0.0
    for start in range(0, flat.size, _BLOCK):
        block = scratch[: min(_BLOCK, flat.size - start)]
        np.copyto(block, flat[start : start + len(block)])
        if other is not None:
            np.subtract(block, other[start : start + len(block)], out=block)
        total += float(np.add.reduce(np.multiply(block, block, out=block)))
    return total


def all_finite(array: Array) -> bool:
    """Whether no number of a float array is NaN or infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        # NaN and infinity stay in a sum; a sum that overflows without them is rare and looked at again
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())


def _flat(array: Array) -> Array:
    flags = array.flags
    if flags.c_contiguous and flags.aligned:
        return array if array.ndim == 1 else array.reshape(-1)
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat if flat.flags.aligned else flat.copy()


def _pays(numbers: int) -> bool:
    """Whether the compiled kernel is there already, or the work is worth waiting for it."""
    return _COMPILED in sys.modules or (numbers >= _WORTH and _installed())


def _installed() -> bool:
    return importlib.util.find_spec("numba") is not None


def _share_out(size: int, step: int, worker: Callable[[], Callable[[int, int], None]]) -> None:
    """Call `worker()(low, high)` for every step of [0, size), from as many threads as are set; each thread makes its own worker."""
    starts = iter(range(0, size, step))
    lock = threading.Lock()

    def run(_: int) -> None:
        work = worker()
        while True:
            with lock:
                low = next(starts, None)
            if low is None:
                return
            work(low, min(low + step, size))

    count = min(_threads, -(-size // step))
    if count <= 1:
        run(0)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))


def _numpy_worker(
    flats: Sequence[Sequence[Array]], offsets: npt.NDArray[np.int64], coefficients: Sequence[float], out: Array
) -> Callable[[int, int], None]:
    """A function that sums [low, high) of the flat buffer, at most a block, in scratch memory of its own."""
    scratch, sums = np.empty(min(_BLOCK, out.size)), np.empty(min(_BLOCK, out.size))

    def work(low: int, high: int) -> None:
        pieces = list(_pieces(offsets, low, high))
        total, term = sums[: high - low], scratch[: high - low]
        for k, (model, a) in enumerate(zip(flats, coefficients, strict=True)):
            target = term if k else total
            _gather(model, pieces, target)
            np.multiply(target, a, out=target)
            if k:
                np.add(total, term, out=total)
        np.copyto(out[low:high], total, casting="same_kind")

    return work


def _pieces(offsets: npt.NDArray[np.int64], low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """(tensor, first, last + 1) of every tensor's part of the flat range [low, high)."""
    tensor = int(np.searchsorted(offsets, low, side="right")) - 1
    while low < high:
        start, stop = int(offsets[tensor]), min(int(offsets[tensor + 1]), high)
        if stop > low:
            yield tensor, low - start, stop - start
            low = stop
        tensor += 1


def _gather(model: Sequence[Array], pieces: Sequence[tuple[int, int, int]], target: npt.NDArray[np.float64]) -> None:
    """One model's part of a block as float64; many small tensors take one call."""
    parts: list[Any] = [model[tensor][first:last] for tensor, first, last in pieces]
    if len(parts) == 1:
        np.copyto(target, parts[0])
    else:
        np.concatenate(parts, out=target)
