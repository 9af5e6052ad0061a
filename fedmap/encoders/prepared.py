"""Splits of movies in the form a fusion model reads: token ids, or the cached features of frozen towers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from fedmap.data.base import Batch
from fedmap.data.cache import cached_arrays, content_key
from fedmap.encoders.image import ImageEncoder
from fedmap.encoders.text import TextEncoder, TinyTextEncoder
from fedmap.encoders.tokens import Ids, Tokenizer, pad

log = logging.getLogger("fedmap.encoders")

# Fixed, so that cached features do not depend on the run's batch size. Few images at a time stay in a processor's cache.
TEXT_BATCH = 32
CPU_IMAGE_BATCH, GPU_IMAGE_BATCH = 4, 64
TEXT, IMAGE = 0, 1  # columns of `Split.modalities`

Features = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Images(Protocol):
    """Decoded pictures uint8 [n, 3, S, S], read by indexing."""

    shape: tuple[int, ...]

    def __getitem__(self, rows: Rows) -> npt.NDArray[np.uint8]: ...


class RawSplit(Protocol):
    """The rows of `fedmap.data.movies.MovieSplit` that preparation reads; see there."""

    labels: npt.NDArray[np.uint8]
    modalities: npt.NDArray[np.bool_]
    row_ids: Sequence[str]
    texts: Sequence[str]
    images: Images
    fingerprint: str


class Tokens:
    """The token ids of n texts, end to end in one array."""

    def __init__(self, ids: Ids, ends: Rows, padding: int) -> None:
        self.ids, self.ends, self.padding = ids, ends, padding
        self.starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)

    @property
    def lengths(self) -> Rows:
        """[n] tokens per text; 0 where there is no text."""
        return self.ends - self.starts

    def batch(self, rows: Rows) -> Batch:
        """ "input_ids" and "attention_mask", int64 [B, L], where L is the batch's longest text."""
        ids, mask = pad([self.ids[self.starts[row] : self.ends[row]] for row in rows], self.padding)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


class PreparedSplit:
    """A `fedmap.data.base.Split` whose batches hold what the model's forward reads.

    "labels" float32 [B, C], "has_text" and "has_image" bool [B]; "input_ids" and "attention_mask" int64 [B, L] or
    "text_features" float32 [B, D]; "image" uint8 [B, 3, S, S] or "image_features" float32 [B, D]. Rows without a modality
    hold values that mean nothing.
    """

    def __init__(self, split: RawSplit, tokens: Tokens | None, text_features: Features | None, image_features: Features | None) -> None:
        self.labels, self.modalities, self.row_ids = split.labels, split.modalities, split.row_ids
        self._tokens, self._text_features, self._image_features = tokens, text_features, image_features
        self._images = split.images if image_features is None else None

    def __len__(self) -> int:
        return len(self.row_ids)

    def batch(self, rows: Rows) -> Batch:
        """The rows as tensors; see the class."""
        batch = {
            "labels": torch.from_numpy(self.labels[rows].astype(np.float32)),
            "has_text": torch.from_numpy(self.modalities[rows, TEXT]),
            "has_image": torch.from_numpy(self.modalities[rows, IMAGE]),
        }
        if self._tokens is not None:
            batch |= self._tokens.batch(rows)
        if self._text_features is not None:
            batch["text_features"] = torch.from_numpy(self._text_features[rows])
        if self._image_features is not None:
            batch["image_features"] = torch.from_numpy(self._image_features[rows])
        if self._images is not None:
            batch["image"] = torch.from_numpy(np.asarray(self._images[rows]))
        return batch


def prepare(
    split: RawSplit,
    cache_dir: Path,
    text: TextEncoder | TinyTextEncoder,
    image: ImageEncoder,
    *,
    text_frozen: bool,
    image_frozen: bool,
    device: torch.device,
) -> PreparedSplit:
    """Tokenise a split, or compute its features where a tower is frozen; each is done once and cached on disk.

    Args:
        split: rows of movies.
        cache_dir: folder of the cache.
        text: the text encoder.
        image: the image encoder.
        text_frozen: whether batches carry features instead of token ids.
        image_frozen: whether batches carry features instead of images.
        device: where features are computed.
    """
    tokens = text_features = image_features = None
    where = f"{device.type} {TEXT_BATCH} {_image_batch(device)}"
    if text_frozen:
        key = "text-features-" + content_key(split.fingerprint, text.fingerprint, where)
        text_features = cached_arrays(cache_dir, key, lambda: {"features": _text_features(split, cache_dir, text, device)})["features"]
    else:
        tokens = _tokens(split, cache_dir, text.tokenizer)
    if image_frozen:
        key = "image-features-" + content_key(split.fingerprint, image.fingerprint, where)
        image_features = cached_arrays(cache_dir, key, lambda: {"features": _image_features(split, image, device)})["features"]
    return PreparedSplit(split, tokens, text_features, image_features)


def _tokens(split: RawSplit, cache_dir: Path, tokenizer: Tokenizer) -> Tokens:
    def build() -> dict[str, npt.NDArray[np.generic]]:
        present = np.flatnonzero(split.modalities[:, TEXT])
        lengths = np.zeros(len(split.row_ids), dtype=np.int64)
        encoded = tokenizer.encode([split.texts[int(row)] for row in present])
        lengths[present] = [len(ids) for ids in encoded]
        return {"ids": np.concatenate([np.zeros(0, np.int32), *encoded]), "ends": np.cumsum(lengths)}

    arrays = cached_arrays(cache_dir, "tokens-" + content_key(split.fingerprint, tokenizer.fingerprint), build)
    return Tokens(arrays["ids"], np.asarray(arrays["ends"]), tokenizer.padding)


def _text_features(split: RawSplit, cache_dir: Path, encoder: TextEncoder | TinyTextEncoder, device: torch.device) -> Features:
    tokens = _tokens(split, cache_dir, encoder.tokenizer)
    present = np.flatnonzero(split.modalities[:, TEXT])
    by_length = present[np.argsort(tokens.lengths[present], kind="stable")]  # texts of a batch are then equally long: less padding

    def compute(rows: Rows) -> torch.Tensor:
        batch = tokens.batch(rows)
        return cast(torch.Tensor, encoder.frozen(device)(batch["input_ids"].to(device), batch["attention_mask"].to(device)))

    return _in_batches("texts", by_length, TEXT_BATCH, (len(split.row_ids), encoder.width), compute)


def _image_features(split: RawSplit, encoder: ImageEncoder, device: torch.device) -> Features:
    def compute(rows: Rows) -> torch.Tensor:
        images = torch.from_numpy(np.asarray(split.images[rows])).to(device).contiguous(memory_format=torch.channels_last)
        return cast(torch.Tensor, encoder.frozen(device)(images))

    present = np.flatnonzero(split.modalities[:, IMAGE])
    return _in_batches("images", present, _image_batch(device), (len(split.row_ids), encoder.width), compute)


def _image_batch(device: torch.device) -> int:
    return CPU_IMAGE_BATCH if device.type == "cpu" else GPU_IMAGE_BATCH


def _in_batches(what: str, rows: Rows, batch_size: int, shape: tuple[int, int], compute: Callable[[Rows], torch.Tensor]) -> Features:
    features = np.zeros(shape, dtype=np.float32)
    started = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            features[chosen] = compute(chosen).float().cpu().numpy()
    log.info("Computed the features of %d %s in %.1f s; they are cached.", len(rows), what, time.perf_counter() - started)
    return features
