"""Runs that have saved a model, and what their folders say about it; light to import, for the service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from fedmap.errors import DataError

WHICH: tuple[Literal["best"], Literal["last"]] = ("best", "last")


def runs_with_models(outputs: Path) -> list[Path]:
    """The runs below a folder that have saved a model, the newest first."""
    folders = [
        file.parent.parent
        for name in WHICH
        for depth in ("*", "*/*", "*/*/*")
        for file in outputs.glob(f"{depth}/{name}/model.safetensors")
    ]
    return sorted(set(folders), key=_written, reverse=True)


def newest_run(outputs: Path = Path("outputs")) -> Path:
    """The newest run below a folder that has saved a model.

    Raises:
        DataError: there is none.
    """
    runs = runs_with_models(outputs)
    if not runs:
        raise DataError(f"no run below {outputs} has saved a model yet; train one with server_main.py, or name one with --run <folder>")
    return runs[0]


def _written(run: Path) -> tuple[float, str]:
    results = run / "results.json"
    return results.stat().st_mtime if results.is_file() else 0.0, str(run)


def configuration_of(run: Path) -> Mapping[str, Any]:
    """The run's resolved configuration as plain mappings; empty where there is none.

    Raises:
        DataError: the file is damaged.
    """
    for name in ("run.yaml", "config.yaml"):  # the second one is the same without secrets
        if (run / name).is_file():
            return _yaml(run / name, (run / name).stat().st_mtime_ns)
    return {}


@lru_cache(maxsize=512)
def _yaml(path: Path, written: int) -> Mapping[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return tree if isinstance(tree, dict) else {}


def memories_of(run: Path, root: Path | None = None) -> Path:
    """Where clients keep their memories of a run, below their data; see `fedmap.flower.session.memory_folder`.

    Args:
        run: the run's folder.
        root: the folder of the data; None is the one of the run's configuration.

    Raises:
        DataError: the run does not say its id.
    """
    data = configuration_of(run).get("dataset") or {}
    cache = root / ".fedmap" / "cache" if root else Path(data.get("cache_dir") or Path(data.get("root") or ".") / ".fedmap" / "cache")
    try:
        return cache.parent / "clients" / str(json.loads((run / "run.json").read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run / 'run.json'} does not say the run's id, under which clients keep their own models: {error}") from error


def clients_of(run: Path, root: Path | None = None) -> list[int]:
    """The clients whose memories of a run lie on this machine, ascending."""
    try:
        folders = memories_of(run, root).glob("client_*/")
    except DataError:
        return []
    names = [folder.name.removeprefix("client_") for folder in folders if any(folder.iterdir())]
    return sorted(int(name) for name in names if name.isdecimal())
