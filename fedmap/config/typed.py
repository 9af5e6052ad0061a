"""A checked configuration as typed, frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmap.compression import Compression
from fedmap.guard.options import Defence
from fedmap.privacy import Privacy


@dataclass(frozen=True)
class RuntimeConfig:
    """How the processes of a federation run; see conf/runtime."""

    name: str
    threads: int
    wait_seconds: float
    round_seconds: float
    quorum: float
    max_failed_rounds: int
    workers: int | None = None
    clients_at_once: int = 1
    address: str = "127.0.0.1:8000"
    external: bool = False
    stay: bool = False


@dataclass(frozen=True)
class TrainingConfig:
    """How a client trains; see `fedmap.local.training.TrainingOptions`."""

    optimizer: str
    momentum: float
    weight_decay: float
    clip_norm: float
    evaluation_batch_size: int | None
    num_updates: int | None
    tower_learning_rate: float
    device: str
    amp: bool


@dataclass(frozen=True)
class ServiceConfig:
    """The server's HTTP front; see conf/config.yaml."""

    enabled: bool
    host: str
    port: int
    token_file: str | None


@dataclass(frozen=True)
class ClientConfig:
    """A client's HTTP front; see conf/config.yaml."""

    enabled: bool
    autostart: bool
    host: str
    port: int


@dataclass(frozen=True)
class SecurityConfig:
    """Who may connect; see conf/security.

    Attributes:
        insecure: whether unencrypted connections to other machines are allowed.
        folder: of certificates and keys, see `fedmap.access.folder`; None without TLS.
        app: whose code a client runs: "same" (its own, which must be the server's) or "server" (what the server sends).
    """

    insecure: bool = False
    folder: str | None = None
    app: str = "server"

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted and clients known by their keys."""
        return self.folder is not None


@dataclass(frozen=True)
class RunConfig:
    """A resolved and checked configuration. Nodes that name a user's class (`_target_`) stay plain mappings."""

    random_seed: int
    learning_rate: float
    num_epochs: int
    batch_size: int
    num_rounds: int
    clients_per_round: int
    num_clients: int | None
    client_id: int
    task_id: str
    training: TrainingConfig
    runtime: RuntimeConfig
    service: ServiceConfig
    client: ClientConfig
    security: SecurityConfig
    model: Mapping[str, Any]
    dataset: Mapping[str, Any]
    strategy: Mapping[str, Any]
    tracking: Mapping[str, Any]
    compression: Compression
    privacy: Privacy
    defence: Defence
    after_round: str | None
    name: str | None
    resume: str
    keep_checkpoints: int
    keep_runs: int
    cache_gb: float
    raw: Mapping[str, Any]
