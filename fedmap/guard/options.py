"""How strict the server is with updates; the section `defence` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass

NORMS = ("clip", "reject", "off")
REPLAYS = ("reject", "off")
DIRECTIONS = ("off", "reject")


@dataclass(frozen=True)
class Defence:
    """The limits of the ladder that every update climbs. What needs no limit (names, shapes, finite numbers) is always checked.

    Attributes:
        max_bytes: of one update; None: what the model and the strategy's extra arrays take, and 1 MiB for everything else.
        max_examples: the most training rows that a client may say it has, >= 1.
        examples_growth: how many times the rows that it first said a client that joins again may have, >= 1.
        max_passes: the most optimiser steps per training row, >= 1.
        norm: what becomes of a change that is larger than `norm_factor` times the usual one: "clip" scales it down, "reject"
            refuses it, "off" lets it pass.
        norm_factor: see `norm`, >= 1.
        replay: whether an update that has been counted already is refused.
        direction: whether clients are refused whose changes point away from the others', where at least five answer.
        direction_limit: how far: cosines with the others' mean direction, summed over rounds, below which it happens; < 0.
    """

    max_bytes: int | None = None
    max_examples: int = 10_000_000
    examples_growth: float = 2.0
    max_passes: float = 1000.0
    norm: str = "clip"
    norm_factor: float = 3.0
    replay: str = "reject"
    direction: str = "reject"
    direction_limit: float = -0.3


OFF = Defence(norm="off", replay="off", direction="off")
