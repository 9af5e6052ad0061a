"""One client's fit against the bare training loop, in one process or in processes of their own; the work of `benchmarks.round`.

    python -m benchmarks.round_fit {times,fit,bare} GROUND.json

The bare loop is forward, loss, backward and step, by hand, over tensors that are ready in memory: the same rows in the same batches,
the same model, loss and optimiser. Fit is `LocalClient.train_round`: it writes the received weights into the model, scores the
validation rows before and after, trains, measures signals, and copies the weights to send.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.round_ground import Ground
from fedmap.build import build_data, build_model, cache_dir, prepare_split, training_options
from fedmap.data.base import Split
from fedmap.local.client import LocalClient
from fedmap.local.tensors import get_weights
from fedmap.local.training import epoch_batches
from fedmap.records import Broadcast


@dataclass(frozen=True)
class Place:
    """A client's model and data.

    Attributes:
        ground: what both train on.
        model: on the CPU.
        splits: by name.
    """

    ground: Ground
    model: nn.Module
    splits: Mapping[str, Split]

    @staticmethod
    def of(ground: Ground, cache: Path) -> Place:
        """Client 0, its features computed where towers are frozen."""
        torch.set_num_threads(1)
        config = ground.config(f"dataset.cache_dir={cache}")
        data = build_data(config)
        model = build_model(config, data)
        splits = {name: prepare_split(model, split, cache_dir(config)) for name, split in data.client(0).items()}
        return Place(ground, model, splits)

    def bare(self) -> float:
        """Processor seconds of the bare loop."""
        split = self.splits["train"]
        batches = [
            split.batch(rows) for _ in range(self.ground.num_epochs) for rows in epoch_batches(len(split), 32, np.random.default_rng(0))
        ]
        slow = [p for name, p in self.model.named_parameters() if name.startswith("text_tower.")]
        fast = [p for name, p in self.model.named_parameters() if not name.startswith("text_tower.")]
        groups: Sequence[dict[str, Any]] = [{"params": params, "lr": rate} for params, rate in ((slow, 1e-5), (fast, 1e-4)) if params]
        started = time.process_time()
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        self.model.train()
        for batch in batches:
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(self.model(batch), batch["labels"])
            loss.backward()
            optimizer.step()
        return time.process_time() - started

    def fit(self) -> float:
        """Processor seconds of a client's fit."""
        config = self.ground.config()
        client = LocalClient(0, self.model, self.splits, training_options(config), self.ground.seed, ("text", "image"))
        broadcast = Broadcast(round_index=1, weights=get_weights(self.model), rule="plain")
        started = time.process_time()
        client.train_round(broadcast, {})
        return time.process_time() - started


def main(what: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """Measure.

    Args:
        what: "times" of both in turn, or the memory that "fit" or "bare" takes at its peak.
        described: "ground", "cache" and, for times, "trials".
    """
    told = dict(described["ground"])
    ground = Ground(**{**told, "root": Path(told["root"]), "text": Path(told["text"])})
    place = Place.of(ground, Path(described["cache"]))
    if what == "times":
        place.bare(), place.fit()
        pairs: list[dict[str, float]] = []
        for trial in range(int(described["trials"])):
            names = ("bare", "fit") if trial % 2 == 0 else ("fit", "bare")
            pairs.append({name: getattr(place, name)() for name in names})
        return {name: [pair[name] for pair in pairs] for name in ("bare", "fit")}
    before = _peak()
    for _ in range(2):
        getattr(place, what)()
    return {"bytes": _peak(), "before": before}


def _peak() -> int:
    """The largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))))
