"""Hydra: YAML files and overrides to one tree. A typo names the nearest key."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

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
