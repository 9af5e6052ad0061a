"""The targets by name, each imported when it is run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from benchmarks.fuzzing.contract import Target

TARGETS = {
    "update": ("messages", "Update", "a client's messages: objects as Flower carries them, an update, a card, counts"),
    "checkpoint": ("checkpoints", "States", "a server's checkpoint, a client's memory, a student's file"),
    "csv": ("tables", "Tables", "a client's table, a table to import, Parquet shards"),
    "json": ("documents", "Documents", "labels, modalities, manifest, MM-IMDb's files, results, events, a run's configuration"),
    "archive": ("archives", "Archives", "the zip of the server's data"),
    "model": ("saved_models", "SavedModels", "a saved model's folder: JSON, safetensors, PyTorch's zip"),
    "image": ("pictures", "Pictures", "a poster"),
    "http": ("fronts", "Fronts", "raw requests to the server's and the client's front"),
    "platform": ("platforms", "Platforms", "a FedOps platform's answers, byte for byte"),
}


def make_target(name: str, folder: Path) -> Target:
    """A target that is ready; everything that it writes goes below the folder."""
    module, cls, _ = TARGETS[name]
    return cast(Target, getattr(importlib.import_module(f"{__name__}.{module}"), cls)(folder))
