"""The model that is trained: text and image towers, fused. Replace it by your own through `model._target_`.

Any `torch.nn.Module` will do whose `forward` takes the batches of your data's splits. These methods are optional:
`prepare(split, cache_dir)`, `loss(logits, batch)`, `decide(logits)`, `parameter_groups(options)`, `modality_of_parameters()`,
`save_pretrained(folder)`, `predict_proba(texts, images)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedmap.data.base import Batch, Split
from fedmap.encoders import saving
from fedmap.encoders.image import ImageEncoder, pixels_of
from fedmap.encoders.norms import FUSION_NORMS, fusion_norm
from fedmap.encoders.prepared import PreparedSplit, RawSplit, prepare
from fedmap.encoders.text import make_text_encoder
from fedmap.encoders.tokens import pad
from fedmap.encoders.tower import running_statistics
from fedmap.errors import ModelError
from fedmap.local import training
from fedmap.local.rules import LocalRule
from fedmap.local.training import Evaluation, TrainingOptions, TrainingResult
from fedmap.randomness import generator, torch_seed
from fedmap.weights import ModalityPart


class MMIMDbFusionModel(nn.Module):
    """A text tower and an image tower, concatenated, and a small head that gives one logit per genre.

        text  -> tower -> (Linear -> text_hidden_dim, where it differs from the tower's width) --+
                                                                                                +-> Linear -> Norm -> ReLU -> Linear
        image -> tower -> Linear -> image_output_dim --------------------------------------------+

    A row without text or without image gets a learnt vector in its place; its tower does not see the row. A frozen tower is
    no part of the module: it stays in evaluation mode, is neither trained nor sent, and is read from disk only when needed.

    Args:
        output_size: C, the number of labels.
        text_hidden_dim: width of the text part; None is the tower's own width, without a layer between.
        image_output_dim: width of the image part.
        fusion_output_dim: width of the fused vector.
        norm: of the fused vector: "layer", "batch" or "group".
        dropout: of the fused vector, in [0, 1).
        bert_name: text tower: "package:<module>", a folder, a name on the Hugging Face hub, or "tiny".
        text_pooling: "pooler" or "mean".
        max_text_length: tokens a text is cut to.
        freeze_bert: keep the text tower as it is.
        pretrained_text: False takes only the architecture of `bert_name`.
        vision_name: image tower: "resnet18", "efficientnet_lite0" or "tiny".
        vision_weights: IMAGENET1K_V1, "package:<module>" or a .pth or .safetensors file; None is the tower's default.
        vision_norm: of the image tower: "batch", or "group" for towers trained from random weights.
        freeze_vision: keep the image tower as it is.
        pretrained_vision: False starts the image tower from random weights.

    Raises:
        ModelError: an argument is unknown or contradicts another, or pretrained weights cannot be found.
    """

    def __init__(
        self,
        output_size: int,
        *,
        text_hidden_dim: int | None = None,
        image_output_dim: int = 512,
        fusion_output_dim: int = 256,
        norm: str = "layer",
        dropout: float = 0.0,
        bert_name: str = "bert-base-uncased",
        text_pooling: str = "pooler",
        max_text_length: int = 128,
        freeze_bert: bool = False,
        pretrained_text: bool = True,
        vision_name: str = "resnet18",
        vision_weights: str | None = None,
        vision_norm: str = "batch",
        freeze_vision: bool = False,
        pretrained_vision: bool = True,
    ) -> None:
        super().__init__()
        self.arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if not isinstance(output_size, int) or output_size < 1:
            raise ModelError(f"output_size={output_size!r}: expected the number of labels, as in labels.json")
        if norm not in FUSION_NORMS:
            raise ModelError(f"norm={norm!r}: expected one of {', '.join(FUSION_NORMS)}")
        self.text = make_text_encoder(bert_name, text_pooling, max_text_length, pretrained_text)
        self.image = ImageEncoder(vision_name, pretrained_vision, vision_weights, vision_norm)
        self.text_tower = None if freeze_bert else self.text.trainable()
        self.image_tower = None if freeze_vision else self.image.trainable()
        self.pretrained = {"text": self.text.pretrained, "image": self.image.pretrained}

        text_dim = text_hidden_dim or self.text.width
        self.text_projection = nn.Identity() if text_dim == self.text.width else nn.Linear(self.text.width, text_dim)
        self.image_projection = nn.Linear(self.image.width, image_output_dim)
        self.missing_text = nn.Parameter(0.02 * torch.randn(text_dim))
        self.missing_image = nn.Parameter(0.02 * torch.randn(image_output_dim))
        self.fusion = nn.Linear(text_dim + image_output_dim, fusion_output_dim)
        self.norm = fusion_norm(norm, fusion_output_dim)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(fusion_output_dim, output_size)

        # what a saved model carries along for predictions
        self.label_names: list[str] | None = None
        self.thresholds: list[float] | None = None
        self.image_size: int | None = None
        self.meta: dict[str, Any] = {}

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [B, C] of a batch as `PreparedSplit.batch` gives it."""
        text = _fill(batch["has_text"], lambda rows: self.text_projection(self._text_features(batch, rows)), self.missing_text)
        image = _fill(batch["has_image"], lambda rows: self.image_projection(self._image_features(batch, rows)), self.missing_image)
        fused = self.fusion(torch.cat([text, image], dim=1))  # [B, F]
        logits: torch.Tensor = self.classifier(self.dropout(torch.relu(self.norm(fused))))
        return logits

    def _text_features(self, batch: Batch, rows: Any) -> torch.Tensor:
        if "text_features" in batch:
            return batch["text_features"][rows]
        ids, mask = batch["input_ids"][rows], batch["attention_mask"][rows]
        if self.text_tower is None:
            with torch.no_grad():
                features: torch.Tensor = self.text.frozen(ids.device)(ids, mask)
            return features
        features = self.text_tower(ids, mask)
        return features

    def _image_features(self, batch: Batch, rows: Any) -> torch.Tensor:
        if "image_features" in batch:
            return batch["image_features"][rows]
        images = batch["image"][rows]
        if self.image_tower is None:
            with torch.no_grad():
                features: torch.Tensor = self.image.frozen(images.device)(images)
            return features
        with running_statistics(self.image_tower, use=len(images) == 1):
            features = self.image_tower(images)
        return features

    @property
    def device(self) -> torch.device:
        """Where the trained tensors lie."""
        return self.missing_text.device

    def prepare(self, split: RawSplit, cache_dir: Path) -> PreparedSplit:
        """A split of movies with token ids, or with the features of frozen towers, computed once and cached on disk."""
        self.image_size = int(split.images.shape[-1])
        return prepare(
            split,
            Path(cache_dir),
            self.text,
            self.image,
            text_frozen=self.text_tower is None,
            image_frozen=self.image_tower is None,
            device=self.device,
        )

    def frozen_fingerprint(self) -> str:
        """Names the frozen towers' weights and settings, which are not sent and must be the same everywhere; "" if there are none."""
        towers = [(self.text_tower, self.text), (self.image_tower, self.image)]
        return "; ".join(encoder.identity for tower, encoder in towers if tower is None)

    def parameter_groups(self, options: TrainingOptions) -> list[dict[str, Any]]:
        """The trainable parameters; those of pretrained towers get `options.tower_learning_rate`."""
        towers = ((self.text_tower, self.pretrained["text"]), (self.image_tower, self.pretrained["image"]))
        slow = [p for tower, pretrained in towers if tower is not None and pretrained for p in tower.parameters() if p.requires_grad]
        known = {id(p) for p in slow}
        groups: list[dict[str, Any]] = [{"params": [p for p in self.parameters() if p.requires_grad and id(p) not in known]}]
        if slow:
            groups.append({"params": slow, "lr": options.tower_learning_rate})
        return groups

    def modality_of_parameters(self) -> dict[str, tuple[ModalityPart, ...]]:
        """What only rows with text, or only rows with an image, train: towers, projections, and their columns of the fusion."""
        text_dim, width = len(self.missing_text), self.fusion.in_features
        found = {
            f"{owner}.{name}": (ModalityPart(modality),)
            for owner, modality in (
                ("text_tower", "text"),
                ("text_projection", "text"),
                ("image_tower", "image"),
                ("image_projection", "image"),
            )
            for name in ({} if getattr(self, owner) is None else getattr(self, owner).state_dict())
        }
        found["missing_text"] = (ModalityPart("text", without=True),)
        found["missing_image"] = (ModalityPart("image", without=True),)
        found["fusion.weight"] = (ModalityPart("text", 0, text_dim), ModalityPart("image", text_dim, width))
        return found

    @torch.inference_mode()
    def predict_proba(
        self, texts: Sequence[str | None], images: Sequence[Any], *, image_size: int | None = None, batch_size: int = 32
    ) -> npt.NDArray[np.float32]:
        """Probabilities [n, C] of n movies.

        Args:
            texts: n plots; None or blank where there is none.
            images: n posters, each a PIL image, the bytes or the path of a picture file, or None.
            image_size: edge length the posters are brought to; None is the one the model was trained with.
            batch_size: movies at a time.

        Raises:
            ModelError: the numbers of texts and images differ, or the model was never trained and image_size is not given.
            DataError: a picture cannot be read.
        """
        if len(texts) != len(images):
            raise ModelError(f"{len(texts)} texts and {len(images)} images: expected one of each per movie, None where it is missing")
        size = image_size or self.image_size
        if size is None and any(image is not None for image in images):
            raise ModelError("this model has seen no images yet; say image_size=<edge length in pixels>")
        if not len(texts):
            return np.zeros((0, self.classifier.out_features), np.float32)
        words = [text if text and text.strip() else None for text in texts]
        names = [image if image is None or isinstance(image, (str, bytes, Path)) else id(image) for image in images]
        pictures = dict(zip(names, images, strict=True))
        was_training = self.training
        self.eval()
        batch = {
            "has_text": torch.tensor([text is not None for text in words]),
            "has_image": torch.tensor([image is not None for image in images]),
            "text_features": _once(words, self.text.width, batch_size, self._features_of_texts),
            "image_features": _once(
                names, self.image.width, batch_size, lambda some: self._features_of_images([pictures[name] for name in some], size or 1)
            ),
        }
        logits = self({name: tensor.to(self.device) for name, tensor in batch.items()})
        self.train(was_training)
        probabilities: npt.NDArray[np.float32] = torch.sigmoid(logits.float()).cpu().numpy()
        return probabilities

    def _features_of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        ids, mask = pad(self.text.tokenizer.encode(texts), self.text.tokenizer.padding)
        batch = {"input_ids": torch.from_numpy(ids).to(self.device), "attention_mask": torch.from_numpy(mask).to(self.device)}
        return self._text_features(batch, slice(None))

    def _features_of_images(self, images: Sequence[Any], size: int) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack([pixels_of(image, size) for image in images]))
        return self._image_features({"image": pixels.to(self.device)}, slice(None))

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        label_names: Sequence[str] | None = None,
        thresholds: Sequence[float] | None = None,
        include_towers: bool = True,
        **meta: Any,
    ) -> None:
        """Write model.safetensors and config.json, and copies of the towers so that the folder needs nothing else.

        Args:
            folder: made if need be.
            label_names: the C labels in the order of the outputs.
            thresholds: C probabilities from which a label applies.
            include_towers: False leaves frozen towers out; loading then needs them where they are now.
            meta: anything JSON can hold.
        """
        self.label_names = list(label_names) if label_names is not None else self.label_names
        self.thresholds = [float(t) for t in thresholds] if thresholds is not None else self.thresholds
        self.meta = {**self.meta, **meta}
        saving.save(self, Path(folder), include_towers=include_towers)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> MMIMDbFusionModel:
        """The model that `save_pretrained` wrote, in evaluation mode; needs no network.

        Raises:
            ModelError: a file is missing or damaged, or belongs to another model.
        """
        return saving.load(cls, Path(folder)).to(device).eval()


def _fill(present: torch.Tensor, part: Callable[[Any], torch.Tensor], missing: torch.Tensor) -> torch.Tensor:
    """One modality's part [B, D] of the fused vector: `part(rows)` where it is present, and the learnt vector elsewhere."""
    if present.all():
        return part(slice(None))
    rows = present.nonzero().squeeze(1)  # [P]
    if len(rows) == 0:
        return missing.expand(len(present), -1)
    values = part(rows)  # [P, D]
    return missing.to(values.dtype).expand(len(present), -1).index_copy(0, rows, values)


def _once(items: Sequence[Any], width: int, batch_size: int, encode: Callable[[Sequence[Any]], torch.Tensor]) -> torch.Tensor:
    """Features [n, width] of n items, zeros for None. What occurs several times is encoded once."""
    different = [item for item in dict.fromkeys(items) if item is not None]
    parts = [encode(different[start : start + batch_size]).float().cpu() for start in range(0, len(different), batch_size)]
    features = torch.cat([torch.zeros(1, width), *parts])
    place = {None: 0} | {item: i for i, item in enumerate(different, 1)}
    return features[[place[item] for item in items]]


def train(
    model: nn.Module, split: Split, options: TrainingOptions, *, seed: int = 0, on_step: Callable[[int, float], None] | None = None
) -> TrainingResult:
    """Train a model in place on one (prepared) split, without a federation."""
    with torch_seed(seed, purpose="train"):
        return training.train(model, split, options, LocalRule(), generator(seed, purpose="batches"), on_step)


def test(model: nn.Module, split: Split, options: TrainingOptions) -> Evaluation:
    """Loss, logits and F1 counts of a model on one (prepared) split."""
    return training.evaluate(model, split, options)
