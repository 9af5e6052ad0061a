"""Which of Flower's nodes is which client's: what the SuperLink's process writes, and the server's app goes by."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from fedmap.config import RunConfig
from fedmap.files import write_json

NODES = "nodes.json"
REFUSED = 9004  # the code in an answer to a SuperNode that may not connect; Flower's own are below 9000
Identities = Callable[[], Mapping[int, int]]


def write_nodes(file: Path, nodes: Mapping[int, int]) -> None:
    """Write node ids and client numbers, in one step.

    Raises:
        StorageError: the file cannot be written.
    """
    write_json(file, {str(node_id): client_id for node_id, client_id in nodes.items()})


def read_nodes(file: Path) -> dict[int, int]:
    """Client numbers by node id; empty if there is no such file, or it is damaged: then no node is anybody's."""
    try:
        return {int(node_id): int(client_id) for node_id, client_id in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def identities_of(config: RunConfig, folder: Path) -> Identities | None:
    """Whose node is whose in a run's federation; None where nodes have no keys, or somebody else's SuperLink keeps them."""
    if not config.security.tls or config.runtime.name != "superlink" or config.runtime.external:
        return None
    return lambda: read_nodes(folder / NODES)
