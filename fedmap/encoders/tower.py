"""What text and image encoders have in common: towers that are trained, and frozen ones that are loaded only when needed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import nn

FROZEN_SEED = 0


class Encoder:
    """A description of a tower that costs nothing until the tower is asked for. It is no `nn.Module` on purpose.

    A frozen tower held here is neither a parameter nor a buffer of the model: it is not trained, not sent, not put into
    training mode, and where all of its features lie in the cache it is not even read from disk.

    Attributes:
        width: length D of the feature vector.
        pretrained: whether the tower starts from weights of a file.
    """

    width: int
    pretrained: bool

    def build(self) -> nn.Module:
        """The tower with its starting weights, random ones drawn from torch's global generator."""
        raise NotImplementedError

    def settings(self) -> str:
        """Everything but the tower's weights that shapes the features."""
        raise NotImplementedError

    def weights(self) -> Path | None:
        """The file of the tower's pretrained weights."""
        raise NotImplementedError

    def trainable(self) -> nn.Module:
        """A tower to be trained. Reading pretrained weights leaves torch's generator where it was."""
        if not self.pretrained:
            return self.build()
        with _fixed_generator():
            return self.build()

    @cached_property
    def _frozen(self) -> nn.Module:
        # A frozen random tower is never sent, so it must be the same in every process. Tensors made in inference mode would be
        # unusable in training, and the first call may come from an evaluation.
        with _fixed_generator(), torch.inference_mode(False):
            tower = self.build().eval().requires_grad_(False)
            return tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # faster convolutions

    def frozen(self, device: torch.device) -> nn.Module:
        """The frozen tower on a device, in evaluation mode; read on the first call."""
        return self._frozen.to(device)

    @cached_property
    def identity(self) -> str:
        """Names the frozen tower: its weights and its settings, wherever it runs; needs no loaded tower."""
        file = self.weights()
        content = f"seed {FROZEN_SEED}" if file is None else sha256(file)
        return hashlib.sha256(f"{self.settings()}\n{content}".encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Names the frozen tower's features on this machine: other versions of torch round differently."""
        return hashlib.sha256(f"{self.identity}\n{torch.__version__}".encode()).hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, remembered for as long as the file stays the same."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _fixed_generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FROZEN_SEED)
        yield


@contextlib.contextmanager
def running_statistics(module: nn.Module, use: bool) -> Iterator[None]:
    """Have BatchNorm layers use their running statistics inside the block: those of a single row would be no statistics."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training] if use else []
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
