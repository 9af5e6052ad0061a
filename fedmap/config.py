"""Configuration at the door: compose Hydra's YAML files and overrides, and name the nearest key for a typo."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmap.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

PROJECT = Path(__file__).resolve().parent.parent
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
    from omegaconf import OmegaConf

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
