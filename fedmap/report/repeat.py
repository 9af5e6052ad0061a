"""The command that repeats a run, from its resolved configuration: options of the groups, and what differs from their values."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmap.config import CONF, compose_and_resolve
from fedmap.errors import ConfigError

_GROUPS = {
    "strategy": ("server", "strategy"),
    "model": ("model",),
    "dataset": ("dataset",),
    "runtime": ("runtime",),
    "security": ("security",),
    "compression": ("compression",),
}
# parts of a configuration that say where a run was written or shown, and nothing of what it did
_PLACES = ("hydra", "name", "resume", "keep_checkpoints", "service", "client", "client_id", "tracking", "task_id")
_HIDDEN = "***"
_PLAIN = re.compile(r"[A-Za-z0-9_./:@-]+")


def repeat_command(tree: Mapping[str, Any], conf: Path = CONF) -> str | None:
    """The shorter of all commands for `server_main.py` with the same configuration; None if this version knows none.

    Args:
        tree: the run's resolved configuration; values that were replaced by *** are left out.
        conf: the folder of the configuration's files.
    """
    from hydra.core.global_hydra import GlobalHydra

    outer = GlobalHydra.instance().hydra  # a report may be written while Hydra runs the program; composing replaces its state
    try:
        groups = _groups(tree, conf)
        known = compose_and_resolve("config", groups, conf)
        top = [f"{key}={_word(tree[key])}" for key in known if _is_scalar(tree, key) and tree[key] != known[key] and key not in _PLACES]
        if top:
            known = compose_and_resolve("config", [*groups, *top], conf)  # what follows from these, e.g. seeds, is no difference any more
    except ConfigError:
        return None
    finally:
        GlobalHydra.instance().hydra = outer
    own = [f"{key}={_word(value)}" for key, value in _differences(tree, known, "") if key.lstrip("+").partition(".")[0] not in _PLACES]
    return shlex.join(["python", "server_main.py", *groups, *top, *own])


def _groups(tree: Mapping[str, Any], conf: Path) -> list[str]:
    """For each group the option that is most like the run's part of it, where it is not the default."""
    import yaml

    defaults = {
        name: option for entry in _yaml(conf / "config.yaml")["defaults"] if isinstance(entry, dict) for name, option in entry.items()
    }
    chosen = []
    for group, place in _GROUPS.items():
        part: Any = tree
        for key in place:
            part = part.get(key) if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping):
            continue
        options = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) or {} for file in sorted((conf / group).glob("*.yaml"))}
        kind = "_target_" if "_target_" in part else "name"
        same = {name: option for name, option in options.items() if option.get(kind) == part.get(kind)}
        if same:
            likeness = {name: sum(part.get(key) == value for key, value in option.items()) for name, option in same.items()}
            best = max(likeness, key=lambda name: (likeness[name], name == defaults.get(group)))
            if best != defaults.get(group):
                chosen.append(f"{group}={best}")
    return chosen


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def _is_scalar(tree: Mapping[str, Any], key: str) -> bool:
    return key in tree and not isinstance(tree[key], (Mapping, list))


def _differences(tree: Mapping[str, Any], known: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if value == _HIDDEN or (prefix == "" and _is_scalar(tree, key) and key in known):
            continue
        if isinstance(value, Mapping) and isinstance(known.get(key), Mapping) and value:
            found += _differences(value, known[key], f"{path}.")
        elif key not in known:
            found.append((f"+{path}", value))
        elif value != known[key] and not (path == "dataset.root" and value == os.path.abspath(str(known[key]))):
            found.append((path, value))
    return found


def _word(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        reads_as_text = _PLAIN.fullmatch(value) and not re.fullmatch(
            r"(?i)null|true|false|nan|[-+]?inf|[-+]?[0-9._]+(e[-+]?[0-9]+)?", value
        )
        return value if reads_as_text else "'" + value.replace("\\'", "\\\\'").replace("'", "\\'") + "'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_word(str(key))}:{_word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_word, value)) + "]"
    return repr(value)
