"""What an evaluation-guided aggregator may ask of the server: how a mixed model does on the server's validation rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fedmap.weights import Weights

Logits = npt.NDArray[np.floating[Any]]


class Judge(Protocol):
    """The server's validation split, seen through the model. It never sees a test row.

    A judge may have a method `several(models)` that does what `logits_of_several` does, faster.

    Attributes:
        labels: [n, C] uint8, n >= 1.
        exclusive: whether every row has exactly one label and the model is trained by softmax cross-entropy; otherwise each label
            is a decision of its own, trained by binary cross-entropy.
        tunable: whether a label applies from a threshold on that is tuned on validation rows in the end.
    """

    @property
    def labels(self) -> npt.NDArray[np.uint8]: ...

    @property
    def exclusive(self) -> bool: ...

    @property
    def tunable(self) -> bool: ...

    def logits(self, weights: Weights) -> Logits:
        """[n, C] logits of the model with these shared arrays."""
        ...

    def decide(self, logits: Logits) -> npt.NDArray[np.bool_]:
        """[n, C] which labels the model gives to rows with these logits."""
        ...


A = TypeVar("A")


def logits_of_several(judge: Judge, models: Sequence[Callable[[], Weights | None]]) -> list[Logits | None]:
    """Logits [n, C] of several models, each made when it is its turn; None for one that gives None.

    Args:
        judge: who scores.
        models: each is called once, by one thread at a time.
    """
    several = getattr(judge, "several", None)
    if callable(several):
        found: list[Logits | None] = several(models)
        return found

    def score(make: Callable[[], Weights | None]) -> Logits | None:  # what was made goes before the next one is
        weights = make()
        return None if weights is None else judge.logits(weights)

    return [score(make) for make in models]


def wants_judge(aggregator: object) -> bool:
    """Whether the aggregator chooses by the server's validation rows: it has a method `with_judge(judge)`."""
    return callable(getattr(aggregator, "with_judge", None))


def with_judge(aggregator: A, judge: Judge) -> A:
    """The aggregator with the judge, if it asks for one; otherwise the aggregator as it is."""
    bound: A = aggregator.with_judge(judge) if wants_judge(aggregator) else aggregator  # type: ignore[attr-defined]
    return bound
