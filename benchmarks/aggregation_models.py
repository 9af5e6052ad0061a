"""The tensors of the models whose aggregation is timed: names, shapes and dtypes, from the architectures themselves, without weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import nn

from fedmap.encoders.torchvision_repair import import_torchvision, import_transformers

LABELS = 23  # of MM-IMDb
TEXT, IMAGE = 768, 512  # widths of BERT-base and ResNet-18
Tensors = dict[str, tuple[tuple[int, ...], str]]

SIZES = {
    "1M": "the fusion head alone, both towers frozen",
    "11.4M": "ResNet-18 and a fusion head, the text tower frozen",
    "121M": "BERT-base, ResNet-18 and the fusion head",
}


@functools.cache
def tensors_of(size: str) -> Tensors:
    """The tensors that travel, by name, each with its shape and dtype."""
    with torch.device("meta"):
        if size == "1M":
            return dict(_named(_head(512, 512), ""))
        if size == "11.4M":
            return {**dict(_named(_resnet(), "image_tower.")), **dict(_named(_head(128, 256, text=384), ""))}
        return {**dict(_named(_bert(), "text_tower.")), **dict(_named(_resnet(), "image_tower.")), **dict(_named(_head(512, 256), ""))}


def _head(image: int, fused: int, text: int = TEXT) -> nn.Module:
    head = nn.ModuleDict(
        {
            "image_projection": nn.Linear(IMAGE, image),
            "fusion": nn.Linear(text + image, fused),
            "norm": nn.LayerNorm(fused),
            "classifier": nn.Linear(fused, LABELS),
        }
    )
    head.register_parameter("missing_text", nn.Parameter(torch.empty(text)))
    head.register_parameter("missing_image", nn.Parameter(torch.empty(image)))
    return head


def _resnet() -> nn.Module:
    import_torchvision()
    from torchvision.models import resnet18

    network = resnet18()
    network.fc = nn.Identity()
    return network


def _bert() -> nn.Module:
    import_transformers()
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig())


def _named(module: nn.Module, prefix: str) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    for name, tensor in module.state_dict().items():
        yield prefix + name, (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
