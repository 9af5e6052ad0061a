"""Whether a run's folder holds a run, and whether a configuration may go on with it.

Two ways to go on: the same command again finds the run by its name and must not contradict it; `resume=<folder>` takes the
configuration that the run has stored, with what the command line says on top. Keys that change no result are free.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmap.errors import CheckpointError, ConfigError, DataError
from fedmap.outputs import HIDDEN, read_history, redacted

# Keys, and groups of keys, that change nothing about a run's results: where and how it runs, and how far.
FREE = (
    "name",
    "resume",
    "keep_checkpoints",
    "keep_runs",
    "cache_gb",
    "num_rounds",
    "client_id",
    "task_id",
    "runtime",
    "tracking",
    "security",
    "service",
    "client",
    "dataset.root",
    "dataset.cache_dir",
    "dataset.server_url",
)
_NOT_FREE = ("runtime.threads", "runtime.clients_at_once")  # sums run in another order with another number of either
_PLACES = {"strategy": "server.strategy"}  # a group whose keys lie elsewhere than under its name
_MISSING = object()


def stored_configuration(folder: Path) -> dict[str, Any] | None:
    """The configuration in a run's folder, without secrets; None if there is no run.

    Raises:
        ConfigError: there is a file, and it is no configuration.
    """
    import yaml

    path = folder / "config.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no configuration: expected a mapping of keys")
    return tree


def rounds_done(folder: Path) -> tuple[str, int]:
    """The status of the run in a folder and the number of rounds it has done; ("", 0) if there is none."""
    try:
        history = read_history(folder)
    except DataError:
        if (folder / "results.json").exists():
            raise
        return "", 0
    return history.status, max((record.round_index for record in history.rounds), default=0)


def has_checkpoints(folder: Path) -> bool:
    """Whether there is something to continue from."""
    return any((folder / "checkpoints").glob("round_*.checkpoint"))


def check_may_start(folder: Path, resume: str) -> None:
    """Refuse to start anew over a run that is already in the folder, and to continue one that has kept nothing to continue from.

    Raises:
        CheckpointError: says what there is and what can be done.
    """
    status, done = rounds_done(folder)
    kept = has_checkpoints(folder)
    if resume == "never" and (done or kept):
        raise CheckpointError(
            f"{folder} already holds a run ({status or 'unknown'}, {done} rounds done) and resume=never does not touch it; choose another "
            "name, move the folder away, or continue it with resume=auto"
        )
    if done and not kept:
        raise CheckpointError(
            f"{folder} already holds a run ({status}, {done} rounds done) without checkpoints to continue from; choose another name, or move "
            "the folder away"
        )


def continued(folder: Path, tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration with which to go on in a run's folder.

    Args:
        folder: the run's folder; there need not be a run.
        tree: the configuration of this command, resolved.
        overrides: what was said on the command line, e.g. ["num_rounds=20"].

    Returns:
        `tree` itself where there is nothing to continue; the stored configuration, with what was said on top, where `resume` names the folder.

    Raises:
        ConfigError: the command contradicts the run; every key is named with both values.
    """
    stored = stored_configuration(folder)
    by_folder = tree.get("resume") not in (None, "auto", "never")
    if stored is None:
        if by_folder:
            raise ConfigError(
                f"resume={tree['resume']}: there is no run in this folder; expected auto, never or a run's folder in outputs/"
            )
        return dict(tree)
    if not by_folder and not has_checkpoints(folder):  # it stopped before there was anything to contradict
        return dict(tree)
    said = [path for override in overrides for path in _leaves_said(override, tree)]
    new = redacted(tree)
    if by_folder:
        _refuse(_differences(stored, new, said), folder)
        merged = copy.deepcopy(stored)
        for override in overrides:
            place = _place(override)
            if _is_free(place) or place == "runtime":
                _put(merged, place, copy.deepcopy(_get(tree, place)))
        merged["resume"] = "auto"
        return _with_secrets(merged, tree)
    known = {path for path, _ in _leaves(stored)} & {path for path, _ in _leaves(new)}
    _refuse(_differences(stored, new, sorted(known | set(said))), folder)
    return dict(tree)


def _refuse(differences: Sequence[str], folder: Path) -> None:
    if differences:
        raise ConfigError(
            f"the run in {folder} cannot go on with another configuration, its results would mean nothing:\n"
            + "\n".join(f"  - {sentence}" for sentence in differences)
            + "\nLeave these away to continue it, or start a new run under another name"
        )


def _differences(stored: Mapping[str, Any], new: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    found = []
    for path in dict.fromkeys(paths):
        before, now = _get(stored, path), _get(new, path)
        if not _is_free(path) and before != now:
            found.append(f"{path} is {_shown(now)}, the run was started with {_shown(before)}")
    return found


def _shown(value: Any) -> str:
    return "not set" if value is _MISSING else repr(value)


def _is_free(path: str) -> bool:
    return path not in _NOT_FREE and any(path == free or path.startswith(f"{free}.") for free in FREE)


def _place(override: str) -> str:
    key = override.partition("=")[0].lstrip("+~").partition("@")[0]
    return _PLACES.get(key, key)


def _leaves_said(override: str, tree: Mapping[str, Any]) -> list[str]:
    """The keys that a command-line override speaks of: one, or all of a group."""
    place = _place(override)
    if place.startswith("hydra"):
        return []
    value = _get(tree, place)
    return [f"{place}.{path}" for path, _ in _leaves(value)] if isinstance(value, Mapping) else [place]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _get(tree: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return _MISSING
        tree = tree[part]
    return tree


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    if value is _MISSING:
        tree.pop(last, None)
    else:
        tree[last] = value


def _with_secrets(stored: dict[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The stored configuration with its secrets, which were never written down, from this command's.

    Raises:
        ConfigError: this command does not have one of them.
    """
    lost = []
    for path, value in list(_leaves(stored)):
        if isinstance(value, str) and HIDDEN in value:
            now = _get(tree, path)
            if now is _MISSING or not isinstance(now, str) or HIDDEN in now or not now:
                lost.append(path)
            else:
                _put(stored, path, now)
    if lost:
        raise ConfigError(f"{', '.join(lost)}: secrets are not kept with a run; give them again on the command line to continue it")
    return stored
