"""How often our program decodes an image and scores a split in a whole run, counted where it happens; for `benchmarks.round`."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fedmap.data.posters
import fedmap.flower.federation
import fedmap.flower.global_model
import fedmap.local.client
import fedmap.local.judge
from benchmarks.round_ground import ROWS, SERVER_ROWS, Ground
from fedmap.build import build_data
from fedmap.config import compose_and_resolve, parse, save
from fedmap.flower import doors
from fedmap.history import RoundRecord
from fedmap.local.training import evaluate
from fedmap.outputs import RunFolder
from fedmap.progress import Progress


class _WithinRounds(Progress):
    """Counts what happens between the beginning and the end of rounds.

    Attributes:
        within: the same counts, of rounds alone.
    """

    def __init__(self, counts: collections.Counter[str]) -> None:
        self.counts = counts
        self.within: collections.Counter[str] = collections.Counter()
        self._begun: collections.Counter[str] = collections.Counter()

    def clients(self, round_index: int, client_ids: Any) -> None:
        """A round begins."""
        self._begun = self.counts.copy()

    def round_done(self, record: RoundRecord) -> None:
        """A round has ended, or the untrained model was scored."""
        if record.round_index > 0:
            self.within.update(self.counts - self._begun)


def counted(ground: Ground, folder: Path) -> dict[str, dict[str, int]]:
    """Run a federation of one client inside this process and count.

    Returns:
        "run": "images" of client and server, and how many were "decoded"; passes over splits, e.g. "client passes over val" and "server
        passes over test"; and of the server's those for the search's candidates. "rounds": the same within rounds.
    """
    assert ground.clients == 1, "splits are told apart by who is first"
    folder.mkdir(parents=True)
    tree = compose_and_resolve(
        "config", ["runtime=local", *ground.overrides(), "runtime.workers=0", f"dataset.cache_dir={folder / 'cache'}"]
    )
    save(tree, folder / "run.yaml")
    config = parse(tree)
    counts: collections.Counter[str] = collections.Counter()
    progress = _WithinRounds(counts)
    with _counting(counts):
        doors._serve_locally(config, folder / "run.yaml", RunFolder(folder), progress, fedmap.flower.federation.Server)
    images = ground.clients * sum(ROWS.values()) + 2 * SERVER_ROWS
    assert images == sum(len(split) for owner in _owners(config) for split in owner.values())
    return {"run": {**counts, "images": images}, "rounds": dict(progress.within)}


def _owners(config: Any) -> list[Any]:
    data = build_data(config)
    return [data.server(), *(data.client(k) for k in data.client_ids())]


@contextmanager
def _counting(counts: collections.Counter[str]) -> Iterator[None]:
    decode = fedmap.data.posters.decode_poster

    def decoding(content: bytes, size: int) -> Any:
        counts["decoded"] += 1
        return decode(content, size)

    def scoring(who: str, owner: str) -> Any:
        def scored(model: Any, split: Any, options: Any) -> Any:
            role = "val" if split is first.setdefault(owner, split) else "test"  # both owners begin with their validation rows
            counts[f"{who} over {role}"] += 1
            return evaluate(model, split, options)

        return scored

    first: dict[str, Any] = {}
    with (
        patch.object(fedmap.data.posters, "decode_poster", decoding),
        patch.object(fedmap.local.client, "evaluate", scoring("client passes", "client")),
        patch.object(fedmap.flower.global_model, "evaluate", scoring("server passes", "server")),
        patch.object(fedmap.local.judge, "evaluate", scoring("candidates", "server")),
    ):
        yield
