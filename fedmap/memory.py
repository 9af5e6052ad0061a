"""Freed memory back to the system: an allocator that keeps a model's worth of small blocks for later makes a process one model larger.

Both functions do nothing where the C library has no way to be told (other than glibc).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator

_WORTH = 8 << 20  # bytes; to look through the heap for less takes longer than it is worth
_TRIM, _MAP = -1, -3  # <malloc.h>: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_APART = 1 << 20  # bytes of a block
_USUAL = 32 << 20  # the largest that glibc gets to by itself


def give_back(freed: int) -> None:
    """Let the C library return what is free to the system, if that is much.

    Args:
        freed: about how many bytes may have become free, >= 0.
    """
    if freed > _WORTH and (trim := _function("malloc_trim")) is not None:
        trim(0)


@contextlib.contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Inside the block a large piece of memory goes back to the system when it is freed, whatever lies around it.

    That suits messages, which come and go. Where a model computes, the system would clear the same memory again and again.
    """
    set_option = _function("mallopt")
    if set_option is not None:
        set_option(_MAP, _APART)
    try:
        yield
    finally:
        if set_option is not None:
            set_option(_MAP, _USUAL)
            set_option(_TRIM, 2 * _USUAL)


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    try:
        return ctypes.CDLL(None)[name]
    except (AttributeError, OSError, TypeError):
        return None
