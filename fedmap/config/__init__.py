"""Configuration at the door: compose Hydra's YAML files and overrides, and parse them once into a typed `RunConfig`."""

from fedmap.config.composing import CONF, PROJECT, check_overrides, compose, compose_and_resolve
from fedmap.config.naming import run_folder
from fedmap.config.parsing import is_loopback, load, parse, save
from fedmap.config.typed import ClientConfig, RunConfig, RuntimeConfig, SecurityConfig, ServiceConfig, TrainingConfig

__all__ = [
    "CONF",
    "PROJECT",
    "ClientConfig",
    "RunConfig",
    "RuntimeConfig",
    "SecurityConfig",
    "ServiceConfig",
    "TrainingConfig",
    "check_overrides",
    "compose",
    "compose_and_resolve",
    "is_loopback",
    "load",
    "parse",
    "run_folder",
    "save",
]
