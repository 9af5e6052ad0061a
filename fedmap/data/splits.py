"""The rows of one split of movies, and a view of the decoded posters that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedmap.data.base import Batch
from fedmap.data.cache import content_key

MODALITIES = ("text", "image")


class PosterView:
    """Posters [n, 3, S, S] uint8 chosen from a larger array on disk, which stays there until rows are asked for.

    It is indexed like an array along its first axis (position, slice, or positions); `np.asarray` reads all of it.
    """

    def __init__(self, store: npt.NDArray[np.uint8], positions: npt.NDArray[np.int64]) -> None:
        """View posters.

        Args:
            store: [m, 3, S, S] uint8.
            positions: [n], which poster of the store each row has; -1 for none, which reads as zeros.
        """
        self._store = store
        self._positions = positions
        self.shape = (len(positions), *store.shape[1:])
        self.dtype = store.dtype
        self.ndim = store.ndim

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, rows: Any) -> npt.NDArray[np.uint8]:
        positions = np.asarray(self._positions[rows])
        absent = positions < 0
        if absent.all():  # also where the store has no poster at all
            return np.zeros((*positions.shape, *self.shape[1:]), np.uint8)
        images = np.asarray(self._store[np.where(absent, 0, positions)])
        if not images.flags.writeable:  # one row, which the index above did not copy
            return images.copy()
        images[absent] = 0
        return images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def take(self, rows: npt.NDArray[np.int64]) -> PosterView:
        return PosterView(self._store, self._positions[rows])


class MovieSplit:
    """n movies of one split; a `fedmap.data.base.Split` that a model's `prepare` adds tokens or features to.

    Attributes:
        labels: [n, C] uint8.
        modalities: [n, 2] bool, has text and has image.
        row_ids: n names, unique within the split: the poster's name, or "text-..." for a movie without one.
        texts: n plots, "" where absent.
        images: [n, 3, S, S] uint8 RGB, read from disk by indexing; rows without a poster read as zeros and mean nothing.
        fingerprint: hex digits of everything above, for the keys of caches.
    """

    def __init__(
        self,
        *,
        labels: npt.NDArray[np.uint8],
        modalities: npt.NDArray[np.bool_],
        row_ids: Sequence[str],
        texts: Sequence[str],
        images: PosterView,
        fingerprint: str,
    ) -> None:
        lengths = {len(labels), len(modalities), len(row_ids), len(texts), len(images)}
        assert len(lengths) == 1, f"the parts of a split differ in length: {lengths}"
        self.labels = labels
        self.modalities = modalities
        self.row_ids = list(row_ids)
        self.texts = list(texts)
        self.images = images
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.row_ids)

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> MovieSplit:
        """The split of these rows, in this order."""
        chosen = np.asarray(rows, dtype=np.int64)
        return MovieSplit(
            labels=self.labels[chosen],
            modalities=self.modalities[chosen],
            row_ids=[self.row_ids[row] for row in chosen],
            texts=[self.texts[row] for row in chosen],
            images=self.images.take(chosen),
            fingerprint=content_key(self.fingerprint, chosen),
        )

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """ "image" uint8 [B, 3, S, S], "has_text" and "has_image" bool [B], "labels" float32 [B, C]."""
        return {
            "image": torch.from_numpy(self.images[rows]),
            "has_text": torch.from_numpy(self.modalities[rows, 0]),
            "has_image": torch.from_numpy(self.modalities[rows, 1]),
            "labels": torch.from_numpy(self.labels[rows].astype(np.float32)),
        }
