"""Hydra: YAML files and overrides to one tree. A typo names the nearest key."""

from __future__ import annotations

import atexit
import difflib
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from fedmap.config.bare import completed, is_bare
from fedmap.config.naming import RESUME_WORDS, problem_of_name, run_folder
from fedmap.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

PROJECT = Path(__file__).resolve().parent.parent.parent
CONF = PROJECT / "conf"


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
        groups = [override for override in overrides if _is_group(override, conf)]
        with ExitStack() as stack:
            folder, more = stack.enter_context(completed(conf, [_key(override) for override in groups])) if is_bare(conf) else (conf, [])
            stack.enter_context(initialize_config_dir(config_dir=str(folder), version_base="1.3"))
            known = hydra_compose(config_name, [*more, *groups])
            for override in overrides:
                if not _is_group(override, conf):
                    _check_key(override, known, conf)
            return hydra_compose(config_name, [*more, *overrides])
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


def compose_and_resolve(config_name: str, overrides: Sequence[str] = (), conf: Path = CONF) -> dict[str, Any]:
    """`compose`, with every interpolation resolved, as plain mappings."""
    return cast(dict[str, Any], OmegaConf.to_container(compose(config_name, overrides, conf), resolve=True))


def _check_folder(known: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a folder to resume that holds no run, and one that cannot be written, before anything is made there."""
    if known.name is not None and (problem := problem_of_name(known.name)):
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


_UNTIL_EXIT = ExitStack()
atexit.register(_UNTIL_EXIT.close)
_WITH_VALUE = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")


def check_overrides(argv: list[str], config_name: str = "config") -> None:
    """Before Hydra takes over: end the process with a sentence that names the nearest key if an override is mistaken.

    A conf/config.yaml that only names keys, like FedOps', is completed: Hydra is told so by arguments added to `argv`.
    """
    import sys

    overrides = [
        argument
        for before, argument in itertools.pairwise(argv)
        if not argument.startswith("-") and before not in _WITH_VALUE and not before.startswith("--experimental")
    ]
    sweep = bool({"-m", "--multirun"} & set(argv))  # gives several values to a key; Hydra takes it apart
    try:
        if not sweep:
            known = compose(config_name, overrides)
            if config_name == "config":  # before Hydra makes the folder
                _check_folder(known, overrides)
        if config_name != "data_preparation" and is_bare(CONF):
            chosen = [_key(override) for override in overrides]
            folder, more = _UNTIL_EXIT.enter_context(completed(CONF, chosen))
            place = argv.index(overrides[0]) if overrides else len(argv)  # Hydra wants all overrides in a row
            argv[place:place] = more
            argv[1:1] = ["--config-path", str(folder)]
    except ConfigError as error:
        sys.exit(f"{Path(argv[0]).name}: {error}")
