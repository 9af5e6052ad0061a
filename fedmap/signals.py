"""What a client measures about itself, from quantities that training produced anyway: no second pass over the data.

Ranges and units stand in `fedmap.records.ClientSignals`, what each gives away in docs/algorithms/modality_aware.md. Label signals come
from the label matrix; no image is decoded for them. Add one of your own in flclient_patch.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedmap.data.base import Split


def label_imbalance(labels: npt.NDArray[np.uint8]) -> float:
    """1 - H(p)/log C over the label counts of [n, C] labels, in [0, 1]; 0 is balanced, 1 is a single label."""
    counts = labels.sum(axis=0, dtype=np.float64)
    if labels.shape[1] < 2 or counts.sum() == 0:
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return float(min(max(1.0 + (shares * np.log(shares)).sum() / math.log(labels.shape[1]), 0.0), 1.0))


def diversity(labels: npt.NDArray[np.uint8]) -> float:
    """The share of the C labels that occur at least once in [n, C] labels, in [0, 1]."""
    return float((labels.sum(axis=0) > 0).mean()) if labels.size else 0.0


def modality_shares(split: Split, names: Sequence[str]) -> tuple[dict[str, float], float]:
    """For each modality the share of rows that have it, and the share of rows that have all of them."""
    present = split.modalities
    return {name: float(present[:, i].mean()) for i, name in enumerate(names)}, float(present.all(axis=1).mean())


@dataclass(frozen=True)
class RowFacts:
    """What is told of a split's rows, whatever the model: see the attributes of the same names in `fedmap.records.ClientSignals`."""

    label_imbalance: float
    diversity: float
    modality_shares: Mapping[str, float]
    share_complete: float

    @staticmethod
    def of(split: Split, names: Sequence[str]) -> RowFacts:
        """The facts of a split with these modalities."""
        return RowFacts(label_imbalance(split.labels), diversity(split.labels), *modality_shares(split, names))
