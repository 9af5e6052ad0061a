"""The server's judge: a model on a validation split, prepared once, so that scoring a mixed model is one forward pass."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from fedmap.data.base import Batch, Split
from fedmap.errors import ConfigError
from fedmap.local.tensors import put_weights, shared_tensors
from fedmap.local.training import TrainingOptions, evaluate, predictions_of
from fedmap.weights import Weights

Logits = npt.NDArray[np.floating[Any]]
_SMALL = 64 << 20  # bytes of what travels of a model; a larger one is not worth its copies
_MOST = 4  # models at once


def at_once(model: nn.Module, options: TrainingOptions, threads: int) -> int:
    """How many models a judge had better score at once: one for each `threads` processors of this process, a large model or one on a GPU alone."""
    if options.device != "cpu" or sum(tensor.nbytes for _, tensor in shared_tensors(model)) > _SMALL:
        return 1
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST, processors // threads))


@dataclass(frozen=True)
class ModelJudge:
    """A `fedmap.aggregators.judge.Judge` around a model, which each question gives other weights.

    Attributes:
        model: on `options.device`.
        split: the server's validation rows, prepared; never its test rows.
        options: batch size and device.
        at_once: how many models `several` scores at once, each in a copy of the model (which shares what is frozen); no bit depends on it.

    Raises:
        ConfigError: the split has no rows.
    """

    model: nn.Module
    split: Split
    options: TrainingOptions
    at_once: int = 1
    _copies: list[nn.Module] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.split) == 0:
            raise ConfigError(NO_ROWS)

    @property
    def labels(self) -> npt.NDArray[np.uint8]:
        """[n, C]."""
        return self.split.labels

    @property
    def exclusive(self) -> bool:
        """A model that decides for itself, on rows of exactly one label each, is taken to be trained by softmax cross-entropy."""
        return callable(getattr(self.model, "decide", None)) and bool((self.split.labels.sum(axis=1) == 1).all())

    @property
    def tunable(self) -> bool:
        """Whatever has no decision of its own."""
        return not callable(getattr(self.model, "decide", None))

    def logits(self, weights: Weights) -> Logits:
        """[n, C], in evaluation mode."""
        return self._score(self.model, self.split, weights)

    def several(self, models: Sequence[Callable[[], Weights | None]]) -> list[Logits | None]:
        """See `fedmap.aggregators.judge.logits_of_several`."""
        count = min(self.at_once, len(models))
        while len(self._copies) < count - 1:
            try:
                self._copies.append(_copy_of(self.model))
            except Exception:  # a user's model may hold what cannot be copied; then it scores alone
                count = 1 + len(self._copies)
        free: SimpleQueue[nn.Module] = SimpleQueue()
        for model in (self.model, *self._copies[: count - 1]):
            free.put(model)
        split, turn = _OneAtATime(self.split), threading.Lock()

        def score(make: Callable[[], Weights | None]) -> Logits | None:  # what was made goes before the next one is
            with turn:
                weights = make()
            if weights is None:
                return None
            model = free.get()
            try:
                return self._score(model, split, weights)
            finally:
                free.put(model)

        if count < 2:
            return [score(make) for make in models]
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(score, models))

    def _score(self, model: nn.Module, split: Split, weights: Weights) -> Logits:
        put_weights(model, weights)  # whoever holds what was in the model keeps it
        return evaluate(model, split, self.options).logits

    def decide(self, logits: Logits) -> npt.NDArray[np.bool_]:
        """[n, C], by the model's own `decide` or at probability 0.5."""
        return predictions_of(self.model, np.asarray(logits, dtype=np.float32))


class _OneAtATime:
    """A split that several threads may read: rows come out for one of them at a time."""

    def __init__(self, split: Split) -> None:
        self._split, self._turn = split, threading.Lock()
        self.labels, self.modalities, self.row_ids = split.labels, split.modalities, split.row_ids

    def __len__(self) -> int:
        return len(self._split)

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        with self._turn:
            return self._split.batch(rows)


def _copy_of(model: nn.Module) -> nn.Module:
    """The model once more; what does not travel is shared, since no weights are put there."""
    own = {id(tensor) for _, tensor in shared_tensors(model)}
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in own}
    return copy.deepcopy(model, dict(kept))


NO_ROWS = (
    "this strategy chooses the clients' weights on the server's validation rows, and the server has none; put them into "
    'dataset/server/server_val.csv (data_preparation.py makes it), give your data set\'s server() a "val" split, '
    "or take a strategy that needs no server data, e.g. strategy=fedavg"
)
