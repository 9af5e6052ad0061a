"""From plain mappings to a `RunConfig`: contradictions and values out of range are all collected before anything is raised."""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmap.compression.settings import DOWN, UP, Compression
from fedmap.config.naming import problem_of_name
from fedmap.config.typed import ClientConfig, RunConfig, RuntimeConfig, SecurityConfig, ServiceConfig, TrainingConfig
from fedmap.errors import ConfigError, StorageError
from fedmap.guard.options import DIRECTIONS, NORMS, REPLAYS, Defence
from fedmap.privacy.settings import NO_PRIVACY, OPTIONS, Privacy


class _Reader:
    """Reads keys of a plain mapping, checks them, and collects every problem instead of stopping at the first."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.tree = tree
        self.problems: list[str] = []

    def node(self, path: str) -> Any:
        value: Any = self.tree
        for part in path.split("."):
            if not isinstance(value, Mapping) or part not in value:
                self.problems.append(f"{path} is missing")
                return None
            value = value[part]
        return value

    def _wrong(self, path: str, problem: str) -> None:
        if f"{path} is missing" not in self.problems:  # one sentence a key
            self.problems.append(problem)

    def _number(self, path: str, kinds: tuple[type, ...], least: float, most: float, what: str) -> Any:
        value = self.node(path)
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        if not fits or not math.isfinite(value) or not least <= value <= most:
            limits = f"of at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
            self._wrong(path, f"{path}={value!r}: expected {what} {limits}")
            return least
        return value

    def integer(self, path: str, least: float, most: float = math.inf) -> int:
        return int(self._number(path, (int,), least, most, "an integer"))

    def number(self, path: str, least: float, most: float = math.inf) -> float:
        return float(self._number(path, (int, float), least, most, "a number"))

    def optional_integer(self, path: str, least: float) -> int | None:
        return None if self.node(path) is None else self.integer(path, least)

    def name(self, path: str) -> str | None:
        value = self.tree.get(path)
        if value is None:
            return None
        if problem := problem_of_name(value):
            self.problems.append(problem)
        return str(value)

    def flag(self, path: str) -> bool:
        value = self.node(path)
        if not isinstance(value, bool):
            self._wrong(path, f"{path}={value!r}: expected true or false")
        return bool(value)

    def text(self, path: str, options: Sequence[str] = ()) -> str:
        value = self.node(path)
        if not isinstance(value, str) or not value or (options and value not in options):
            expected = f"one of {', '.join(options)}" if options else "a text"
            near = difflib.get_close_matches(str(value), options, n=1) if options else []
            self._wrong(path, f"{path}={value!r}: expected {expected}" + (f"; did you mean {near[0]}?" if near else ""))
        return str(value)

    def target(self, path: str) -> Mapping[str, Any]:
        value = self.node(path)
        if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
            self._wrong(path, f"{path} needs a _target_, the dotted path of a class, for example models.MMIMDbFusionModel")
            return {}
        return value


def parse(tree: Mapping[str, Any]) -> RunConfig:
    """Check a resolved configuration (plain mappings) and give it types.

    Raises:
        ConfigError: one message that lists every problem found.
    """
    read = _Reader(tree)
    name = read.text("runtime.name", ("local", "superlink"))
    local = name == "local"
    runtime = RuntimeConfig(
        name=name,
        threads=read.integer("runtime.threads", 1),
        wait_seconds=read.number("runtime.wait_seconds", 0),
        round_seconds=read.number("runtime.round_seconds", 1),
        quorum=read.number("runtime.quorum", 0, 1),
        max_failed_rounds=read.integer("runtime.max_failed_rounds", 1),
        workers=read.optional_integer("runtime.workers", 0) if local else None,
        clients_at_once=read.integer("runtime.clients_at_once", 1) if local and "clients_at_once" in read.tree["runtime"] else 1,
        address="" if local else read.text("runtime.address"),
        external=False if local else read.flag("runtime.external"),
        stay=False if local else read.flag("runtime.stay"),
    )
    security = _security(read)
    if not local:
        _check_address(read, runtime.address, security)
    service = ServiceConfig(
        enabled=read.flag("service.enabled"),
        host=read.text("service.host"),
        port=read.integer("service.port", 0, 65535),
        token_file=None if read.node("service.token_file") is None else read.text("service.token_file"),
    )
    client = ClientConfig(
        enabled=read.flag("client.enabled"),
        autostart=read.flag("client.autostart"),
        host=read.text("client.host"),
        port=read.integer("client.port", 0, 65535),
    )
    _check_fronts(read, service, client, security)
    training = TrainingConfig(
        optimizer=read.text("training.optimizer", ("adamw", "adam", "sgd")),
        momentum=read.number("training.momentum", 0, 0.9999),
        weight_decay=read.number("training.weight_decay", 0),
        clip_norm=read.number("training.clip_norm", 0),
        evaluation_batch_size=read.optional_integer("training.evaluation_batch_size", 1),
        num_updates=read.optional_integer("training.num_updates", 1),
        tower_learning_rate=read.number("training.tower_learning_rate", 0),
        device=read.text("training.device"),
        amp=read.flag("training.amp"),
    )
    read.text("model_type", ("Pytorch",))
    after_round = read.node("hooks.after_round")
    config = RunConfig(
        random_seed=read.integer("random_seed", 0),
        learning_rate=read.number("learning_rate", 1e-12),
        num_epochs=read.integer("num_epochs", 1),
        batch_size=read.integer("batch_size", 1),
        num_rounds=read.integer("num_rounds", 1),
        clients_per_round=read.integer("clients_per_round", 0),
        num_clients=read.optional_integer("num_clients", 1),
        client_id=read.integer("client_id", 0),
        task_id=read.text("task_id"),
        training=training,
        runtime=runtime,
        service=service,
        client=client,
        security=security,
        model=read.target("model"),
        dataset=read.target("dataset"),
        strategy=read.target("server.strategy"),
        tracking=read.node("tracking") or {},
        compression=_compression(read) if "compression" in tree else Compression(),
        privacy=_privacy(read) if "privacy" in tree else NO_PRIVACY,
        defence=_defence(read) if "defence" in tree else Defence(),
        after_round=str(after_round) if after_round else None,
        name=read.name("name"),
        resume=read.text("resume") if "resume" in tree else "auto",
        keep_checkpoints=read.integer("keep_checkpoints", 0) if "keep_checkpoints" in tree else 2,
        keep_runs=read.integer("keep_runs", 1) if "keep_runs" in tree else 50,
        cache_gb=read.number("cache_gb", 0) if "cache_gb" in tree else 100.0,
        raw=tree,
    )
    if config.num_clients is not None and config.clients_per_round > config.num_clients:
        read.problems.append(
            f"clients_per_round={config.clients_per_round} is more than num_clients={config.num_clients}: "
            "no round could ever have that many; lower clients_per_round or raise num_clients"
        )
    if runtime.clients_at_once > 1 and (config.privacy.wanted or training.amp):
        other = "training.amp=true" if training.amp else f"privacy={config.privacy.name}"
        read.problems.append(f"runtime.clients_at_once={runtime.clients_at_once} and {other} do not go together; leave one of them out")
    if read.problems:
        raise ConfigError("the configuration has mistakes:\n" + "\n".join(f"  - {problem}" for problem in read.problems))
    return config


def _defence(read: _Reader) -> Defence:
    return Defence(
        max_bytes=read.optional_integer("defence.max_bytes", 1),
        max_examples=read.integer("defence.max_examples", 1),
        examples_growth=read.number("defence.examples_growth", 1),
        max_passes=read.number("defence.max_passes", 1),
        norm=read.text("defence.norm", NORMS),
        norm_factor=read.number("defence.norm_factor", 1),
        replay=read.text("defence.replay", REPLAYS),
        direction=read.text("defence.direction", DIRECTIONS),
        direction_limit=read.number("defence.direction_limit", -100, -0.001),
    )


def _security(read: _Reader) -> SecurityConfig:
    insecure = read.flag("security.insecure")
    given = read.tree.get("security")
    given = given if isinstance(given, Mapping) else {}
    folder = read.text("security.folder") if given.get("folder") is not None else None
    app = read.text("security.app", ("same", "server")) if "app" in given else "server"  # runs from before these keys have neither
    return SecurityConfig(insecure, folder, app)


def _privacy(read: _Reader) -> Privacy:
    return Privacy(
        name=read.text("privacy.name", OPTIONS),
        max_norm=read.number("privacy.max_norm", 1e-9),
        noise_multiplier=read.number("privacy.noise_multiplier", 1e-3, 1e6),
        delta=read.number("privacy.delta", 1e-30, 0.5),
        noise_seed=read.optional_integer("privacy.noise_seed", 0),
    )


def _compression(read: _Reader) -> Compression:
    settings = Compression(
        up=read.text("compression.up", UP),
        down=read.text("compression.down", DOWN),
        density=read.number("compression.density", 1e-6, 1),
        block=read.integer("compression.block", 8, 65536),
        smallest=read.integer("compression.smallest", 1),
        feedback=read.flag("compression.feedback"),
    )
    read.problems += settings.problems()
    return settings


def _check_address(read: _Reader, address: str, security: SecurityConfig) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        read.problems.append(f"runtime.address={address!r}: expected host:port, for example 127.0.0.1:8000")
        return
    if not is_loopback(host) and not security.insecure and not security.tls:
        read.problems.append(
            f"runtime.address={address!r} is not this machine, and the connection would be neither encrypted nor authenticated; "
            "use security=tls or 127.0.0.1, or say security.insecure=true if the network is trusted"
        )


def _check_fronts(read: _Reader, service: ServiceConfig, client: ClientConfig, security: SecurityConfig) -> None:
    allowed = security.insecure or security.tls
    if service.enabled and not is_loopback(service.host):
        if not allowed:
            read.problems.append(
                f"service.host={service.host!r} is not this machine alone, and the connection would not be encrypted; "
                "use security=tls or 127.0.0.1, or say security.insecure=true if the network is trusted"
            )
        if service.token_file is None:
            read.problems.append(f"service.host={service.host!r} would let everybody in without a token; give service.token_file")
    if client.enabled and not is_loopback(client.host) and not allowed:
        read.problems.append(
            f"client.host={client.host!r} is not this machine alone, and whoever reaches the port could start and stop this client; "
            "use security=tls or 127.0.0.1, or say security.insecure=true if the network is trusted"
        )
    if client.enabled and not is_loopback(client.host) and service.token_file is None:
        read.problems.append(f"client.host={client.host!r} would let everybody in without a token; give service.token_file")
    if not client.autostart and not client.enabled:
        read.problems.append(
            "client.autostart=false waits for POST /start, which client.enabled=false does not serve; set one of them to true"
        )


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def load(path: Path) -> RunConfig:
    """Read and check a resolved configuration that was written with `save`.

    Raises:
        ConfigError: the file is missing or is not such a configuration.
    """
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no configuration: expected a mapping of keys")
    return parse(tree)


def save(tree: Mapping[str, Any], path: Path) -> None:
    """Write a resolved configuration for `load`; it may hold secrets, so its owner alone can read it.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    import yaml

    text = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder") from error
