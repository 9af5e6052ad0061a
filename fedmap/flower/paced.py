"""`paced.py PROGRAM ARGUMENTS`: runs Flower's SuperNode, but it looks for a message soon where one is likely to come soon.

Flower's SuperNode asks its server for a message every 3 s, and looks for its app's answer, in this process's memory, every half second. In a
round of a few seconds that is most of what a deployed round takes longer than a local one. Here it asks soon after it has handed in an
answer, since the next round's message is near, then ever less often: a pause is about a quarter of the time since the answer, and
at most Flower's own. So a node that waits for long, or is not sampled, asks the server no more often than any other SuperNode.

Flower has no option for either pause. They are changed where its loop reads the clock; a version whose loop does not look as this
file knows it runs as it is. Nothing of the product is imported, so that the SuperNode is Flower's alone.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

_LOOP = "flwr.supernode.start_client_internal"
_IDLE, _WORKING = 3, 0.5  # seconds, Flower's: until it asks again; until it looks for the answer, or a part of it, again
_KNOWN = {f"time.sleep({_IDLE})": 1, f"time.sleep({_WORKING})": 2, "time.sleep(": 3}  # what the loop's source holds, and how often
_FIRST, _GROWTH, _LOOK = 0.2, 1.25, 0.05


class Clock:
    """What stands for the module `time` in Flower's loop."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep, self._pause = sleep, _FIRST

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Wait, at most for that long."""
        if seconds == _WORKING:  # there is a message, which will be answered
            self._pause = _FIRST
            self._sleep(_LOOK)
        elif seconds == _IDLE:
            self._sleep(self._pause)
            self._pause = min(_GROWTH * self._pause, seconds)
        else:
            self._sleep(seconds)


def pace(loop: Any, clock: Clock) -> bool:
    """Give Flower's loop another clock, if it is the loop that is known here.

    Args:
        loop: the module.
        clock: the clock.

    Returns:
        Whether it is.
    """
    try:
        source = inspect.getsource(loop)
    except (OSError, TypeError):
        return False
    if getattr(loop, "time", None) is not time or any(source.count(words) != times for words, times in _KNOWN.items()):
        return False
    loop.time = clock
    return True


def main(program: str, arguments: list[str]) -> None:
    """Run the program."""
    with contextlib.suppress(ImportError):  # another version, which has no such module
        pace(importlib.import_module(_LOOP), Clock())
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
