"""Compression and the algorithms: what a client keeps of what it has not sent, and which algorithms that suits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedmap.aggregators.base import Aggregator
from fedmap.compression import Compression
from fedmap.errors import ConfigError
from fedmap.local.rules import Memory, make_rule
from fedmap.weights import Weights

_PREFIX = "not-sent."  # groups of a client's memory


def residuals_of(memory: Memory) -> dict[str, Weights]:
    """What the client has not sent yet, by group."""
    return {group.removeprefix(_PREFIX): arrays for group, arrays in memory.arrays.items() if group.startswith(_PREFIX)}


def with_residuals(memory: Memory, residuals: Mapping[str, Weights]) -> Memory:
    """The rule's memory, and beside it what the client has not sent yet."""
    if not residuals:
        return memory
    return replace(memory, arrays={**memory.arrays, **{f"{_PREFIX}{group}": arrays for group, arrays in residuals.items()}})


def check_compression(settings: Compression, aggregator: Aggregator[Any], rule: str) -> None:
    """Refuse a compression with which an algorithm would compute something else than it says.

    Args:
        settings: of the run.
        aggregator: the server's half.
        rule: the clients' half, by its name.

    Raises:
        ConfigError: says why, and what suits it.
    """
    suits = "choose compression=none, lossless, fp16 or int8 (without feedback)"
    if settings.up == "topk" and getattr(aggregator, "compares_coordinates", False):
        raise ConfigError(
            f"compression.up=topk leaves most numbers of a change out, each client others, and {_name(aggregator)} compares the clients "
            f"number by number, so that what is left out would count as no change; {suits}"
        )
    if (settings.up == "topk" or settings.feedback) and not make_rule(rule).starts_anew:
        raise ConfigError(
            f"compression.up={settings.up} with compression.feedback={str(settings.feedback).lower()} adds up the clients' changes since "
            f"each broadcast, and clients of {_name(aggregator)} go on from models of their own; {suits}"
        )


def _name(aggregator: object) -> str:
    return str(getattr(aggregator, "strategy", type(aggregator).__name__))
