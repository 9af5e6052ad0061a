"""Saved models: config.json and model.safetensors of a fusion model, the configuration of its run, and PyTorch's own files.

The first byte says which file of a sound folder is replaced. An input that begins with 2 holds the arguments of config.json alone,
one that begins with 4 the header of model.safetensors.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.fuzzing.choices import Choices
from benchmarks.fuzzing.sample_run import LABELS, make_run
from fedmap.encoders.image import load_tensors, read_tensors
from fedmap.prediction.loading import label_names_of, load_model, thresholds_of
from models import MMIMDbFusionModel

_SMALL = {"text_hidden_dim": 4, "image_output_dim": 4, "fusion_output_dim": 4, "vision_norm": "group", "pretrained_vision": False}


class SavedModels:
    """A folder that holds no model is a `ModelError` or a `DataError` that names the file; nothing pickled is run."""

    allowed = ()
    processes = False

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.run_folder = make_run(folder / "outputs" / "run")
        self.model = MMIMDbFusionModel(len(LABELS), bert_name="tiny", vision_name="tiny", **_SMALL)  # type: ignore[arg-type]
        self.folder = self.run_folder / "best"
        self.model.save_pretrained(self.folder, label_names=LABELS, thresholds=[0.5, 0.4, 0.3])
        self.module = torch.nn.Linear(2, 3)
        torch.save(self.module.state_dict(), folder / "tower.pth")
        self.config = json.loads((self.folder / "config.json").read_text())
        files = (self.folder / "config.json", self.folder / "model.safetensors", self.folder / "config.json", folder / "tower.pth")
        files = (*files, self.folder / "model.safetensors")
        self.files = [(path, path.read_bytes()) for path in files]

    def seeds(self) -> Sequence[bytes]:
        """The sound files, and one that PyTorch's old pickle format wrote."""
        found = [bytes([which]) + content for which, (_, content) in enumerate(self.files) if which not in (2, 4)]
        old = self.files[3][0].with_name("old.pth")
        torch.save(self.module.state_dict(), old, _use_new_zipfile_serialization=False)
        found.append(b"\4" + self._header())
        return [*found, b"\2" + json.dumps(self.config["arguments"]).encode(), b"\3" + old.read_bytes()]

    def _header(self) -> bytes:
        content = self.files[1][1]
        return content[8 : 8 + int.from_bytes(content[:8], "little")]

    def run(self, data: bytes) -> None:
        """See the module."""
        choices = Choices(data)
        which = choices.byte() % len(self.files)
        path, sound = self.files[which]
        content = choices.rest()
        if which == 2:
            try:
                content = json.dumps({**self.config, "arguments": json.loads(content)}).encode()
            except (ValueError, RecursionError):
                return
        if which == 4:
            content = len(content).to_bytes(8, "little") + content + sound[8 + len(self._header()) :]
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch's readers
                if which == 3:
                    load_tensors(self.module, read_tensors(path), path)
                else:
                    model = load_model(self.folder, self.run_folder)
                    names = label_names_of(model, self.folder, self.run_folder)
                    thresholds_of(model, self.folder, names)
        finally:
            path.write_bytes(sound)
            shutil.rmtree(self.run_folder / ".cache", ignore_errors=True)
