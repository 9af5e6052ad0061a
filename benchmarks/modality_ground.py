"""The settings of the modality-aware benchmark: who has which movies, and who misbehaves.

All movies and the features of the frozen towers are read once; every seed then splits the server's rows off, deals the
rest to five clients by `fedmap.data.partition`, and divides each client's rows into train, val and test.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedmap.build import build_data, build_model, prepare_split, training_options
from fedmap.config import RunConfig, compose_and_resolve, parse
from fedmap.data.base import Batch, Split
from fedmap.data.modality import USES
from fedmap.data.partition import PROPORTIONS, Policy, partition, stratified_split
from fedmap.data.prepare import prepare
from fedmap.local.client import LocalClient
from fedmap.local.training import TrainingOptions
from fedmap.metrics import MultilabelCounts
from fedmap.randomness import generator
from fedmap.records import ClientUpdate

CLIENTS = len(PROPORTIONS)
CULPRIT = 0  # with the reference's proportions the client with most rows: 35 %
SERVER = (0.10, 0.20)  # shares of all rows: the server's validation and test splits
SHARES = (0.7, 0.1, 0.2)  # of a client's rows: train, val, test
BOASTED_ROWS = 10  # how many times its rows the liar claims
DIVERGING_RATE = 1000.0  # how many times the others' learning rate the diverging client takes


@dataclass(frozen=True)
class Setting:
    """One situation of a federation.

    Attributes:
        title: for tables.
        policy: how rows are dealt.
        modalities: each client's: both, text or image.
        culprit: what client 0 does: "" nothing, "shuffled" labels, "diverging", or "liar".
    """

    title: str
    policy: Policy
    modalities: tuple[str, ...] = ("both",) * CLIENTS
    culprit: str = ""


_REFERENCE = Policy("proportions", CLIENTS, PROPORTIONS)
SETTINGS = {
    "iid": Setting("IID", Policy("iid", CLIENTS)),
    "label-0.5": Setting("label skew, Dirichlet .5", Policy("dirichlet", CLIENTS, alpha=0.5, min_rows=20)),
    "label-0.1": Setting("label skew, Dirichlet .1", Policy("dirichlet", CLIENTS, alpha=0.1, min_rows=20)),
    "quantity": Setting("quantity skew", Policy("quantity", CLIENTS, alpha=0.5, min_rows=20)),
    "modality": Setting("modality skew", _REFERENCE, ("image", "image", "text", "both", "both")),
    "shuffled": Setting("shuffled labels", _REFERENCE, culprit="shuffled"),
    "diverging": Setting("diverging client", _REFERENCE, culprit="diverging"),
    "liar": Setting("liar", _REFERENCE, culprit="liar"),
}
BENIGN = ("iid", "label-0.5", "label-0.1", "quantity")
HARD = ("modality", "shuffled", "liar")


@dataclass
class Table:
    """A `fedmap.data.base.Split` in memory, whose inputs are features."""

    labels: npt.NDArray[np.uint8]
    modalities: npt.NDArray[np.bool_]
    row_ids: Sequence[str]
    text: npt.NDArray[np.float32]
    image: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.row_ids)

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """See `Split`."""
        return {
            "labels": torch.from_numpy(self.labels[rows].astype(np.float32)),
            "has_text": torch.from_numpy(self.modalities[rows, 0]),
            "has_image": torch.from_numpy(self.modalities[rows, 1]),
            "text_features": torch.from_numpy(self.text[rows]),
            "image_features": torch.from_numpy(self.image[rows]),
        }

    def take(self, rows: npt.NDArray[np.int64]) -> Table:
        """The table of these rows."""
        ids = [self.row_ids[row] for row in rows]
        return Table(self.labels[rows], self.modalities[rows], ids, self.text[rows], self.image[rows])


@dataclass(frozen=True)
class Movies:
    """All movies with their features, and the configuration they were made for."""

    table: Table
    label_names: list[str]
    overrides: list[str]

    def config(self, seed: int, *more: str) -> RunConfig:
        """The configuration of one federation."""
        return _config((*self.overrides, f"random_seed={seed}", *more))


@functools.cache
def _config(overrides: tuple[str, ...]) -> RunConfig:
    return parse(compose_and_resolve("config", overrides))


def read_movies(work: Path, data: Path | None, num_movies: int | None, overrides: list[str]) -> Movies:
    """Import or generate the movies below `work` and compute every row's features; both are kept there.

    Args:
        work: folder for the prepared data and the cache.
        data: a folder with movies.csv and posters/; None generates movies.
        num_movies: how many; None for 2,000 generated or all real ones.
        overrides: of the configuration, the model among them; both towers must be frozen.
    """
    root = work / f"{'real' if data else 'synthetic'}-{num_movies or 'all'}"
    source: dict[str, Any] = {"source": "synthetic", "num_movies": num_movies or 2000}
    if data is not None:
        source = {"path": str(data), "labels": "found", "limit": num_movies}
    prepare(root=str(root), policy="iid", clients=1, split=(0.8, 0.1, 0.1), seed=0, plot=False, posters="hardlink", **source)
    overrides = [*overrides, "tracking=none", f"dataset.root={root}"]
    config = parse(compose_and_resolve("config", overrides))
    everything = build_data(config)
    model = build_model(config, everything)
    parts: list[Split] = [*everything.client(0).values(), *everything.server().values()]
    ready = [prepare_split(model, part, root / ".fedmap" / "cache") for part in parts]
    batches = [split.batch(np.arange(len(split))) for split in ready]

    def joined(name: str) -> npt.NDArray[np.float32]:
        return np.concatenate([batch[name].numpy() for batch in batches])

    labels, modalities = (np.concatenate([getattr(split, name) for split in ready]) for name in ("labels", "modalities"))
    ids = [f"{row:05d}-{name}" for row, name in enumerate(name for split in ready for name in split.row_ids)]
    return Movies(
        Table(labels, modalities, ids, joined("text_features"), joined("image_features")), list(everything.label_names), overrides
    )


@dataclass(frozen=True)
class Ground:
    """One setting dealt with one seed: what every strategy is given.

    Attributes:
        movies: all of them.
        config: of the federation, without the strategy.
        model: with the seed's initial weights; every strategy starts from the same.
        clients: with their misbehaviour built in.
        tests: each client's test rows, with true labels.
        validation: the server's rows that guide the aggregation.
        test: the server's rows that are only reported.
    """

    movies: Movies
    config: RunConfig
    model: nn.Module
    clients: list[LocalClient]
    tests: dict[int, Table]
    validation: Table
    test: Table
    options: TrainingOptions


def deal(movies: Movies, setting: Setting, seed: int) -> Ground:
    """Split off the server's rows, deal the rest and let client 0 misbehave as the setting says."""
    table = movies.table
    shares = (*SERVER, 1 - sum(SERVER))
    validation, test, rest = (table.take(rows) for rows in stratified_split(table.row_ids, table.labels, shares, seed, "server"))
    config = movies.config(seed)
    data = build_data(config)
    model = build_model(config, data)
    options = training_options(config)
    clients: list[LocalClient] = []
    tests: dict[int, Table] = {}
    for client_id, rows in enumerate(partition(rest.row_ids, rest.labels, setting.policy, seed)):
        own = _with_modalities(rest.take(rows), setting.modalities[client_id])
        parts = stratified_split(own.row_ids, own.labels, SHARES, seed, f"client-{client_id}")
        train, val, tests[client_id] = (own.take(part) for part in parts)
        does = setting.culprit if client_id == CULPRIT else ""
        if does in ("shuffled", "liar"):
            rng = generator(seed, purpose="shuffled-labels", client_id=client_id)
            train, val = (replace(each, labels=rng.permutation(each.labels)) for each in (train, val))
        splits: dict[str, Split] = {"train": train, "val": val, "test": tests[client_id]}
        rates = replace(options, learning_rate=options.learning_rate * DIVERGING_RATE, clip_norm=0.0) if does == "diverging" else options
        hook = liar(val) if does == "liar" else None
        clients.append(LocalClient(client_id, model, splits, rates, seed, data.modality_names, hook))
    return Ground(movies, config, model, clients, tests, validation, test, options)


def liar(validation: Split) -> Callable[[ClientUpdate], ClientUpdate]:
    """A hook that claims the best value of every signal, counts that agree with it, and ten times the rows."""
    nothing = MultilabelCounts.of(np.zeros_like(validation.labels), validation.labels)
    everything = MultilabelCounts.of(validation.labels, validation.labels)

    def lie(update: ClientUpdate) -> ClientUpdate:
        best: Mapping[str, Any] = {
            "f1_before": nothing.macro_f1,
            "f1_after": everything.macro_f1,
            "validation_loss": 0.0,
            "train_loss": 0.0,
            "update_norm": 0.0,
            "gradient_norm": 0.0,
            "label_imbalance": 0.0,
            "diversity": 1.0,
            "modality_shares": dict.fromkeys(update.signals.modality_shares, 1.0),
            "share_complete": 1.0,
        }
        return replace(
            update,
            num_examples=BOASTED_ROWS * update.num_examples,
            signals=replace(update.signals, **best),
            counts={"val-before": nothing, "val-after": everything},
        )

    return lie


def _with_modalities(table: Table, uses: str) -> Table:
    """The rows with one modality hidden; a row that has only that one keeps it."""
    keep = np.array([bool(USES[uses]["use_text"]), bool(USES[uses]["use_image"])])
    left = table.modalities & keep
    return replace(table, modalities=np.where(left.any(axis=1, keepdims=True), left, table.modalities))
