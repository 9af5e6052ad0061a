"""Codes: float32 numbers to bytes and back. Each acts on a flat slice of one array; what it loses it loses there.

| code     | a number takes       | what is lost                                                       | source |
| -------- | -------------------- | ------------------------------------------------------------------ | ------ |
| lossless | about 3 bytes        | nothing                                                            | `fedmap.compression.planes` |
| fp16     | about 1.7 bytes      | a relative 2^-11, rounded to nearest                               | IEEE 754 binary16, scaled |
| int8     | about 1 byte         | up to s = max|v| / 127 of its block, by unbiased random rounding    | QSGD: Alistarh et al. (2017, arXiv 1610.02132) |
| topk     | about 3 bytes each   | all but the share `density` of largest magnitude                   | Aji and Heafield (2017, arXiv 1704.05021) |
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedmap.compression.planes import Piece, Reader, read_planes, write_planes
from fedmap.compression.settings import Compression
from fedmap.errors import UpdateError
from fedmap.reasons import Reason

Floats = npt.NDArray[np.float32]

_EXPONENT = struct.Struct("<h")
_COUNT = struct.Struct("<I")
_FULL = 15  # fp16 reaches 2^16: what is largest is brought just below 2^15
_MOST = 126  # powers of two of float32 that have an inverse
_STRIDE = 255  # of a gap's byte that says "further"


class Code(Protocol):
    """Turns finite float32 numbers [n], n >= 1, into bytes and back."""

    def write(self, values: Floats, rng: np.random.Generator) -> list[Piece]:
        """The numbers in pieces of bytes; `rng` is used for random rounding."""
        ...

    def read(self, read: Reader, count: int) -> Floats:
        """What is left of `count` numbers.

        Raises:
            UpdateError: the bytes are not what `write` makes of as many numbers.
        """
        ...


@dataclass(frozen=True)
class Lossless:
    """The numbers' own bits."""

    def write(self, values: Floats, rng: np.random.Generator) -> list[Piece]:
        """See `Code`."""
        return write_planes(values)

    def read(self, read: Reader, count: int) -> Floats:
        """See `Code`."""
        return read_planes(read, count, np.float32)


@dataclass(frozen=True)
class Half:
    """v -> fp16(v 2^e) with the power of two that brings max|v| just below 2^15, so that small changes keep their digits, too."""

    def write(self, values: Floats, rng: np.random.Generator) -> list[Piece]:
        """See `Code`."""
        _, exponent = math.frexp(float(np.abs(values).max()))
        shift = max(-_MOST, min(_MOST, _FULL - exponent))
        return [_EXPONENT.pack(shift), *write_planes((values * np.float32(2.0**shift)).astype(np.float16))]

    def read(self, read: Reader, count: int) -> Floats:
        """See `Code`."""
        (shift,) = read.unpack(_EXPONENT)
        if not -_MOST <= shift <= _MOST:
            raise UpdateError(f"a scale of the packed arrays is 2^{shift}, expected a power between {-_MOST} and {_MOST}")
        halves = read_planes(read, count, np.float16)
        if not np.isfinite(halves).all():
            raise UpdateError("the packed arrays hold NaN or infinite numbers", Reason.FINITE)
        with np.errstate(over="ignore"):
            values: Floats = halves.astype(np.float32) * np.float32(2.0 ** -int(shift))
        return values


@dataclass(frozen=True)
class Eighth:
    """q = floor(v / s + u) with s = max|v| / 127 of the block and u uniform in [0, 1); read as q s, whose mean over u is v.

    Attributes:
        block: numbers that share a scale.
    """

    block: int

    def write(self, values: Floats, rng: np.random.Generator) -> list[Piece]:
        """See `Code`."""
        blocks = -(-len(values) // self.block)
        padded = np.zeros(blocks * self.block, np.float32)
        padded[: len(values)] = values
        rows = padded.reshape(blocks, self.block)
        scales = np.maximum(rows.max(axis=1), -rows.min(axis=1)) / np.float32(127)
        steps = rows / np.where(scales > 0, scales, np.float32(1))[:, None]
        steps += rng.random(rows.shape, dtype=np.float32)
        levels = np.clip(np.floor(steps, out=steps), -127, 127).astype(np.int8)
        levels[scales == 0] = 0
        return [*write_planes(scales), *write_planes(levels.reshape(-1)[: len(values)])]

    def read(self, read: Reader, count: int) -> Floats:
        """See `Code`."""
        blocks = -(-count // self.block)
        scales = read_planes(read, blocks, np.float32)
        if not np.isfinite(scales).all() or (scales < 0).any():
            raise UpdateError("a scale of the packed arrays is negative, NaN or infinite", Reason.FINITE)
        values = np.zeros(blocks * self.block, np.float32)
        values[:count] = read_planes(read, count, np.int8)
        rows = values.reshape(blocks, self.block)
        with np.errstate(over="ignore"):
            rows *= scales[:, None]
        return values[:count]


@dataclass(frozen=True)
class TopK:
    """The k = ceil(density n) numbers of largest magnitude as fp16, and their places as gaps; the others are zero.

    A gap is one byte: 0 to 254 for the next 1st to 255th place, 255 for "255 further". So places ascend and none comes twice,
    whatever the bytes are.

    Attributes:
        density: share of the numbers that is sent, in (0, 1].
    """

    density: float

    def count(self, num_values: int) -> int:
        """k of n numbers."""
        return min(num_values, max(1, math.ceil(self.density * num_values)))

    def write(self, values: Floats, rng: np.random.Generator) -> list[Piece]:
        """See `Code`."""
        k = self.count(len(values))
        places = np.sort(np.argpartition(np.abs(values), len(values) - k)[len(values) - k :])
        gaps = np.diff(places, prepend=-1) - 1
        further = gaps // _STRIDE
        steps = np.full(k + int(further.sum()), _STRIDE, np.uint8)
        steps[np.cumsum(further + 1) - 1] = gaps % _STRIDE
        return [_COUNT.pack(len(steps)), *write_planes(steps), *Half().write(values[places], rng)]

    def read(self, read: Reader, count: int) -> Floats:
        """See `Code`."""
        k = self.count(count)
        (length,) = read.unpack(_COUNT)
        if not k <= length <= k + count // _STRIDE:
            raise UpdateError(f"the packed arrays name the places of {k} of {count} numbers in {length} bytes, which cannot be")
        steps = read_planes(read, int(length), np.uint8).astype(np.int64)
        last = steps < _STRIDE
        places = (np.cumsum(steps + last) - 1)[last]
        if len(places) != k or not last[-1] or places[-1] >= count:
            raise UpdateError(f"the packed arrays name {len(places)} places, expected {k} below {count}")
        values = np.zeros(count, np.float32)
        values[places] = Half().read(read, k)
        return values


def make_code(name: str, settings: Compression) -> Code | None:
    """A code by its name; None for "none"."""
    codes: dict[str, Code | None] = {
        "none": None,
        "lossless": Lossless(),
        "fp16": Half(),
        "int8": Eighth(settings.block),
        "topk": TopK(settings.density),
    }
    return codes[name]
