"""Freed memory back to the system: an allocator that keeps a model's worth of small blocks for later makes a process one model larger."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

_WORTH = 8 << 20  # bytes; to look through the heap for less takes longer than it is worth


def give_back(freed: int) -> None:
    """Let the C library return what is free to the system, if that is much; nothing where it has no way to be told (other than glibc).

    Args:
        freed: about how many bytes may have become free, >= 0.
    """
    if freed > _WORTH and (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
