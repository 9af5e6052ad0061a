"""What clients say about themselves, checked: type, range, finite, and in agreement with the counts sent beside it.

A signal that fails counts as the worst valid value of the round, never as the best; one that was not measured (None) counts
as the middle one. Where nobody sent a valid value all clients are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedmap.records import ClientUpdate

FloatArray = npt.NDArray[np.float64]

HIGHER, LOWER = "higher", "lower"  # which end of a signal is the good one


@dataclass(frozen=True)
class Signal:
    """A signal's valid range and its good end."""

    least: float
    most: float
    better: str


SIGNALS: Mapping[str, Signal] = {
    "f1_before": Signal(0, 1, HIGHER),
    "f1_after": Signal(0, 1, HIGHER),
    "validation_loss": Signal(0, math.inf, LOWER),
    "gradient_norm": Signal(0, math.inf, LOWER),
    "label_imbalance": Signal(0, 1, LOWER),
    "diversity": Signal(0, 1, HIGHER),
    "share_complete": Signal(0, 1, HIGHER),
}
SHARE = Signal(0, 1, HIGHER)

_COUNTS = {"f1_before": "val-before", "f1_after": "val-after"}  # whose macro-F1 the signal has to be


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
        found = [_checked(key, signal, read(update), update) for update in updates]
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


def _checked(name: str, signal: Signal, value: object, update: ClientUpdate) -> tuple[float | None, str]:
    """The value, or None and what is wrong with it; None and nothing where it was not measured."""
    if value is None:
        return None, ""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        return None, f"{name} is {value!r:.40}, not a number"
    number = float(value)
    if not math.isfinite(number):
        return None, f"{name} is {number}"
    if not signal.least <= number <= signal.most:
        return None, f"{name}={number:g} is outside [{signal.least:g}, {signal.most:g}]"
    counts = update.counts.get(_COUNTS.get(name, ""))
    if counts is not None and abs(counts.macro_f1 - number) > 1e-6:
        return None, f"{name}={number:.4f}, but the counts sent with it give {counts.macro_f1:.4f}"
    return number, ""


def _filled(values: Sequence[float | None], bad: Sequence[bool], better: str) -> FloatArray:
    valid = [value for value in values if value is not None]
    if not valid:
        return np.zeros(len(values))
    worst = min(valid) if better == HIGHER else max(valid)
    middle = float(np.median(valid))
    return np.array([value if value is not None else worst if is_bad else middle for value, is_bad in zip(values, bad, strict=True)])
