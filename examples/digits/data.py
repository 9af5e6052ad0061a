"""scikit-learn's 1,797 digits (8x8), cut into an upper and a lower half as if two sensors had each seen one."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits

from fedmap.data.base import Batch, Split
from fedmap.errors import DataError
from fedmap.randomness import generator


class DigitSplit:
    """Some of the digits; see `fedmap.data.base.Split` for what each attribute means."""

    def __init__(self, rows: np.ndarray, pixels: np.ndarray, digits: np.ndarray, has: tuple[bool, bool]) -> None:
        self.row_ids = [f"digit-{row}" for row in rows]
        self.pixels = torch.from_numpy(pixels[rows].astype(np.float32) / 16)  # [n, 8, 8], values in [0, 1]
        self.labels = np.eye(10, dtype=np.uint8)[digits[rows]]  # [n, 10]
        self.modalities = np.tile(np.array(has), (len(rows), 1))  # [n, 2]

    def __len__(self) -> int:
        return len(self.row_ids)

    def batch(self, rows: np.ndarray) -> Batch:
        """Upper halves [b, 32], lower halves [b, 32], which of them exist [b, 2], and one-hot labels [b, 10]."""
        pixels = self.pixels[rows]
        return {
            "upper": pixels[:, :4].flatten(1),
            "lower": pixels[:, 4:].flatten(1),
            "has": torch.from_numpy(self.modalities[rows]),
            "labels": torch.from_numpy(self.labels[rows]).float(),
        }


class DigitData:
    """Each client sees mostly a few of the digits; odd clients may lack the lower sensor.

    Args:
        num_clients: how many clients share the training rows, at least 1.
        alpha: of the Dirichlet distribution over digits; small is very uneven, large is even.
        one_sensor: whether odd clients have the upper sensor alone.
        seed: of the partition.
    """

    label_names: Sequence[str] = [str(digit) for digit in range(10)]
    modality_names: Sequence[str] = ["upper", "lower"]

    def __init__(self, num_clients: int = 4, alpha: float = 0.5, one_sensor: bool = False, seed: int = 42) -> None:
        if num_clients < 1:
            raise DataError(f"dataset.num_clients={num_clients}: expected at least 1")
        self.pixels, self.digits = load_digits(return_X_y=True)
        self.pixels = self.pixels.reshape(-1, 8, 8)
        self.one_sensor = one_sensor
        rng = generator(seed, purpose="digits")
        order = rng.permutation(len(self.digits))
        self._server = {"val": order[:200], "test": order[200:500]}
        parts: list[list[int]] = [[] for _ in range(num_clients)]
        for digit in range(10):
            rows = order[500:][self.digits[order[500:]] == digit]
            shares = rng.dirichlet(np.full(num_clients, alpha))
            for part, chunk in zip(parts, np.split(rows, (np.cumsum(shares)[:-1] * len(rows)).astype(int)), strict=True):
                part.extend(chunk.tolist())
        self._parts = [rng.permutation(np.array(part, dtype=int)) for part in parts]

    def client_ids(self) -> Sequence[int]:
        return range(len(self._parts))

    def client(self, client_id: int) -> Mapping[str, Split]:
        if client_id not in self.client_ids():
            raise DataError(f"there is no client {client_id}: expected client_id from 0 to {len(self._parts) - 1}")
        rows, has = self._parts[client_id], (True, not (self.one_sensor and client_id % 2 == 1))
        first, second = int(0.7 * len(rows)), int(0.8 * len(rows))
        cut = {"train": rows[:first], "val": rows[first:second], "test": rows[second:]}
        return {name: DigitSplit(part, self.pixels, self.digits, has) for name, part in cut.items()}

    def server(self) -> Mapping[str, Split]:
        return {name: DigitSplit(rows, self.pixels, self.digits, (True, True)) for name, rows in self._server.items()}
