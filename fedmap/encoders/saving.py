"""Fusion models as folders: model.safetensors, config.json and copies of the towers; no pickle, nothing needed from elsewhere.

config.json            arguments, label names, thresholds, image size, versions
model.safetensors      every trained tensor
text_tower/            the text tower's configuration and tokeniser, and its weights if it is frozen
image_tower.safetensors  the image tower's weights if it is frozen
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from fedmap.encoders.image import ImageEncoder, load_tensors, read_tensors
from fedmap.encoders.text import TextEncoder, TinyTextEncoder
from fedmap.encoders.tower import sha256
from fedmap.errors import ModelError
from fedmap.files import write_json

FORMAT = "fedmap-fusion-model"
VERSION = 1
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


class Saveable(Protocol):
    """What a model must have to be saved here; see `models.MMIMDbFusionModel`."""

    arguments: dict[str, Any]
    text: TextEncoder | TinyTextEncoder
    image: ImageEncoder
    pretrained: dict[str, bool]
    label_names: list[str] | None
    thresholds: list[float] | None
    image_size: int | None
    meta: dict[str, Any]

    def state_dict(self) -> dict[str, Any]: ...


Model = TypeVar("Model", bound=nn.Module)


def save(model: Saveable, folder: Path, *, include_towers: bool) -> None:
    """Write a model's folder; see `MMIMDbFusionModel.save_pretrained`.

    Raises:
        ModelError: labels or thresholds do not fit the outputs, or the folder cannot be written.
    """
    outputs = model.arguments["output_size"]
    for what, values in (("label_names", model.label_names), ("thresholds", model.thresholds)):
        if values is not None and len(values) != outputs:
            raise ModelError(f"{len(values)} {what} for a model with {outputs} outputs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        _write_tensors(tensors, folder / "model.safetensors")
        towers = _save_text(model, folder, include_towers) | _save_image(model, folder, include_towers)
        write_json(
            folder / "config.json",
            {
                "format": FORMAT,
                "version": VERSION,
                "arguments": model.arguments,
                "towers": towers,
                "pretrained": model.pretrained,
                "label_names": model.label_names,
                "thresholds": model.thresholds,
                "image_size": model.image_size,
                "torch": str(torch.__version__),
                "meta": model.meta,
            },
        )
    except OSError as error:
        raise ModelError(f"the model cannot be saved in {folder}: {error}") from error


def _save_text(model: Saveable, folder: Path, include: bool) -> dict[str, str]:
    encoder = model.text
    if isinstance(encoder, TinyTextEncoder):
        return {}
    frozen_weights = encoder.weights() if model.arguments["freeze_bert"] else None
    if frozen_weights is not None and not include:
        return {}
    target = folder / "text_tower"
    target.mkdir(exist_ok=True)
    files = [encoder.folder / name for name in TEXT_FILES if (encoder.folder / name).is_file()]
    for file in files if frozen_weights is None else [*files, frozen_weights]:
        _copy(file, target / file.name)
    return {"text": target.name}


def _save_image(model: Saveable, folder: Path, include: bool) -> dict[str, str]:
    file = model.image.weights()
    if file is None or not model.arguments["freeze_vision"] or not include:
        return {}
    target = folder / f"image_tower-{sha256(file)[:12]}.safetensors"  # named by its source, so that it is written once
    if file.suffix == ".safetensors":
        _copy(file, target)
    elif not target.is_file():
        _write_tensors(read_tensors(file), target)
    return {"image": target.name}


def _copy(source: Path, target: Path) -> None:
    if target.is_file() and target.stat().st_size == source.stat().st_size and sha256(target) == sha256(source):
        return  # a run saves its model often, its frozen towers once
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata={"format": "pt"})
    os.replace(temporary, path)


def load(make: Callable[..., Model], folder: Path) -> Model:
    """The model of a folder; see `MMIMDbFusionModel.from_pretrained`.

    Raises:
        ModelError: a file is missing or damaged, or belongs to another model.
    """
    config = _fusion_config(folder)
    arguments, towers = dict(config["arguments"]), config["towers"]
    for tower, argument in (("text", "bert_name"), ("image", "vision_weights")):
        if tower in towers:
            arguments[argument] = str((folder / towers[tower]).resolve())
    if not arguments["freeze_bert"]:  # its tensors are in model.safetensors
        arguments["pretrained_text"] = False
    if not arguments["freeze_vision"]:
        arguments |= {"pretrained_vision": False, "vision_weights": None}
    try:
        with torch.random.fork_rng(devices=[]):  # loading draws nothing that lasts
            model = make(**arguments)
    except ModelError:
        raise
    except Exception as error:  # a stranger's arguments make PyTorch raise all sorts of errors
        raise ModelError(f"{folder / 'config.json'} is of another model: {error}") from error
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ModelError(f"{folder} has no model.safetensors")
    load_tensors(model, read_tensors(file), file)
    for name in ("pretrained", "label_names", "thresholds", "image_size", "meta"):
        setattr(model, name, config[name])
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """What stands in a saved model's config.json, whichever class saved it.

    Raises:
        ModelError: there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is no saved model: there is no config.json") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} cannot be read: it holds a {type(config).__name__}, expected an object")
    return config


def _fusion_config(folder: Path) -> dict[str, Any]:
    config, path = read_config(folder), folder / "config.json"
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise ModelError(f"{path} is not the configuration of a fusion model that this version writes (format {FORMAT}, version {VERSION})")
    needed = {"arguments", "towers", "pretrained", "label_names", "thresholds", "image_size", "meta"}
    if not needed <= config.keys():
        raise ModelError(f"{path} lacks {', '.join(sorted(needed - config.keys()))}")
    arguments, towers = config["arguments"], config["towers"]
    if not isinstance(arguments, dict) or not {"freeze_bert", "freeze_vision"} <= arguments.keys():
        raise ModelError(f"{path}: arguments are not those of a fusion model: expected an object with freeze_bert and freeze_vision")
    if not isinstance(towers, dict) or not all(isinstance(name, str) and _PLAIN_NAME.fullmatch(name) for name in towers.values()):
        raise ModelError(f"{path}: towers is {towers!r:.200}; expected an object with names of files that lie beside it")
    return config
