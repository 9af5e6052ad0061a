"""A client's own model: the run's global one with what the client keeps for itself, where the algorithm lets clients differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from fedmap.errors import DataError, FederationError, ModelError
from fedmap.prediction.loading import run_config
from fedmap.prediction.runs import clients_of, memories_of


def personalise(
    model: nn.Module, run: Path, client_id: int, label_names: tuple[str, ...], root: Path | None = None
) -> tuple[npt.NDArray[np.float64], str]:
    """Write a client's own tensors into the global model, in place.

    The client's memory lies on the client's machine, below its data, and so do the validation rows for its thresholds.

    Args:
        model: the run's global model.
        run: the run's folder.
        client_id: whose model.
        label_names: the C labels.
        root: the folder of the client's data; None is the one of the run's configuration.

    Returns:
        [C] thresholds, and where they come from.

    Raises:
        ModelError: the run's algorithm has one model for everybody, or the client's memory is not here.
    """
    from fedmap.aggregators.base import with_num_clients
    from fedmap.build import build_aggregator
    from fedmap.checkpoint import Memories
    from fedmap.local.rules import make_rule
    from fedmap.local.tensors import get_weights, layout_of

    config = run_config(run)
    aggregator = with_num_clients(build_aggregator(config), config.num_clients or 1)
    rule = make_rule(aggregator.broadcast(aggregator.init(get_weights(model), layout_of(model))).rule)
    if not rule.personal:
        raise ModelError(f"{type(aggregator).__name__} trains one model for everybody; leave the client out and use the global one")
    memories = Memories(memories_of(run, root) / f"client_{client_id}")
    if not memories.rounds():
        known = clients_of(run, root)
        hint = f"there are those of clients {', '.join(map(str, known))}" if known else "it stays on the client's machine: predict there"
        raise ModelError(f"the memory of client {client_id} is not in {memories.folder}; {hint}")
    rule.load_for_evaluation(model, memories.latest())
    try:
        return _tuned(model, config, client_id, len(label_names), root)
    except FederationError as error:
        return np.full(len(label_names), 0.5), f"no tuned thresholds ({error}): a label applies from 0.5"


def _tuned(model: nn.Module, config: object, client_id: int, num_labels: int, root: Path | None) -> tuple[npt.NDArray[np.float64], str]:
    from dataclasses import replace

    from fedmap.build import build_data, cache_dir, prepare_split, training_options
    from fedmap.config import RunConfig
    from fedmap.local.training import evaluate
    from fedmap.scoring import tuned_thresholds

    assert isinstance(config, RunConfig)
    if root is not None:
        config = replace(config, dataset={**config.dataset, "root": str(root), "cache_dir": None})
    rows = build_data(config).client(client_id)["val"]
    if not len(rows):
        raise DataError(f"client {client_id} has no validation rows")
    device = next(model.parameters()).device
    options = replace(training_options(config), device=str(device))
    thresholds = tuned_thresholds(evaluate(model, prepare_split(model, rows, cache_dir(config)), options))
    assert thresholds is not None
    assert len(thresholds) == num_labels
    return thresholds, f"thresholds tuned on the {len(rows)} validation rows of client {client_id}"
