"""Normalisation of the fused vector."""

from __future__ import annotations

import math

import torch
from torch import nn

FUSION_NORMS = ("layer", "batch", "group")


class BatchNorm1d(nn.BatchNorm1d):
    """BatchNorm that takes a training batch of one row by its running statistics, where torch's own raises."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, F] to [B, F]."""
        if self.training and len(input) == 1:
            return nn.functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


def fusion_norm(name: str, width: int) -> nn.Module:
    """The norm layer over vectors [B, width] by its name in `FUSION_NORMS`; "group" makes up to 8 groups."""
    if name == "batch":
        return BatchNorm1d(width)
    return nn.LayerNorm(width) if name == "layer" else nn.GroupNorm(math.gcd(8, width), width)
