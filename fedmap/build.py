"""From a configuration to the objects it names: data, model, training options, aggregator, hook."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from fedmap.aggregators.base import Aggregator, ServerState
from fedmap.config import RunConfig
from fedmap.config.bare import FEDOPS_STRATEGY as FEDOPS_STRATEGY
from fedmap.data.base import FederatedData, Split
from fedmap.errors import ConfigError, FederationError
from fedmap.local.training import TrainingOptions
from fedmap.randomness import torch_seed

log = logging.getLogger("fedmap.build")


def _instantiate(node: Mapping[str, Any], what: str, **extra: Any) -> Any:
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    try:
        return instantiate(dict(node), _convert_="all", **extra)
    except HydraException as error:
        cause = error.__cause__
        if isinstance(cause, FederationError):
            raise cause from error
        reason = str(cause or error).strip().splitlines()[-1]
        if "unexpected keyword argument" in reason:
            reason += f"; {what} has the keys {', '.join(key for key in node if key != '_target_')}: remove what the class does not take"
            reason += " (strategy=fedavg sets none)" if what == "server.strategy" else ""
        raise ConfigError(f"{what}._target_={node['_target_']!r} cannot be made: {reason}") from error


def build_data(config: RunConfig) -> FederatedData:
    """The data set that `dataset._target_` names, over the rows that lie on this machine."""
    return cast(FederatedData, _instantiate(config.dataset, "dataset"))


def build_model(config: RunConfig, data: FederatedData) -> nn.Module:
    """The model that `model._target_` names, its new layers drawn from the federation's seed, on the training device.

    `output_size: null` in the model's configuration means: as many as there are labels.

    Raises:
        ConfigError: `model.output_size` differs from the number of labels, or the class cannot be made.
    """
    num_labels = len(data.label_names)
    node = dict(config.model)
    if "output_size" in node:
        if node["output_size"] not in (None, num_labels):
            raise ConfigError(
                f"model.output_size={node['output_size']}, but the data has {num_labels} labels "
                f"({', '.join(list(data.label_names)[:4])}, ...); set model.output_size={num_labels} or null"
            )
        node["output_size"] = num_labels
    with torch_seed(config.random_seed, purpose="initial-model"):
        model = _instantiate(node, "model")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model._target_={node['_target_']!r} gave a {type(model).__name__}, expected a torch.nn.Module")
    return model.to(training_options(config).device)


def prepare_split(model: nn.Module, split: Split, cache: Path) -> Split:
    """The split in the form the model wants: a model with `prepare(split, cache)` tokenises or computes features once."""
    prepare = getattr(model, "prepare", None)
    return cast(Split, prepare(split, cache)) if callable(prepare) else split


def cache_dir(config: RunConfig) -> Path:
    """Where decoded images, token ids and features are kept."""
    chosen = config.dataset.get("cache_dir")
    return Path(chosen) if chosen else Path(config.dataset.get("root") or ".") / ".fedmap" / "cache"


def prune_caches(config: RunConfig) -> None:
    """Keep the cache within `cache_gb`, and say what was removed."""
    from fedmap.data.cache import prune_cache

    if removed := prune_cache(cache_dir(config), config.cache_gb * 1e9):
        log.info(
            "the cache %s was larger than cache_gb=%g: %d entries that were not used for longest are removed",
            cache_dir(config),
            config.cache_gb,
            len(removed),
        )


def training_options(config: RunConfig) -> TrainingOptions:
    """The training loop's options; `device: auto` takes a GPU if torch sees one."""
    import torch

    device = config.training.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return TrainingOptions(
        learning_rate=config.learning_rate,
        num_epochs=config.num_epochs,
        num_updates=config.training.num_updates,
        batch_size=config.batch_size,
        optimizer=config.training.optimizer,
        momentum=config.training.momentum,
        weight_decay=config.training.weight_decay,
        clip_norm=config.training.clip_norm,
        tower_learning_rate=config.training.tower_learning_rate,
        device=device,
        amp=config.training.amp,
        evaluation_batch_size=config.training.evaluation_batch_size,
    )


def build_aggregator(config: RunConfig) -> Aggregator[ServerState]:
    """The aggregator that `server.strategy._target_` names."""
    node = dict(config.strategy)
    if node["_target_"] == FEDOPS_STRATEGY:  # what FedOps' users have in their files; its keyword arguments are ours
        node = {"seed": config.random_seed, **node, "_target_": "fedmap.aggregators.modality_aware.aggregator.ModalityAwareAggregation"}
    aggregator = _instantiate(node, "server.strategy")
    for method in ("init", "broadcast", "aggregate"):
        if not callable(getattr(aggregator, method, None)):
            raise ConfigError(
                f"server.strategy._target_={config.strategy['_target_']!r} has no method {method}(); see docs/guides/own_aggregator.md"
            )
    return cast(Aggregator[ServerState], aggregator)


def build_hook(config: RunConfig) -> Callable[[Any], Any] | None:
    """The function that `hooks.after_round` names, or None."""
    if config.after_round is None:
        return None
    module_name, _, name = config.after_round.rpartition(".")
    try:
        hook = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"hooks.after_round={config.after_round!r} cannot be imported: {error}; name a function as module.function, or null"
        ) from error
    if not callable(hook):
        raise ConfigError(f"hooks.after_round={config.after_round!r} is not a function")
    return cast(Callable[[Any], Any], hook)
