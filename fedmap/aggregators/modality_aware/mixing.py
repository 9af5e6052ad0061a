"""Weights per client and, where the model says which part belongs to which modality, per modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmap.weights import Layout, Weights, weighted_sum

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mix:
    """Weights on the simplex over the K clients.

    Attributes:
        shares: [K] for every part of the model that belongs to no modality.
        by_modality: [K] for the parts of one modality; a modality that is not named here takes `shares`.
    """

    shares: FloatArray
    by_modality: Mapping[str, FloatArray] = field(default_factory=dict)

    def key(self) -> bytes:
        """Names the mix."""
        parts = [b"", self.shares.tobytes()]
        for name, shares in sorted(self.by_modality.items()):
            parts += [name.encode(), shares.tobytes()]
        return b"|".join(parts)


def apply_mix(models: Sequence[Weights], mix: Mix, layout: Layout) -> dict[str, Any]:
    """The mixed model. Clients whose weight is zero are not looked at.

    With the size-weighted shares and no modalities this is FedAvg, bit for bit.
    """
    return _mixed(models, mix.shares)


def _mixed(models: Sequence[Weights], shares: FloatArray) -> dict[str, Any]:
    used = [k for k, share in enumerate(shares) if share > 0]
    return weighted_sum([models[k] for k in used], [float(shares[k]) for k in used])
