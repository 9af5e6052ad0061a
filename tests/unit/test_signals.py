"""What a client says about itself: balance, diversity and modalities by hand."""

import math

import numpy as np
import pytest

from fedmap.signals import diversity, label_imbalance, modality_shares
from tests.toys import Rows


def labels(*counts: int) -> np.ndarray:
    return np.concatenate([np.tile(np.eye(len(counts), dtype=np.uint8)[i], (count, 1)) for i, count in enumerate(counts)])


def test_balance_by_hand() -> None:
    assert label_imbalance(labels(5, 5, 5, 5)) == pytest.approx(0.0, abs=1e-12)
    assert label_imbalance(labels(9, 0, 0, 0)) == pytest.approx(1.0)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert label_imbalance(labels(3, 1)) == pytest.approx(1 - entropy / math.log(2))
    assert label_imbalance(labels(1, 0, 0)) > label_imbalance(labels(8, 1, 1)) > label_imbalance(labels(4, 3, 3))


def test_balance_counts_labels_and_not_rows() -> None:
    both = np.ones((4, 2), dtype=np.uint8)
    assert label_imbalance(both) == pytest.approx(0.0, abs=1e-12)


def test_nothing_to_balance() -> None:
    assert label_imbalance(np.zeros((3, 4), dtype=np.uint8)) == 0.0
    assert label_imbalance(np.ones((3, 1), dtype=np.uint8)) == 0.0


def test_many_rows_do_not_overflow_the_uint8_labels() -> None:
    assert label_imbalance(labels(600, 200)) == pytest.approx(label_imbalance(labels(3, 1)))


def test_diversity_is_the_share_of_labels_seen() -> None:
    assert diversity(labels(3, 0, 1, 0)) == 0.5
    assert diversity(np.zeros((0, 4), dtype=np.uint8)) == 0.0
    assert diversity(labels(256, 256)) == 1.0


def test_modalities_by_row() -> None:
    split = Rows(labels=np.ones((4, 1)))
    split.modalities = np.array([[True, True], [True, False], [True, False], [False, True]])
    shares, complete = modality_shares(split, ["text", "image"])
    assert shares == {"text": 0.75, "image": 0.5}
    assert complete == 0.25
