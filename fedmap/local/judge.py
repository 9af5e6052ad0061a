"""The server's judge: a model on a validation split, prepared once, so that scoring a mixed model is one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from fedmap.data.base import Split
from fedmap.errors import ConfigError
from fedmap.local.tensors import put_weights
from fedmap.local.training import TrainingOptions, evaluate, predictions_of
from fedmap.weights import Weights


@dataclass(frozen=True)
class ModelJudge:
    """A `fedmap.aggregators.judge.Judge` around a model, which each question gives other weights.

    Attributes:
        model: on `options.device`.
        split: the server's validation rows, prepared; never its test rows.
        options: batch size and device.

    Raises:
        ConfigError: the split has no rows.
    """

    model: nn.Module
    split: Split
    options: TrainingOptions

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

    def logits(self, weights: Weights) -> npt.NDArray[np.floating[Any]]:
        """[n, C], in evaluation mode."""
        put_weights(self.model, weights)  # whoever holds what was in the model keeps it
        return evaluate(self.model, self.split, self.options).logits

    def decide(self, logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
        """[n, C], by the model's own `decide` or at probability 0.5."""
        return predictions_of(self.model, np.asarray(logits, dtype=np.float32))


NO_ROWS = (
    "this strategy chooses the clients' weights on the server's validation rows, and the server has none; put them into "
    'dataset/server/server_val.csv (data_preparation.py makes it), give your data set\'s server() a "val" split, '
    "or take a strategy that needs no server data, e.g. strategy=fedavg"
)
