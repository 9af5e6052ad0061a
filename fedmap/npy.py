"""Arrays as the bytes of .npy files: what NumPy writes, bit for bit, but the header is made once for each kind of array.

NumPy makes and parses the header, a Python literal, anew for every array: 15 and 25 microseconds, where the numbers of a small
layer take one. A run has a few dozen kinds of arrays and millions of arrays.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmap.weights import Array


@functools.lru_cache(maxsize=4096)
def header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers of a C-contiguous array."""
    file = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def to_bytes(array: Array) -> bytes:
    """The array as `numpy.save` writes it.

    Raises:
        ValueError: it holds Python objects, which are never written.
    """
    if array.flags.c_contiguous and array.dtype.kind in "biufc":
        return b"".join((header(array.dtype, array.shape), array.reshape(-1).view(np.uint8).data))
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


@dataclass(frozen=True, eq=False)
class Later:
    """Bytes that lie in several places and stay as they are, joined when they are wanted and kept by nobody; pickled it is the bytes.

    Attributes:
        parts: one after the other.
    """

    parts: Sequence[bytes | memoryview]

    @staticmethod
    def of(array: Array) -> Later:
        """What `to_bytes` makes of a C-contiguous array of numbers."""
        return Later((header(array.dtype, array.shape), array.reshape(-1).view(np.uint8).data))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def piece(self, start: int, stop: int) -> bytes:
        """The bytes of [start, stop) alone."""
        found, at = [], 0
        for part in self.parts:
            if at < stop and start < at + len(part):
                found.append(part[max(start - at, 0) : stop - at])
            at += len(part)
        return b"".join(found)

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        return bytes, (bytes(self),)


@functools.lru_cache(maxsize=4096)
def _whole(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> tuple[bytes, int, int]:
    """A C-contiguous array's header, how many numbers it has, and the bytes of all."""
    start, count = header(dtype, shape), math.prod(shape)
    return start, count, len(start) + count * dtype.itemsize


def view(data: bytes | memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array | None:
    """The C-contiguous array of this kind over these very bytes, read-only; None if the bytes are anything else, sound or not."""
    start, count, length = _whole(dtype, shape)
    if dtype.kind not in "biufc" or len(data) != length or data[: len(start)] != start:
        return None
    if count == 0:  # which `frombuffer` refuses
        return np.frombuffer(b"", dtype).reshape(shape)
    found: Array = np.frombuffer(data, dtype, offset=len(start)).reshape(shape)
    return found if found.flags.aligned else found.copy()
