"""Checks of one client's update against what the server sent, before it may touch the model."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from fedmap.errors import UpdateError
from fedmap.records import Broadcast, ClientUpdate
from fedmap.weights import Weights, is_float


def check_update(update: ClientUpdate, broadcast: Broadcast, expected: Collection[str] | None = None) -> None:
    """Refuse an update that does not fit the broadcast it answers.

    Args:
        update: what the client sent.
        broadcast: what the server sent.
        expected: the names that must come back; None means all that were sent. Algorithms that keep tensors on the client
            expect fewer.

    Raises:
        UpdateError: another round, missing, unknown, misshapen or mistyped arrays, numbers that are not finite.
    """
    who = f"client {update.client_id}"
    if update.round_index != broadcast.round_index:
        raise UpdateError(f"{who} answered round {update.round_index}, expected round {broadcast.round_index}")
    names = set(broadcast.weights) if expected is None else set(expected)
    missing, unknown = sorted(names - set(update.weights)), sorted(set(update.weights) - names)
    if missing or unknown:
        raise UpdateError(
            f"{who} sent other tensors than expected: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}"
        )
    _check_arrays(who, update.weights, broadcast.weights)
    for group, arrays in update.extras.items():
        _check_arrays(f"{who}, {group}", arrays, broadcast.weights)
    for name, value in update.scalars.items():
        if not np.isfinite(value):
            raise UpdateError(f"{who}: scalar {name!r} is {value}")


def _check_arrays(who: str, arrays: Weights, reference: Weights) -> None:
    for name, array in arrays.items():
        if name in reference:
            own = reference[name]
            if array.shape != own.shape or array.dtype != own.dtype:
                raise UpdateError(f"{who}: {name} is {array.dtype}{list(array.shape)}, expected {own.dtype}{list(own.shape)}")
        if is_float(array) and not np.isfinite(array).all():
            raise UpdateError(f"{who}: {name} holds NaN or infinite numbers; lower the learning rate or check the data")
