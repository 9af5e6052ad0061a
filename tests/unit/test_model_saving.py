"""A saved model is a folder that needs nothing else and gives the same logits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmap.encoders.image import ImageEncoder
from fedmap.errors import ModelError
from models import MMIMDbFusionModel

TINY = {"bert_name": "tiny", "vision_name": "tiny", "pretrained_vision": False, "image_output_dim": 16, "fusion_output_dim": 24}
TEXTS = ["a robot loves the sea", None, "the robot paints"]


def posters() -> list[object]:
    from PIL import Image

    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)), Image.new("RGB", (16, 16), "red"), None]


def saved_and_loaded(model: MMIMDbFusionModel, folder: Path, **arguments: object) -> MMIMDbFusionModel:
    model.image_size = 16
    model.save_pretrained(folder, **arguments)  # type: ignore[arg-type]
    return MMIMDbFusionModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fedmap.encoders.torchvision_repair import import_transformers

    transformers = import_transformers()
    folder = tmp_path_factory.mktemp("towers") / "bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "robot", "loves", "the", "sea", "paints"]
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_the_same_probabilities_come_back(tmp_path: Path, frozen: bool, norm: str) -> None:
    model = MMIMDbFusionModel(3, **TINY, norm=norm, freeze_bert=frozen, freeze_vision=frozen)  # type: ignore[arg-type]
    before = torch.get_rng_state()
    loaded = saved_and_loaded(model, tmp_path, label_names=["A", "B", "C"], thresholds=[0.4, 0.5, 0.6], round_index=7)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS, posters()), model.predict_proba(TEXTS, posters()))
    assert not loaded.training
    assert (loaded.label_names, loaded.thresholds, loaded.image_size, loaded.meta) == (
        ["A", "B", "C"],
        [0.4, 0.5, 0.6],
        16,
        {"round_index": 7},
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_the_folder_stands_alone(tmp_path: Path, bert_folder: Path, frozen: bool) -> None:
    tower = tmp_path / "tower"
    shutil.copytree(bert_folder, tower)
    weights = tmp_path / "vision.pth"
    torch.save(ImageEncoder("tiny", pretrained=False).trainable().network.state_dict(), weights)
    model = MMIMDbFusionModel(
        3,
        bert_name=str(tower),
        vision_name="tiny",
        vision_weights=str(weights),
        image_output_dim=8,
        fusion_output_dim=8,
        freeze_bert=frozen,
        freeze_vision=frozen,
    )
    folder, moved = tmp_path / "saved", tmp_path / "moved"
    saved_and_loaded(model, folder)
    expected = model.predict_proba(TEXTS, posters())
    shutil.rmtree(tower)
    weights.unlink()
    folder.rename(moved)
    loaded = MMIMDbFusionModel.from_pretrained(moved)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS, posters()), expected)
    assert loaded.pretrained == {"text": True, "image": True}  # its towers still learn at the towers' rate
    again = saved_and_loaded(loaded, tmp_path / "again")
    np.testing.assert_array_equal(again.predict_proba(TEXTS, posters()), expected)
    assert not [path for path in moved.rglob("*") if path.suffix in (".pth", ".pt", ".bin", ".pkl", ".tmp")]
    assert (moved / "text_tower" / "model.safetensors").exists() == frozen


def test_frozen_towers_may_stay_where_they_are_and_are_written_once(tmp_path: Path, bert_folder: Path) -> None:
    model = MMIMDbFusionModel(3, **{**TINY, "bert_name": str(bert_folder)}, freeze_bert=True)  # type: ignore[arg-type]
    light = saved_and_loaded(model, tmp_path / "light", include_towers=False)
    assert not (tmp_path / "light" / "text_tower").exists()
    assert light.arguments["bert_name"] == str(bert_folder)
    saved_and_loaded(model, tmp_path / "whole")
    weights = tmp_path / "whole" / "text_tower" / "model.safetensors"
    written = weights.stat().st_mtime_ns, weights.stat().st_ino
    saved_and_loaded(model, tmp_path / "whole")
    assert (weights.stat().st_mtime_ns, weights.stat().st_ino) == written


def test_what_does_not_fit_the_outputs_is_refused(tmp_path: Path) -> None:
    model = MMIMDbFusionModel(3, **TINY)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="2 label_names for a model with 3 outputs"):
        model.save_pretrained(tmp_path, label_names=["A", "B"])
    model = MMIMDbFusionModel(3, **TINY)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="1 thresholds for a model with 3 outputs"):
        model.save_pretrained(tmp_path, thresholds=[0.5])
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be saved in"):
        MMIMDbFusionModel(3, **TINY).save_pretrained(tmp_path / "file")  # type: ignore[arg-type]


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no saved model: there is no config\.json"):
        MMIMDbFusionModel.from_pretrained(tmp_path)
    folder = tmp_path / "model"
    MMIMDbFusionModel(3, **TINY).save_pretrained(folder)  # type: ignore[arg-type]
    file, good = folder / "config.json", json.loads((folder / "config.json").read_text())
    for content, message in (
        ("{", "cannot be read"),
        ("{}", "is not the configuration of a fusion model"),
        (json.dumps({**good, "version": 99}), "is not the configuration of a fusion model"),
        (json.dumps({name: value for name, value in good.items() if name != "towers"}), "lacks towers"),
        (json.dumps({**good, "arguments": good["arguments"] | {"colour": 1}}), "is of another model.*colour"),
        (json.dumps({**good, "arguments": good["arguments"] | {"output_size": 5}}), r"classifier.weight is \(3, 24\), expected \(5, 24\)"),
    ):
        file.write_text(content)
        with pytest.raises(ModelError, match=message):
            MMIMDbFusionModel.from_pretrained(folder)
    file.write_text(json.dumps(good))
    tensors = folder / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8])
    with pytest.raises(ModelError, match="cannot be read as named tensors"):
        MMIMDbFusionModel.from_pretrained(folder)
    tensors.unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        MMIMDbFusionModel.from_pretrained(folder)
