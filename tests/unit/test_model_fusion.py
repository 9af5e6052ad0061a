"""MMIMDbFusionModel: missing modalities, single rows, frozen towers, rates, and what is shared."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from fedmap.errors import ModelError
from fedmap.local.tensors import get_weights, layout_of, set_weights, shared_tensors
from fedmap.local.training import TrainingOptions
from models import MMIMDbFusionModel

TINY = {"bert_name": "tiny", "vision_name": "tiny", "pretrained_vision": False, "image_output_dim": 16, "fusion_output_dim": 24}


def tiny(seed: int = 0, **arguments: object) -> MMIMDbFusionModel:
    torch.manual_seed(seed)
    return MMIMDbFusionModel(4, **{**TINY, **arguments})  # type: ignore[arg-type]


def batch_of(has_text: list[int], has_image: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n = len(has_text)
    return {
        "input_ids": torch.randint(1, 2048, (n, 6), generator=generator),
        "attention_mask": torch.ones(n, 6, dtype=torch.int64),
        "image": torch.randint(0, 256, (n, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "has_text": torch.tensor(has_text, dtype=torch.bool),
        "has_image": torch.tensor(has_image, dtype=torch.bool),
        "labels": torch.randint(0, 2, (n, 4), generator=generator).float(),
    }


class TwelveRows:
    """Movies with both, one or no modality."""

    fingerprint = "twelve-rows"
    modalities = np.array([[1, 1]] * 8 + [[1, 0], [0, 1], [0, 0], [1, 1]], dtype=bool)

    def __init__(self) -> None:
        self.row_ids = [f"row-{i}" for i in range(12)]
        self.texts = [f"word{i} plot{i % 3} story" for i in range(12)]
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, 2, (12, 4), dtype=np.uint8)
        self.images = rng.integers(0, 256, (12, 3, 16, 16), dtype=np.uint8)

    def __len__(self) -> int:
        return 12


def test_the_shape_of_the_seed() -> None:
    model = tiny(text_hidden_dim=20, norm="batch")
    assert isinstance(model.text_projection, nn.Linear)
    assert (model.fusion.in_features, model.fusion.out_features) == (20 + 16, 24)
    assert model.classifier.out_features == 4
    assert isinstance(tiny().text_projection, nn.Identity)  # by default the tower's own width goes into the fusion
    assert tiny().fusion.in_features == 32 + 16
    assert model(batch_of([1, 1, 1], [1, 1, 1])).shape == (3, 4)


@pytest.mark.parametrize("norm", ["layer", "batch", "group"])
@pytest.mark.parametrize("vision_norm", ["batch", "group"])
@pytest.mark.parametrize(("text", "image"), [([1], [1]), ([1, 0, 1], [0, 1, 0]), ([0, 0], [0, 0]), ([1, 1], [0, 0]), ([0, 1], [1, 1])])
def test_every_mixture_of_modalities_trains(norm: str, vision_norm: str, text: list[int], image: list[int]) -> None:
    model = tiny(norm=norm, vision_norm=vision_norm).train()
    batch = batch_of(text, image)
    logits = model(batch)
    nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"]).backward()
    assert torch.isfinite(logits).all()
    used = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert ("missing_text" in used) == (0 in text) or norm != "layer"  # a learnt vector, trained where it stands in
    assert any(name.startswith("image_tower") for name in used) <= (1 in image)
    assert any(name.startswith("text_tower") for name in used) <= (1 in text)


@pytest.mark.parametrize("frozen", [False, True])
def test_mixed_precision(frozen: bool) -> None:
    model = tiny(freeze_bert=frozen, freeze_vision=frozen, norm="batch", vision_norm="batch")
    batch = batch_of([1, 0, 1, 0], [0, 1, 1, 0])
    expected = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch)
    logits.float().sum().backward()
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_what_stands_in_absent_modalities_changes_nothing(frozen: bool, training: bool) -> None:
    model = tiny(freeze_bert=frozen, freeze_vision=frozen, vision_norm="batch").train(training)
    batch = batch_of([1, 0, 1, 1, 0], [1, 1, 0, 1, 0])
    junk = {name: tensor.clone() for name, tensor in batch.items()}
    junk["input_ids"][~batch["has_text"]] = 7
    junk["attention_mask"][~batch["has_text"]] = 0
    junk["image"][~batch["has_image"]] = 255
    torch.testing.assert_close(model(junk), model(batch), rtol=0, atol=0)


def test_a_missing_modality_is_its_learnt_vector_and_not_zeros() -> None:
    model = tiny().eval()
    batch = batch_of([0, 1], [1, 0])
    assert model.missing_text.abs().sum() > 0
    before = model(batch)
    with torch.no_grad():
        model.missing_text += 1.0
    after = model(batch)
    assert not torch.allclose(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_one_image_in_training_mode_goes_by_the_running_statistics_and_leaves_them() -> None:
    model = tiny(vision_norm="batch").train()
    model(batch_of([1, 1, 1], [1, 1, 1]))  # moves the running statistics away from their start
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = batch_of([1, 1, 1], [0, 1, 0])
    trained = model(batch)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
    torch.testing.assert_close(trained, model.eval()(batch))
    assert all(m.training for m in model.train().modules())


def test_batch_norm_of_one_row_equals_its_evaluation() -> None:
    model = tiny(norm="batch", vision_norm="group").train()
    model(batch_of([1] * 5, [1] * 5))
    one = batch_of([1], [1])
    trained = model(one)
    torch.testing.assert_close(trained, model.eval()(one))


def test_a_frozen_tower_is_no_part_of_the_module_and_never_changes(tmp_path: Path) -> None:
    model = tiny(freeze_bert=True, freeze_vision=True, vision_norm="batch")
    frozen = model.image.frozen(torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    names = {name for name, _ in shared_tensors(model)}
    assert not [name for name in names if "tower" in name]
    batch = batch_of([1, 1, 0], [1, 0, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        model.train()
        model(batch).square().sum().backward()
        optimizer.step()
    assert not frozen.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())
    assert model.text_tower is model.image_tower is None


@pytest.mark.parametrize("freeze_bert", [False, True])
@pytest.mark.parametrize("freeze_vision", [False, True])
def test_shared_tensors_are_the_trained_towers_and_the_head(freeze_bert: bool, freeze_vision: bool) -> None:
    model = tiny(freeze_bert=freeze_bert, freeze_vision=freeze_vision, vision_norm="batch")
    prefixes = {name.partition(".")[0] for name, _ in shared_tensors(model)}
    assert ("text_tower" in prefixes, "image_tower" in prefixes) == (not freeze_bert, not freeze_vision)
    other = tiny(seed=1, freeze_bert=freeze_bert, freeze_vision=freeze_vision, vision_norm="batch")
    set_weights(other, get_weights(model))
    batch = batch_of([1, 0], [1, 1])
    assert torch.equal(other.eval()(batch), model.eval()(batch))
    statistics = [name for name in layout_of(model).buffers if name.endswith("running_mean")]
    assert bool(statistics) == (not freeze_vision)


def test_features_and_raw_inputs_give_the_same_logits(tmp_path: Path) -> None:
    frozen = tiny(freeze_bert=True, freeze_vision=True).eval()
    rows = TwelveRows()
    batch = frozen.prepare(rows, tmp_path).batch(np.arange(12))
    assert "text_features" in batch
    assert "image_features" in batch
    raw = tiny().prepare(rows, tmp_path).batch(np.arange(12))
    torch.testing.assert_close(frozen(batch), frozen(raw), rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_model_whatever_is_frozen() -> None:
    assert all(torch.equal(a, b) for a, b in zip(tiny(3).parameters(), tiny(3).parameters(), strict=True))
    assert not torch.equal(tiny(3).fusion.weight, tiny(4).fusion.weight)


@pytest.mark.parametrize("norm", ["layer", "batch", "group"])
def test_training_reaches_a_low_loss_and_is_reproducible(tmp_path: Path, norm: str) -> None:
    options = TrainingOptions(learning_rate=1e-2, num_epochs=25, batch_size=5)
    losses = []
    for _ in range(2):
        model = tiny(norm=norm, vision_norm="group", dropout=0.1)
        split = model.prepare(TwelveRows(), tmp_path)
        start = models.test(model, split, options).loss
        models.train(model, split, options, seed=1)
        losses.append(models.test(model, split, options).loss)
    assert losses[0] < start / 2
    assert losses[0] == losses[1]


def test_pretrained_towers_that_are_trained_get_their_own_rate() -> None:
    options = TrainingOptions(learning_rate=1e-3, tower_learning_rate=1e-5)
    random = tiny()
    assert [set(group) for group in random.parameter_groups(options)] == [{"params"}]  # random towers learn at the head's rate
    tower = tiny()
    tower.pretrained["text"] = True
    head, slow = tower.parameter_groups(options)
    assert slow["lr"] == 1e-5
    assert {id(p) for p in slow["params"]} == {id(p) for p in tower.text_tower.parameters()}
    assert len(head["params"]) + len(slow["params"]) == len(list(tower.parameters()))


def test_probabilities_from_plots_and_posters(tmp_path: Path) -> None:
    from PIL import Image

    model = tiny(vision_norm="batch").train()
    rows = TwelveRows()
    split = model.prepare(rows, tmp_path)
    posters = [Image.fromarray(image.transpose(1, 2, 0)) for image in rows.images]
    texts = [text if has else None for text, has in zip(rows.texts, rows.modalities[:, 0], strict=True)]
    images = [poster if has else None for poster, has in zip(posters, rows.modalities[:, 1], strict=True)]
    probabilities = model.predict_proba(texts, images, batch_size=5)
    assert model.training  # as it was before
    expected = 1 / (1 + np.exp(-models.test(model, split, TrainingOptions()).logits))
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(["  "], [None]), model.predict_proba([None], [None]))
    assert model.predict_proba([], []).shape == (0, 4)


def test_predictions_that_cannot_be_made() -> None:
    with pytest.raises(ModelError, match="2 texts and 1 images"):
        tiny().predict_proba(["a", "b"], [None])
    with pytest.raises(ModelError, match="image_size="):
        tiny().predict_proba([None], [b""])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "instance"}, "norm='instance': expected one of layer, batch, group"),
        ({"output_size": 0}, "output_size=0: expected the number of labels"),
        ({"output_size": None}, "output_size=None: expected the number of labels"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MMIMDbFusionModel(**{"output_size": 4, **TINY, **arguments})  # type: ignore[arg-type]


def test_the_frozen_fingerprint_names_what_is_not_sent() -> None:
    trained, frozen = tiny(), tiny(freeze_bert=True, freeze_vision=True)
    assert trained.frozen_fingerprint() == ""
    assert frozen.frozen_fingerprint() == tiny(freeze_bert=True, freeze_vision=True).frozen_fingerprint() != ""
    assert tiny(freeze_bert=True).frozen_fingerprint() != frozen.frozen_fingerprint()
    assert tiny(freeze_bert=True, max_text_length=64).frozen_fingerprint() != tiny(freeze_bert=True).frozen_fingerprint()
