"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable


def pauses(first: float, longest: float, factor: float = 2.0, jitter: Callable[[], float] = random.random) -> Callable[[int], float]:
    """Seconds to wait after the k-th failure in a row (k >= 1): growing, and random so that many clients do not come at once.

    Args:
        first: the longest pause after the first failure, > 0.
        longest: no pause is longer.
        factor: from one failure to the next, >= 1.
        jitter: draws from [0, 1); a pause is between half and the whole of its longest.
    """
    return lambda k: min(longest, first * factor ** min(k - 1, 60)) * (0.5 + 0.5 * jitter())
