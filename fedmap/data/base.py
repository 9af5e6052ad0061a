"""What training needs to know of data: a split gives batches, labels and which modality each row has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

Batch = dict[str, torch.Tensor]


@runtime_checkable
class Split(Protocol):
    """n rows of one split (train, val or test) of one client or of the server.

    Attributes:
        labels: [n, C] uint8, 1 where the label applies. Known without decoding anything.
        modalities: [n, M] bool, which of the federation's modalities each row has.
        row_ids: n names of rows, unique within the split.
    """

    labels: npt.NDArray[np.uint8]
    modalities: npt.NDArray[np.bool_]
    row_ids: Sequence[str]

    def __len__(self) -> int: ...

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """The rows as tensors ready for the model; "labels" is float32 [len(rows), C]."""
        ...


class FederatedData(Protocol):
    """All data that one process may see: one client's rows, or the server's.

    Attributes:
        label_names: the C labels in the order of the model's outputs.
        modality_names: the M modalities in the order of `Split.modalities`, e.g. ("text", "image").
    """

    label_names: Sequence[str]
    modality_names: Sequence[str]

    def client_ids(self) -> Sequence[int]:
        """The clients whose rows lie on this machine, ascending."""
        ...

    def client(self, client_id: int) -> Mapping[str, Split]:
        """The client's "train", "val" and "test" splits; "val" or "test" may have no rows."""
        ...

    def server(self) -> Mapping[str, Split]:
        """The server's "val" (guides the aggregation) and "test" (is only reported) splits.

        Where a server may have no rows at all, a further method `has_server() -> bool` says so.
        """
        ...
