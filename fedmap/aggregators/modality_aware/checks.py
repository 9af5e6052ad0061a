"""What clients say about themselves, checked by `fedmap.guard.signals`, as numbers to weight them by.

A signal that fails counts as the worst valid value of the round, never as the best; one that was not measured (None) counts
as the middle one. Where nobody sent a valid value all clients are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedmap.guard.signals import HIGHER, SHARE, SIGNALS, Signal, checked
from fedmap.records import ClientUpdate

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Claims:
    """The checked signals of a round.

    Attributes:
        values: by signal, [K] finite numbers in the order of the updates; a modality's share is under "share.<name>", a user's
            own signal under "custom.<name>".
        rejected: one sentence for each signal that was refused.
    """

    values: Mapping[str, FloatArray]
    rejected: tuple[str, ...]


def check_claims(updates: Sequence[ClientUpdate], custom: Mapping[str, str]) -> Claims:
    """Check every signal that features are made of.

    Args:
        updates: K updates.
        custom: the user's own signals by name, each with its good end, "higher" or "lower".
    """
    values: dict[str, FloatArray] = {}
    rejected: list[str] = []

    def add(key: str, signal: Signal, read: Callable[[ClientUpdate], object]) -> None:
        found = [checked(key, signal, read(update), update) for update in updates]
        rejected.extend(f"client {u.client_id}: {problem}" for u, (_, problem) in zip(updates, found, strict=True) if problem)
        values[key] = _filled([value for value, _ in found], [bool(problem) for _, problem in found], signal.better)

    for name, signal in SIGNALS.items():
        add(name, signal, lambda update, name=name: getattr(update.signals, name))  # type: ignore[misc]
    for name in sorted({name for update in updates for name in update.signals.modality_shares}):
        add(f"share.{name}", SHARE, lambda update, name=name: update.signals.modality_shares.get(name))  # type: ignore[misc]
    for name, better in custom.items():
        everything = Signal(-math.inf, math.inf, better)
        add(f"custom.{name}", everything, lambda update, name=name: update.signals.custom.get(name))  # type: ignore[misc]
    return Claims(values, tuple(rejected))


def _filled(values: Sequence[float | None], bad: Sequence[bool], better: str) -> FloatArray:
    valid = [value for value in values if value is not None]
    if not valid:
        return np.zeros(len(values))
    worst = min(valid) if better == HIGHER else max(valid)
    middle = float(np.median(valid))
    return np.array([value if value is not None else worst if is_bad else middle for value, is_bad in zip(values, bad, strict=True)])
