"""Bytes read as decisions: a fuzzer that changes bytes then changes what is done, in a structure that stays readable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Consumes bytes from the front; where they have ended everything is 0."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def __bool__(self) -> bool:
        """Whether there are bytes left."""
        return self._position < len(self._data)

    def byte(self) -> int:
        """In [0, 255]."""
        self._position += 1
        return self._data[self._position - 1] if self._position <= len(self._data) else 0

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.byte() % len(options)]

    def take(self, count: int) -> bytes:
        """At most so many bytes."""
        start = self._position
        self._position = min(start + count, len(self._data))
        return self._data[start : self._position]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))
