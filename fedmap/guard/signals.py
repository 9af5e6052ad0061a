"""What a client may say about itself: each signal's range, and whether the counts sent beside it agree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fedmap.records import ClientUpdate

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
EVERYTHING = Signal(-math.inf, math.inf, HIGHER)

_COUNTS = {"f1_before": "val-before", "f1_after": "val-after"}  # whose macro-F1 the signal has to be


def checked(name: str, signal: Signal, value: object, update: ClientUpdate) -> tuple[float | None, str]:
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


def problems_of(update: ClientUpdate) -> Iterator[str]:
    """A sentence for each signal that no strategy should believe."""
    signals = update.signals
    values: dict[str, tuple[Signal, object]] = {name: (signal, getattr(signals, name)) for name, signal in SIGNALS.items()}
    values |= {name: (Signal(0, math.inf, LOWER), getattr(signals, name)) for name in ("train_loss", "update_norm")}
    values |= {f"share.{name}": (SHARE, value) for name, value in signals.modality_shares.items()}
    values |= {f"custom.{name}": (EVERYTHING, value) for name, value in signals.custom.items()}
    for name, (signal, value) in values.items():
        _, problem = checked(name, signal, value, update)
        if problem:
            yield problem
