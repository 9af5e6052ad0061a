"""Many texts in little memory: compressed, and in as few arrays as a checkpoint can hold without looking at each text."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from fedmap.weights import Array


def _nothing() -> Array:
    return np.zeros(0, dtype=np.uint8)


def _no_ends() -> Array:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class PackedTexts(Sequence[str]):
    """A sequence of texts that grows at its end. Each is compressed by itself.

    Attributes:
        data: uint8 [bytes], the compressed texts one after the other.
        ends: int64 [n], where each of them ends in `data`.
    """

    data: Array = field(default_factory=_nothing)
    ends: Array = field(default_factory=_no_ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        start = int(self.ends[at - 1]) if at else 0
        return zlib.decompress(self.data[start : int(self.ends[at])].tobytes()).decode()

    def with_text(self, text: str) -> PackedTexts:
        """The texts and one more."""
        packed = np.frombuffer(zlib.compress(text.encode()), dtype=np.uint8)
        return PackedTexts(np.concatenate([self.data, packed]), np.append(self.ends, len(self.data) + len(packed)))

    def first(self, count: int) -> PackedTexts:
        """The first texts alone."""
        return PackedTexts(self.data[: int(self.ends[count - 1]) if count else 0].copy(), self.ends[:count].copy())
