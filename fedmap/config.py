"""Configuration at the door: compose Hydra's YAML files and overrides, and parse them once into a typed `RunConfig`.

A typo names the nearest key; contradictions and values out of range are all collected before anything is raised.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from fedmap.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

PROJECT = Path(__file__).resolve().parent.parent
CONF = PROJECT / "conf"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def run_folder(name: object, resume: object, now: str) -> str:
    """The folder of a run, below the working folder: the one to resume, else that of its name, else a new one."""
    if resume not in RESUME_WORDS:
        return str(resume)
    return f"outputs/{now if name is None else name}"


RESUME_WORDS = ("auto", "never")
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


def _problem_of_name(name: object) -> str:
    if _NAME.fullmatch(str(name)) and name != "clients":  # outputs/clients holds the clients' logs
        return ""
    return f"name={name!r}: use letters, digits, '.', '_' and '-' alone, starting with a letter or digit, and not 'clients'"


def compose(config_name: str, overrides: Sequence[str] = (), conf: Path = CONF) -> DictConfig:
    """The configuration `conf/<config_name>.yaml` with command-line overrides such as "batch_size=64".

    Raises:
        ConfigError: an override names a key, a group or an option that does not exist; the nearest one is named.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf), version_base="1.3"):
            known = hydra_compose(config_name, [o for o in overrides if _is_group(o, conf)])
            for override in overrides:
                if not _is_group(override, conf):
                    _check_key(override, known, conf)
            return hydra_compose(config_name, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error


def _explain(error: Exception) -> str:
    causes = [str(error)]
    if error.__cause__ is not None:
        causes.append(str(error.__cause__))
    return "the configuration cannot be composed: " + " ".join(line.strip() for line in "\n".join(causes).splitlines())


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def _is_group(override: str, conf: Path) -> bool:
    group, value = _key(override), override.partition("=")[2]
    if not (conf / group).is_dir():
        return False
    options = sorted(path.stem for path in (conf / group).glob("*.yaml"))
    if value not in options and value not in ("null", ""):
        near = difflib.get_close_matches(value, options, n=1)
        hint = f"; did you mean {group}={near[0]}?" if near else ""
        raise ConfigError(f"{override!r}: {group} has no option {value!r}, expected one of {options}{hint}")
    return True


def _check_key(override: str, known: DictConfig, conf: Path) -> None:
    if "=" not in override and not override.startswith("~"):
        raise ConfigError(f"{override!r} is not an override; write key=value, for example batch_size=64")
    if override.startswith(("+", "hydra.")):
        return
    key = _key(override)
    keys = set(_keys(OmegaConf.to_container(known, resolve=False)))
    if key in keys:
        return
    groups = {path.name for path in conf.iterdir() if path.is_dir()}
    near = difflib.get_close_matches(key, sorted(keys | groups), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(sorted(k for k in keys if '.' not in k))}"
    raise ConfigError(f"{override!r}: there is no key {key!r}; {hint} To add a new key on purpose, write +{override}")


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            path = f"{prefix}{name}"
            yield path
            yield from _keys(value, f"{path}.")


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
    model: Mapping[str, Any]
    dataset: Mapping[str, Any]
    strategy: Mapping[str, Any]
    tracking: Mapping[str, Any]
    after_round: str | None
    name: str | None
    resume: str
    keep_checkpoints: int
    raw: Mapping[str, Any]


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
        if problem := _problem_of_name(value):
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
        address="" if local else read.text("runtime.address"),
        external=False if local else read.flag("runtime.external"),
        stay=False if local else read.flag("runtime.stay"),
    )
    insecure = read.flag("security.insecure")
    if not local:
        _check_address(read, runtime.address, insecure)
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
    _check_fronts(read, service, client, insecure)
    training = TrainingConfig(
        optimizer=read.text("training.optimizer", ("adamw", "adam", "sgd")),
        momentum=read.number("training.momentum", 0, 0.9999),
        weight_decay=read.number("training.weight_decay", 0),
        clip_norm=read.number("training.clip_norm", 0),
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
        model=read.target("model"),
        dataset=read.target("dataset"),
        strategy=read.target("server.strategy"),
        tracking=read.node("tracking") or {},
        after_round=str(after_round) if after_round else None,
        name=read.name("name"),
        resume=read.text("resume") if "resume" in tree else "auto",
        keep_checkpoints=read.integer("keep_checkpoints", 0) if "keep_checkpoints" in tree else 2,
        raw=tree,
    )
    if config.num_clients is not None and config.clients_per_round > config.num_clients:
        read.problems.append(
            f"clients_per_round={config.clients_per_round} is more than num_clients={config.num_clients}: "
            "no round could ever have that many; lower clients_per_round or raise num_clients"
        )
    if read.problems:
        raise ConfigError("the configuration has mistakes:\n" + "\n".join(f"  - {problem}" for problem in read.problems))
    return config


def _check_address(read: _Reader, address: str, insecure: bool) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        read.problems.append(f"runtime.address={address!r}: expected host:port, for example 127.0.0.1:8000")
        return
    if not is_loopback(host) and not insecure:
        read.problems.append(
            f"runtime.address={address!r} is not this machine, and the connection would be neither encrypted nor authenticated; "
            "use 127.0.0.1, or say security.insecure=true if the network is trusted"
        )


def _check_fronts(read: _Reader, service: ServiceConfig, client: ClientConfig, insecure: bool) -> None:
    if service.enabled and not is_loopback(service.host):
        if not insecure:
            read.problems.append(
                f"service.host={service.host!r} is not this machine alone, and the connection would not be encrypted; "
                "use 127.0.0.1, or say security.insecure=true if the network is trusted"
            )
        if service.token_file is None:
            read.problems.append(f"service.host={service.host!r} would let everybody in without a token; give service.token_file")
    if client.enabled and not is_loopback(client.host) and not insecure:
        read.problems.append(
            f"client.host={client.host!r} is not this machine alone, and whoever reaches the port could start and stop this client; "
            "use 127.0.0.1, or say security.insecure=true if the network is trusted"
        )
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


def compose_and_resolve(config_name: str, overrides: Sequence[str] = (), conf: Path = CONF) -> dict[str, Any]:
    """`compose`, with every interpolation resolved, as plain mappings."""
    return cast(dict[str, Any], OmegaConf.to_container(compose(config_name, overrides, conf), resolve=True))


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


def _check_folder(known: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a folder to resume that holds no run, and one that cannot be written, before anything is made there."""
    if known.name is not None and (problem := _problem_of_name(known.name)):
        raise ConfigError(problem)
    resume = str(known.resume)
    if resume not in RESUME_WORDS and not (Path(resume) / "config.yaml").is_file():
        raise ConfigError(f"resume={resume}: there is no run in this folder; expected auto, never or a run's folder in outputs/")
    given = [override.partition("=")[2] for override in overrides if _key(override) == "hydra.run.dir"]
    place = Path(given[-1].strip("'\"") if given else run_folder(known.name, resume, "")).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{place} cannot be written: it is no folder, or read-only, or not yours; start in another folder, or set hydra.run.dir"
        )


def check_overrides(argv: Sequence[str], config_name: str = "config") -> None:
    """Before Hydra takes over: end the process with a sentence that names the nearest key if an override is mistaken."""
    import sys

    if {"-m", "--multirun"} & set(argv):
        return  # a sweep gives several values to a key; Hydra takes it apart
    overrides = [argument for argument in argv[1:] if not argument.startswith("-")]
    try:
        known = compose(config_name, overrides)
        if config_name == "config":  # before Hydra makes the folder
            _check_folder(known, overrides)
    except ConfigError as error:
        sys.exit(f"{Path(argv[0]).name}: {error}")
