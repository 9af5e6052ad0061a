"""The server's global model, which lies in memory once: in the torch module that scores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from fedmap.build import build_model, cache_dir, prepare_split, prune_caches, training_options
from fedmap.config import RunConfig
from fedmap.data.base import FederatedData, Split
from fedmap.errors import ConfigError
from fedmap.history import RoundScores
from fedmap.local.judge import NO_ROWS, ModelJudge, at_once
from fedmap.local.tensors import put_weights, shared_tensors, weights_in
from fedmap.local.training import Evaluation, TrainingOptions, evaluate
from fedmap.scoring import round_scores
from fedmap.weights import Weights


@dataclass
class GlobalModel:
    """A torch module, the weights in it, and the server's rows to score it on.

    Attributes:
        module: on `options.device`.
        splits: the server's rows by name ("val", "test"), prepared; those that it has.
        options: batch size and device.
        weights: what is in the module, as it lies there; nothing if that is not known.
    """

    module: nn.Module
    splits: Mapping[str, Split]
    options: TrainingOptions
    weights: Weights = field(init=False)

    def __post_init__(self) -> None:
        self.weights = weights_in(self.module)

    @staticmethod
    def of(config: RunConfig, data: FederatedData) -> GlobalModel:
        """The model that a configuration names, with its first weights, and the server's rows prepared for it."""
        module = build_model(config, data)
        cache = cache_dir(config)
        rows = data.server() if getattr(data, "has_server", lambda: True)() else {}
        splits = {name: prepare_split(module, split, cache) for name, split in rows.items() if len(split)}
        prune_caches(config)
        return GlobalModel(module, splits, training_options(config))

    def show(self, weights: Weights) -> Weights:
        """Put weights into the module; returns them as they lie there, so that the caller can let go of its own."""
        if weights is not self.weights:
            self.forget()  # the old ones make room tensor by tensor
            self.weights = put_weights(self.module, weights)
        return self.weights

    @property
    def shared(self) -> Mapping[str, torch.Tensor]:
        """What travels, by name."""
        return dict(shared_tensors(self.module))

    @property
    def nbytes(self) -> int:
        """Of what travels."""
        return sum(tensor.nbytes for tensor in self.shared.values())

    def forget(self) -> None:
        """No longer know, or hold on to, what is in the module."""
        self.weights = {}

    def evaluate(self, weights: Weights) -> dict[str, Evaluation]:
        """How a model does on each of the server's splits."""
        self.show(weights)
        return {name: evaluate(self.module, split, self.options) for name, split in self.splits.items()}

    def judge(self, threads: int) -> ModelJudge:
        """What tells an aggregator how other models do on the validation rows.

        Args:
            threads: that one evaluation uses, >= 1.

        Raises:
            ConfigError: there are no such rows.
        """
        if "val" not in self.splits:
            raise ConfigError(f"server.strategy: {NO_ROWS}")
        return ModelJudge(self.module, self.splits["val"], self.options, at_once(self.module, self.options, threads))

    def scores(self, evaluations: Mapping[str, Evaluation]) -> RoundScores:
        """Scores on the validation and the test split; None where the server has no such rows."""
        return round_scores(evaluations.get("val"), evaluations.get("test"), self.module)
