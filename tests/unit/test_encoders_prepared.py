"""Preparing a split: tokens and features are computed once, by row, whatever the batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedmap.encoders import prepared
from fedmap.encoders.image import ImageEncoder
from fedmap.encoders.prepared import PreparedSplit, prepare
from fedmap.encoders.text import make_text_encoder

CPU = torch.device("cpu")


class Rows:
    """Seven rows: both, both, text only, image only, neither, both, both. Absent modalities hold junk."""

    fingerprint = "seven-rows"
    modalities = np.array([[1, 1], [1, 1], [1, 0], [0, 1], [0, 0], [1, 1], [1, 1]], dtype=bool)

    def __init__(self) -> None:
        self.row_ids = [f"row-{i}" for i in range(7)]
        self.texts = ["a b c d e", "a b", "a", "junk " * 50, "junk", "c", "e f g"]
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, 2, (7, 3), dtype=np.uint8)
        self.images = rng.integers(0, 256, (7, 3, 16, 16), dtype=np.uint8)

    def __len__(self) -> int:
        return 7


def prepared_rows(cache: Path, *, text_frozen: bool = False, image_frozen: bool = False, rows: Rows | None = None) -> PreparedSplit:
    text, image = make_text_encoder("tiny"), ImageEncoder("tiny", pretrained=False)
    return prepare(rows or Rows(), cache, text, image, text_frozen=text_frozen, image_frozen=image_frozen, device=CPU)


def test_tokens_pad_to_the_longest_text_of_the_batch_alone(tmp_path: Path) -> None:
    split = prepared_rows(tmp_path)
    batch = split.batch(np.array([1, 2]))
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "labels": (2, 3),
        "has_text": (2,),
        "has_image": (2,),
        "input_ids": (2, 3),
        "attention_mask": (2, 3),
        "image": (2, 3, 16, 16),
    }
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["input_ids"].dtype == torch.int64
    assert batch["labels"].dtype == torch.float32
    assert split.batch(np.array([3, 4]))["attention_mask"].tolist() == [[0], [0]]  # no text: the junk is not tokenised


def test_features_are_those_of_the_towers_and_zeros_where_the_modality_is_absent(tmp_path: Path) -> None:
    rows = Rows()
    plain = prepared_rows(tmp_path).batch(np.arange(7))
    batch = prepared_rows(tmp_path, text_frozen=True, image_frozen=True).batch(np.arange(7))
    assert set(batch) == {"labels", "has_text", "has_image", "text_features", "image_features"}
    text = make_text_encoder("tiny").frozen(CPU)(plain["input_ids"], plain["attention_mask"])
    image = ImageEncoder("tiny", pretrained=False).frozen(CPU)(plain["image"])
    has_text, has_image = (torch.from_numpy(rows.modalities[:, column, None]) for column in (0, 1))
    torch.testing.assert_close(batch["text_features"], text.where(has_text, torch.tensor(0.0)), rtol=0, atol=1e-6)
    torch.testing.assert_close(batch["image_features"], image.where(has_image, torch.tensor(0.0)), rtol=0, atol=1e-5)


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    split = prepared_rows(tmp_path, text_frozen=True, image_frozen=True)
    order = np.array([5, 0, 6])
    batch, whole = split.batch(order), split.batch(np.arange(7))
    for name, tensor in batch.items():
        assert torch.equal(tensor, whole[name][torch.from_numpy(order)])


def test_what_is_cached_needs_no_tower_no_tokeniser_and_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared_rows(tmp_path, text_frozen=True, image_frozen=True).batch(np.arange(7))

    def refuse(*arguments: object) -> None:
        raise AssertionError("computed again")

    for encoder in (type(make_text_encoder("tiny")), ImageEncoder):
        monkeypatch.setattr(encoder, "build", refuse)
    rows = Rows()
    rows.images = np.zeros((7, 3, 16, 16), np.uint8)  # would give other features if they were looked at
    second = prepared_rows(tmp_path, text_frozen=True, image_frozen=True, rows=rows).batch(np.arange(7))
    assert all(torch.equal(second[name], first[name]) for name in first)


def test_another_split_or_other_settings_are_computed_anew(tmp_path: Path) -> None:
    def keys() -> set[str]:
        return {path.name for path in tmp_path.iterdir() if path.is_dir()}

    prepared_rows(tmp_path, text_frozen=True, image_frozen=True)
    before = keys()
    other = Rows()
    other.fingerprint = "other-rows"
    prepared_rows(tmp_path, text_frozen=True, image_frozen=True, rows=other)
    between = keys()
    prepare(
        Rows(),
        tmp_path,
        make_text_encoder("tiny", max_length=64),
        ImageEncoder("tiny", pretrained=False, norm="group"),
        text_frozen=True,
        image_frozen=True,
        device=CPU,
    )
    assert len(before) == 3  # tokens, text features, image features
    assert len(between) == 6
    assert len(keys()) == 9


def test_features_do_not_depend_on_the_order_of_rows_beyond_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepared_rows(tmp_path / "a", text_frozen=True, image_frozen=True).batch(np.arange(7))
    monkeypatch.setattr(prepared, "TEXT_BATCH", 2)
    monkeypatch.setattr(prepared, "CPU_IMAGE_BATCH", 3)
    second = prepared_rows(tmp_path / "b", text_frozen=True, image_frozen=True).batch(np.arange(7))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-5)


def test_a_split_without_rows(tmp_path: Path) -> None:
    rows = Rows()
    rows.fingerprint, rows.row_ids, rows.texts, rows.modalities = "none", [], [], np.zeros((0, 2), bool)
    rows.labels, rows.images = rows.labels[:0], rows.images[:0]
    for frozen in (False, True):
        assert len(prepared_rows(tmp_path, text_frozen=frozen, image_frozen=frozen, rows=rows)) == 0
