"""A small fusion model for the two halves of a digit, with one label per row."""

import numpy as np
import torch
from torch import nn

from fedmap.data.base import Batch


class TwoSensorNet(nn.Module):
    """One linear tower per sensor, concatenated; a learnt vector stands in for a missing sensor.

    Args:
        hidden: width of each tower.
        output_size: number of digits; null in the configuration means as many as the data has.
    """

    def __init__(self, hidden: int = 32, output_size: int = 10) -> None:
        super().__init__()
        self.upper = nn.Linear(32, hidden)
        self.lower = nn.Linear(32, hidden)
        self.missing = nn.Parameter(torch.zeros(2, hidden))
        self.head = nn.Sequential(nn.LayerNorm(2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, output_size))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [b, 10]."""
        has = batch["has"]
        upper = torch.where(has[:, :1], self.upper(batch["upper"]), self.missing[0])
        lower = torch.where(has[:, 1:], self.lower(batch["lower"]), self.missing[1])
        return self.head(torch.cat([upper, lower], dim=1))

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross-entropy: exactly one label per row."""
        return nn.functional.cross_entropy(logits, batch["labels"].argmax(dim=1))

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """The most likely digit, as one-hot booleans [n, 10]; micro-F1 is then the accuracy."""
        return np.eye(logits.shape[1], dtype=bool)[logits.argmax(axis=1)]
