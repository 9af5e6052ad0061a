"""What a client process keeps between messages: the configuration, one resident model, and the clients' prepared data."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from torch import nn

from fedmap.build import build_data, build_hook, build_model, cache_dir, prepare_split, prune_caches, training_options
from fedmap.checkpoint import Memories, prune_runs
from fedmap.config import RunConfig, load, parse
from fedmap.data.base import FederatedData, Split
from fedmap.errors import ConfigError, FederationError, UpdateError
from fedmap.flower.wire import ClientCard, RunInfo
from fedmap.local.client import LocalClient
from fedmap.local.tensors import shared_tensors
from fedmap.local.together import Trained, train_together
from fedmap.privacy.secret import derived, load_secret
from fedmap.randomness import generator
from fedmap.records import Broadcast
from fedmap.signals import RowFacts

log = logging.getLogger("fedmap.client")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Session:
    """One process's model and data for one configuration; every client that this process serves shares the model."""

    def __init__(self, config: RunConfig) -> None:
        import torch

        torch.set_num_threads(config.runtime.threads)
        self.config = config
        self.data: FederatedData = build_data(config)
        self.model: nn.Module = build_model(config, self.data)
        self.options = training_options(config)
        self.hook = build_hook(config)
        self._splits: dict[int, Mapping[str, Split]] = {}
        self._facts: dict[int, RowFacts] = {}
        self._memories: dict[str, Path] = {}  # by run, where the clients' memories of it lie
        self._trained: dict[tuple[int, int], Trained] = {}  # by client and round, until it has been answered
        self._alone = False  # torch has refused to train several clients at once
        if config.privacy.wanted and config.privacy.noise_seed is not None:
            log.warning("privacy.noise_seed is set: the noise can be told and taken away, and this run is private to nobody.")

    def splits(self, client_id: int) -> Mapping[str, Split]:
        """The client's prepared splits, read once."""
        if client_id not in self._splits:
            raw = self.data.client(client_id)
            cache = cache_dir(self.config)
            self._splits[client_id] = {name: prepare_split(self.model, split, cache) for name, split in raw.items()}
        return self._splits[client_id]

    def facts(self, client_id: int) -> RowFacts:
        """Of the client's training rows, which do not change."""
        if client_id not in self._facts:
            self._facts[client_id] = RowFacts.of(self.splits(client_id)["train"], self.data.modality_names)
        return self._facts[client_id]

    def train_together(self, client_ids: Sequence[int], broadcast: Broadcast, run: RunInfo) -> None:
        """Train several clients of a round at once; `client` then has each with what it has learnt.

        Raises:
            FederationError: this cannot be done with these clients.
            RuntimeError: torch cannot do it with this model; the next call does nothing.
        """
        self._trained.clear()
        if self._alone:
            return
        round_index = broadcast.round_index
        rngs = [generator(run.seed, purpose="batches", round_index=round_index, client_id=client_id) for client_id in client_ids]
        try:
            found = train_together(self.model, broadcast, [self.splits(client_id)["train"] for client_id in client_ids], self.options, rngs)
        except FederationError:
            raise
        except Exception:
            self._alone = True
            raise
        self._trained.update({(client_id, round_index): one for client_id, one in zip(client_ids, found, strict=True)})

    def trained(self, client_id: int, round_index: int) -> Trained | None:
        """What the client has learnt in the round together with others; it is handed out once."""
        return self._trained.pop((client_id, round_index), None)

    def client(self, client_id: int, run: RunInfo, trained: Trained | None = None) -> LocalClient:
        """The client with the process's model, seeded by the federation."""
        return LocalClient(
            client_id=client_id,
            model=self.model,
            splits=self.splits(client_id),
            options=self.options,
            seed=run.seed,
            modality_names=self.data.modality_names,
            after_round=self.hook,
            privacy=self.config.privacy,
            secret=self._secret(run),
            facts=self.facts(client_id),
            trained=trained,
        )

    def _secret(self, run: RunInfo) -> bytes:
        """What this machine's noise is drawn from in a run; b"" without privacy."""
        privacy = self.config.privacy
        if not privacy.wanted:
            return b""
        if privacy.noise_seed is not None:
            return derived(b"", privacy.noise_seed)
        return derived(load_secret(cache_dir(self.config).parent / "privacy.secret"), run.run_name)

    def card(self, client_id: int) -> ClientCard:
        """What the client says about itself when it joins."""
        splits = self.splits(client_id)
        fingerprint = getattr(self.model, "frozen_fingerprint", None)
        return ClientCard(
            client_id=client_id,
            num_train=len(splits["train"]),
            num_val=len(splits["val"]),
            num_test=len(splits["test"]),
            label_names=tuple(self.data.label_names),
            modality_shares={} if self.config.privacy.wanted else self.facts(client_id).modality_shares,
            model_names=tuple(name for name, _ in shared_tensors(self.model)),
            fingerprint=str(fingerprint()) if callable(fingerprint) else "",
        )

    def tidy(self, run: RunInfo) -> None:
        """Remove what no client here needs any more: memories of old runs, and what is too much in the cache."""
        folder = cache_dir(self.config).parent / "clients"
        if removed := prune_runs(folder, self.config.keep_runs, run.run_name):
            log.info("%s: the memories of old runs are removed (keep_runs=%d): %s", folder, self.config.keep_runs, ", ".join(removed))
        prune_caches(self.config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors that travel, by name: how packed arrays lie."""
        return {name: tuple(tensor.shape) for name, tensor in shared_tensors(self.model)}

    def memories(self, client_id: int, run: RunInfo) -> Memories:
        """What this client remembers of this run, below the data folder.

        Raises:
            UpdateError: the server named the run in a way that is no plain file name.
        """
        if run.run_name not in self._memories:
            if not _SAFE_NAME.fullmatch(run.run_name):
                raise UpdateError(f"the server named the run {run.run_name!r}; expected letters, digits, '.', '_' and '-' alone")
            self._memories = {run.run_name: memory_folder(self.config, run.run_name, client_id).parent}
        return Memories(self._memories[run.run_name] / f"client_{client_id}")


def memory_folder(config: RunConfig, run_id: str, client_id: int) -> Path:
    """Where a client keeps its memories of a run."""
    return cache_dir(config).parent / "clients" / run_id / f"client_{client_id}"


_SESSIONS: dict[str, Session] = {}
# The last file that was read, with what it led to: reading it takes longer than a small client's round.
_READ: dict[tuple[object, ...], tuple[RunConfig, Session]] = {}


def config_of(context: Context) -> RunConfig:
    """The configuration of this process.

    client_main.py and the local runtime name a resolved file in the node's configuration ("config"). A bare SuperNode
    (`flwr run .`) composes conf/config.yaml of the app with the run configuration's "overrides" instead.
    """
    path = context.node_config.get("config") or ""
    if path:
        return load(Path(str(path)))
    from fedmap.config import compose_and_resolve

    overrides = str(context.run_config.get("overrides", "")).split()
    return parse(compose_and_resolve("config", overrides))


def client_id_of(context: Context, config: RunConfig) -> int:
    """The client's number: "client-id" or "partition-id" of the node's configuration, else `client_id` of the file."""
    for key in ("client-id", "partition-id"):
        if key in context.node_config:
            return int(context.node_config[key])
    return config.client_id


def session_of(context: Context) -> tuple[Session, int]:
    """The process's session for this context, made at the first message and kept, and the client's number."""
    source = _source(context)
    if source is None or source not in _READ:
        config = config_of(context)
        key = json.dumps(_without_client(config.raw), sort_keys=True, default=str)
        if key not in _SESSIONS:
            forget_sessions()
            _SESSIONS[key] = Session(replace(config))
        if source is None:
            return _SESSIONS[key], client_id_of(context, config)
        _READ.clear()
        _READ[source] = config, _SESSIONS[key]
    config, session = _READ[source]
    return session, client_id_of(context, config)


def _source(context: Context) -> tuple[object, ...] | None:
    """What tells whether the file with the configuration is still the one that was read; None where there is no such file."""
    path = str(context.node_config.get("config") or "")
    try:
        found = os.stat(path)
    except OSError:
        return None
    return path, found.st_ino, found.st_mtime_ns, found.st_size


def forget_sessions() -> None:
    """Give back the process's model and data; the next message makes them anew."""
    _SESSIONS.clear()
    _READ.clear()
    gc.collect()


def _without_client(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if name != "client_id"}


def check_name(name: str) -> str:
    """A run's name, if it is one.

    Raises:
        ConfigError: it is not made of letters, digits, '.', '_' and '-'.
    """
    if not _SAFE_NAME.fullmatch(name):
        raise ConfigError(f"run name {name!r}: use letters, digits, '.', '_' and '-' alone, starting with a letter or digit")
    return name
