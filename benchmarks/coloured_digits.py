"""Coloured digits: a label that shape explains everywhere, and a colour that explains it better, but only where it was trained.

The construction is that of Arjovsky et al. (Invariant Risk Minimization, 2019, arXiv 1907.02893, section 5.2), with one environment
per client:

    class    binary: digit >= 5; 10 classes: the digit itself
    label    the class; with the task's label noise replaced by another class (0.25 in the source)
    colour   the label's own colour, with probability p_e (of the client's environment) one of the other labels' colours, uniformly
    input    the digit's grey values in the channels of that colour

A client's p_e is below one half: colour predicts the label there. The test split has p_e = 0.9: whoever relied on colour falls to 10 %.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedmap.data.base import Batch
from fedmap.errors import DataError

MNIST_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """Grey digits, apart in those for training and those for the test.

    Attributes:
        source: where they come from, for the record.
        train_images: [n, side, side] in [0, 1].
        train_digits: [n] in 0..9.
        test_images: [m, side, side] in [0, 1].
        test_digits: [m] in 0..9.
    """

    source: str
    train_images: FloatArray
    train_digits: IntArray
    test_images: FloatArray
    test_digits: IntArray


def load_digits(path: Path | None) -> Digits:
    """MNIST from an .npz file (or the folder that holds one), at 14 x 14; without a path scikit-learn's own 1,797 digits, 8 x 8.

    Raises:
        DataError: the file is missing or does not hold what is expected; the message says which array and how to mend it.
    """
    return _sklearn_digits() if path is None else _mnist(path)


def _sklearn_digits() -> Digits:
    from sklearn.datasets import load_digits as load

    bunch = load()
    images, digits = (bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(digits))
    train, test = order[:1300], order[1300:]
    return Digits("scikit-learn digits (1,797 of 8 x 8)", images[train], digits[train], images[test], digits[test])


def _mnist(path: Path) -> Digits:
    file = path
    if path.is_dir():
        found = sorted(path.glob("*.npz"))
        if len(found) != 1:
            raise DataError(
                f"{path}: expected exactly one .npz file with {', '.join(MNIST_ARRAYS)}, found {len(found)}; name the file itself"
            )
        file = found[0]
    if not file.is_file():
        raise DataError(f"{file}: no such file; --data takes an .npz file with the arrays {', '.join(MNIST_ARRAYS)}, or its folder")
    try:
        with np.load(file) as archive:
            missing = [name for name in MNIST_ARRAYS if name not in archive]
            if missing:
                raise DataError(f"{file}: lacks {', '.join(missing)}; it holds {', '.join(archive.files)}; rename or add the arrays")
            x_train, y_train, x_test, y_test = (archive[name] for name in MNIST_ARRAYS)
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{file}: not an .npz archive of plain arrays ({error}); save it with numpy.savez") from error
    for name, images, digits in (("train", x_train, y_train), ("test", x_test, y_test)):
        if images.ndim != 3 or images.shape[1:] != (28, 28) or images.dtype != np.uint8 or digits.shape != (len(images),):
            raise DataError(
                f"{file}: expected x_{name} as uint8 [n, 28, 28] and y_{name} as [n]; "
                f"got {images.dtype} {images.shape} and {digits.shape}; keep the raw grey values"
            )
        if len(digits) < 1000 or not np.array_equal(np.unique(digits), np.arange(10)):
            raise DataError(
                f"{file}: y_{name} must hold at least 1,000 digits and each of 0 to 9; got {len(digits)} of {np.unique(digits)}"
            )

    def small(images: npt.NDArray[np.uint8]) -> FloatArray:
        return (images[:, ::2, ::2] / np.float32(255)).astype(np.float32)

    return Digits(f"{file.name} (MNIST at 14 x 14)", small(x_train), y_train.astype(np.int64), small(x_test), y_test.astype(np.int64))


@dataclass(frozen=True)
class ColouredSplit:
    """Coloured digits as a split of the product: one-hot labels, so that micro-F1 is the accuracy.

    Attributes:
        inputs: [n, channels * side * side] float32 in [0, 1].
        labels: [n, C] uint8, one-hot, with the label noise.
        classes: [n] the classes without the label noise, which no training and no selection sees.
        modalities: [n, 1], all present.
        row_ids: the digits' places in their source.
    """

    inputs: torch.Tensor
    labels: npt.NDArray[np.uint8]
    classes: IntArray
    modalities: npt.NDArray[np.bool_]
    row_ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """Inputs [B, channels * side * side] and one-hot labels [B, C]."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return {"inputs": self.inputs, "labels": torch.from_numpy(self.labels.astype(np.float32))}
        return {"inputs": self.inputs[torch.from_numpy(rows)], "labels": torch.from_numpy(self.labels[rows].astype(np.float32))}

    def none(self) -> ColouredSplit:
        """A split of the same kind without rows."""
        return ColouredSplit(self.inputs[:0], self.labels[:0], self.classes[:0], self.modalities[:0], ())


def joined(splits: Sequence[ColouredSplit]) -> ColouredSplit:
    """The rows of all splits, in order."""
    return ColouredSplit(
        inputs=torch.cat([split.inputs for split in splits]),
        labels=np.concatenate([split.labels for split in splits]),
        classes=np.concatenate([split.classes for split in splits]),
        modalities=np.concatenate([split.modalities for split in splits]),
        row_ids=[f"{k}/{name}" for k, split in enumerate(splits) for name in split.row_ids],
    )


def palette(num_classes: int) -> FloatArray:
    """[C, channels] the classes' colours: red and green as two channels for two classes, else evenly spaced hues as RGB."""
    if num_classes == 2:
        return np.eye(2, dtype=np.float32)
    return np.array([colorsys.hsv_to_rgb(c / num_classes, 1.0, 1.0) for c in range(num_classes)], dtype=np.float32)


def coloured(
    images: FloatArray, digits: IntArray, rows: IntArray, num_classes: int, p_colour: float, label_noise: float, rng: np.random.Generator
) -> ColouredSplit:
    """The named rows, labelled and coloured as the module says.

    Args:
        images: [n, side, side] in [0, 1].
        digits: [n] in 0..9.
        rows: which of them.
        num_classes: 2 or 10.
        p_colour: probability in [0, 1] of another label's colour.
        label_noise: probability in [0, 1] of another class's label.
        rng: draws noise and colours.
    """
    classes = digits[rows] if num_classes == 10 else (digits[rows] >= 5).astype(np.int64)
    labels = _mostly_same(classes, label_noise, num_classes, rng)
    colours = palette(num_classes)[_mostly_same(labels, p_colour, num_classes, rng)]
    inputs = colours[:, :, None, None] * images[rows][:, None]
    return ColouredSplit(
        inputs=torch.from_numpy(inputs).flatten(start_dim=1),
        labels=np.eye(num_classes, dtype=np.uint8)[labels],
        classes=classes,
        modalities=np.ones((len(rows), 1), dtype=bool),
        row_ids=[str(row) for row in rows],
    )


def _mostly_same(values: IntArray, p_other: float, count: int, rng: np.random.Generator) -> IntArray:
    """The values, each replaced with probability p_other by one of the other count - 1 values."""
    shift = rng.integers(1, count, size=len(values))
    return np.where(rng.random(len(values)) < p_other, (values + shift) % count, values)


def partition(digits: IntArray, num_clients: int, two_digits: bool, rng: np.random.Generator) -> list[IntArray]:
    """The rows of each client: shuffled evenly, or two different digits to each client, every digit cut into equal shards.

    Args:
        digits: [n] in 0..9.
        num_clients: a multiple of 5 for two digits per client, so that every digit gives the same number of shards.
        two_digits: whether each client sees only two digits.
        rng: shuffles.
    """
    order = rng.permutation(len(digits))
    if not two_digits:
        return [np.sort(part) for part in np.array_split(order, num_clients)]
    per_digit = 2 * num_clients // 10
    shards = [(d, part) for d in range(10) for part in np.array_split(order[digits[order] == d], per_digit)]
    while True:  # a random pairing without a pair of equal digits; about one in three draws has none at 10 clients
        places = rng.permutation(len(shards)).reshape(num_clients, 2)
        if all(shards[a][0] != shards[b][0] for a, b in places):
            return [np.sort(np.concatenate([shards[a][1], shards[b][1]])) for a, b in places]


class DigitMLP(nn.Module):
    """Two hidden layers with ReLU, as in the source, and a softmax over the classes."""

    def __init__(self, num_inputs: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Linear(num_inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [B, C]."""
        logits: torch.Tensor = self.layers(batch["inputs"])
        return logits

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy with one-hot labels."""
        return nn.functional.cross_entropy(logits, batch["labels"])

    def decide(self, logits: FloatArray) -> npt.NDArray[np.bool_]:
        """[n, C], true at the largest logit."""
        return np.eye(self.num_classes, dtype=bool)[logits.argmax(axis=1)]
