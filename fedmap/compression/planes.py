"""Bytes of like meaning side by side, deflated where that helps: the last, lossless step of every code.

The first byte of a floating-point number holds its sign and most of its exponent, and takes few values in a trained
model, while the last ones look random. Bytes are therefore sorted by their place in the number (planes), and each plane is
entropy-coded by zlib or, where that saves nothing, left alone. Byte shuffling before deflate is the filter of HDF5 and
Blosc; what it gains on models' exponents is measured by Hershcovitch et al. (2024, arXiv 2411.05239).
"""

from __future__ import annotations

import struct
import zlib
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedmap.errors import UpdateError
from fedmap.weights import Array

Piece = bytes | memoryview
K = TypeVar("K", bound=np.generic)
_PLAIN, _DEFLATED = 0, 1
_HEAD = struct.Struct("<BI")  # how the plane is stored, and in how many bytes
_SAMPLE = 1 << 14
_WORTH = 0.97  # a plane is deflated if a sample of it gets smaller than this


class Reader:
    """Reads what a stranger has sent, front to back, and believes no size that it does not know itself."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, count: int) -> memoryview:
        """The next bytes.

        Raises:
            UpdateError: there are not as many.
        """
        if count > len(self._data) - self._at:
            raise UpdateError(f"the packed arrays end after {len(self._data)} bytes, {self._at + count - len(self._data)} too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def unpack(self, form: struct.Struct) -> tuple[int | float, ...]:
        """The next numbers in a form of `struct`."""
        return form.unpack(self.take(form.size))

    def end(self) -> None:
        """Refuse bytes that nobody has asked for.

        Raises:
            UpdateError: some are left.
        """
        if left := len(self._data) - self._at:
            raise UpdateError(f"the packed arrays have {left} bytes too many")


def write_planes(values: Array) -> list[Piece]:
    """A flat array as its planes, in pieces."""
    size = values.dtype.itemsize
    places = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False)).view(np.uint8).reshape(-1, size)
    return [piece for place in range(size) for piece in _plane(np.ascontiguousarray(places[:, place]).data)]


def _plane(data: memoryview) -> tuple[Piece, Piece]:
    middle = max(0, (len(data) - _SAMPLE) // 2)
    sample = data[middle : middle + _SAMPLE]
    if len(_deflated(sample)) < _WORTH * len(sample):
        packed = _deflated(data)
        return _HEAD.pack(_DEFLATED, len(packed)), packed
    return _HEAD.pack(_PLAIN, len(data)), data


def _deflated(data: memoryview) -> bytes:
    # runs and frequencies alone: there are no words to find in planes, and looking for them takes ten times as long
    maker = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return maker.compress(data) + maker.flush()


def read_planes(read: Reader, count: int, kind: type[K]) -> npt.NDArray[K]:
    """The inverse of `write_planes`: a flat array of `count` >= 1 numbers.

    Raises:
        UpdateError: the planes are cut short, damaged or of another size.
    """
    order = np.dtype(kind).newbyteorder("<")
    places = np.empty((count, order.itemsize), np.uint8)
    for place in range(order.itemsize):
        places[:, place] = np.frombuffer(_inflated(read, count), np.uint8)
    return places.view(order).reshape(-1).astype(kind, copy=False)


def _inflated(read: Reader, count: int) -> Piece:
    how, length = read.unpack(_HEAD)
    data = read.take(int(length))
    if how == _PLAIN:
        if length != count:
            raise UpdateError(f"a plane of the packed arrays has {length} bytes, expected {count}")
        return data
    if how != _DEFLATED:
        raise UpdateError(f"a plane of the packed arrays is stored in the unknown way {how}; use the same version on server and clients")
    maker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plane = maker.decompress(data, count + 1)  # never more memory than the server's own layout says
    except zlib.error as error:
        raise UpdateError(f"a plane of the packed arrays is damaged: {error}") from error
    if len(plane) != count or not maker.eof or maker.unused_data or maker.unconsumed_tail:
        raise UpdateError(f"a plane of the packed arrays does not unpack to {count} bytes")
    return plane
