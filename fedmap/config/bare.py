"""A conf/config.yaml that only names keys, as FedOps' users have: what it does not say is taken from conf/base.yaml and the default groups.

It is completed in a temporary folder that Hydra searches first, so that every override on the command line works as always. A
group chosen there (strategy=fedprox) wins over what the file says of it; a class of the file's own (`_target_`) wins over the group.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmap.errors import ConfigError

GROUPS = {  # as in the conf/config.yaml that comes with the project
    "strategy": "modality_aware",
    "model": "bert_resnet18",
    "dataset": "mm_imdb",
    "runtime": "superlink",
    "tracking": "tensorboard",
    "security": "loopback",
    "compression": "none",
    "privacy": "none",
}
FEDOPS_STRATEGY = "fedops.server.fedmap.strategy.ModalityAwareAggregation"  # means ours, keyword arguments included


def is_bare(conf: Path) -> bool:
    """Whether conf/config.yaml has no defaults list and so must be completed."""
    return (conf / "config.yaml").is_file() and (conf / "base.yaml").is_file() and "defaults" not in _read(conf / "config.yaml")


@contextmanager
def completed(conf: Path, chosen: Sequence[str]) -> Iterator[tuple[Path, list[str]]]:
    """A folder with the completed config.yaml, and the overrides that let Hydra find the rest in `conf`; it lives as long as the context.

    Args:
        conf: the project's configuration folder.
        chosen: groups that are chosen on the command line.
    """
    import yaml

    tree = _read(conf / "config.yaml")
    defaults: list[Any] = ["base"]
    for group, option in GROUPS.items():
        place = tree.get("server") if group == "strategy" else tree
        node = place.get(group) if isinstance(place, dict) else None
        if isinstance(place, dict) and isinstance(node, dict) and group in chosen:
            del place[group]
        elif isinstance(node, dict) and node.get("_target_", FEDOPS_STRATEGY) not in (FEDOPS_STRATEGY, _target(conf, group, option)):
            continue
        defaults.append({group: option})
    defaults += (
        ["_self_", {"optional strategy_training@_global_": "${strategy}"}] if {"strategy": GROUPS["strategy"]} in defaults else ["_self_"]
    )
    with tempfile.TemporaryDirectory(prefix="fedmap-conf-") as folder:
        text = yaml.safe_dump({"defaults": defaults, **tree}, sort_keys=False, allow_unicode=True)
        for file in conf.glob("*.yaml"):
            shutil.copy(file, folder)
        (Path(folder) / "config.yaml").write_text(text, encoding="utf-8")
        yield Path(folder), [f"hydra.searchpath=[file://{conf}]"]


def _target(conf: Path, group: str, option: str) -> Any:
    return _read(conf / group / f"{option}.yaml").get("_target_")


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no configuration: expected a mapping of keys")
    return tree
