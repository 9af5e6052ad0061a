"""From a saved model's folder to the model: a fusion model, or a class of the user's own that the run's configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from torch import nn

from fedmap.encoders.saving import FORMAT, read_config
from fedmap.errors import ModelError
from fedmap.prediction.runs import configuration_of

if TYPE_CHECKING:
    from fedmap.config import RunConfig

FUSION = "models.MMIMDbFusionModel"


@dataclass(frozen=True)
class _Labels:
    """As much of a data set as `build_model` asks for."""

    label_names: tuple[str, ...]


def load_model(folder: Path, run: Path) -> nn.Module:
    """The model of a folder.

    Args:
        folder: what `RunFolder.save_model` wrote.
        run: the run's folder, whose configuration says which class it is.

    Raises:
        ModelError: a file is missing or damaged, or the class cannot be made.
    """
    saved = read_config(folder)
    named = _class_of_run(run)
    if saved.get("format") == FORMAT:
        return _load(named if named and hasattr(_class(named), "from_pretrained") else FUSION, folder)
    if named is None:
        raise ModelError(
            f"{folder} holds a model of a class of your own ({saved.get('model', 'unknown')}); "
            "give the folder of its run, whose configuration says how to make it"
        )
    if hasattr(_class(named), "from_pretrained"):
        return _load(named, folder)
    return _rebuilt(folder, run, saved)


def _load(path: str, folder: Path) -> nn.Module:
    return cast(nn.Module, _class(path).from_pretrained(folder))


def _rebuilt(folder: Path, run: Path, saved: Mapping[str, Any]) -> nn.Module:
    from safetensors.torch import load_model as read

    from fedmap.build import build_model
    from fedmap.data.base import FederatedData

    names = tuple(saved.get("label_names") or ())
    model = build_model(run_config(run), cast(FederatedData, _Labels(names)))
    try:
        read(model, str(folder / "model.safetensors"))
    except Exception as error:  # damaged files and other shapes come as several types
        raise ModelError(f"{folder / 'model.safetensors'} does not fit the model that {run} configures: {error}") from error
    return model


def run_config(run: Path) -> RunConfig:
    """The run's configuration, checked; a section that this version has added since then is as it is by default.

    Raises:
        ConfigError: it is none.
    """
    from fedmap.config import compose_and_resolve, parse

    return parse({**compose_and_resolve("config"), **configuration_of(run)})


def _class_of_run(run: Path) -> str | None:
    node = configuration_of(run).get("model")
    found = node.get("_target_") if isinstance(node, dict) else None
    return found if isinstance(found, str) else None


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(f"the model's class {path} cannot be imported: {error}; run the command where it can be") from error


def label_names_of(model: Any, folder: Path, run: Path) -> tuple[str, ...]:
    """The labels that were saved with the model, or else the run's.

    Raises:
        ModelError: nobody knows them.
    """
    found = getattr(model, "label_names", None) or read_config(folder).get("label_names")
    if not found and (run / "results.json").is_file():
        from fedmap.outputs import read_history

        found = read_history(run).label_names
    if not found:
        raise ModelError(f"{folder} was saved without label names, so its outputs cannot be named")
    return tuple(map(str, found))


def thresholds_of(model: Any, folder: Path, names: tuple[str, ...]) -> npt.NDArray[np.float64] | None:
    """[C] thresholds that were saved with the model; None if there are none."""
    found = getattr(model, "thresholds", None) or read_config(folder).get("thresholds")
    if isinstance(found, Mapping):
        found = [found.get(name, 0.5) for name in names]
    if not found:
        return None
    if len(found) != len(names):
        raise ModelError(f"{folder} has {len(found)} thresholds for {len(names)} labels")
    return np.asarray(found, dtype=np.float64)
