"""Text towers: BERT and its relatives by name, path or package, and a tiny one for tests."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedmap.encoders.hub import text_folder
from fedmap.encoders.tokens import HashingTokenizer, Tokenizer, WordPieceTokenizer
from fedmap.encoders.torchvision_repair import import_transformers
from fedmap.encoders.tower import Encoder, sha256
from fedmap.errors import ModelError

POOLINGS = ("pooler", "mean")


class TextEncoder(Encoder):
    """A transformer from a folder in transformers' format, read through `AutoModel` (BertModel for BERT).

    Args:
        name: "package:module", a folder, or a name on the Hugging Face hub; "tiny" is `TinyTextEncoder`.
        pooling: "pooler" (BERT's trained [CLS] output) or "mean" (over the tokens; for sentence transformers).
        max_length: tokens a text is cut to.
        pretrained: False takes only the architecture from the folder and starts from random weights.

    Raises:
        ModelError: the folder cannot be found or lacks what is needed.
    """

    def __init__(self, name: str, pooling: str = "pooler", max_length: int = 128, pretrained: bool = True) -> None:
        if pooling not in POOLINGS:
            raise ModelError(f"text_pooling={pooling!r}: expected one of {', '.join(POOLINGS)}")
        self.name, self.pooling, self.max_length, self.pretrained = name, pooling, max_length, pretrained
        self.folder = text_folder(name)
        try:
            self._config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            self.width = int(self._config.get("hidden_size") or self._config["dim"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{self.folder / 'config.json'} is not the configuration of a text tower: {error}") from error
        positions = int(self._config.get("max_position_embeddings") or max_length)
        if not 2 < max_length <= positions:
            raise ModelError(f"max_text_length={max_length}: {name} reads 3 to {positions} tokens")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's own tokeniser."""
        return WordPieceTokenizer(self.folder, self.max_length, int(self._config.get("vocab_size", 0)))

    def settings(self) -> str:
        """See `Encoder.settings`."""
        return f"text {self.pooling} {sha256(self.folder / 'config.json')} {self.tokenizer.fingerprint} pretrained={self.pretrained}"

    def weights(self) -> Path | None:
        """See `Encoder.weights`."""
        if not self.pretrained:
            return None
        file = self.folder / "model.safetensors"
        if not file.is_file():
            raise ModelError(
                f"{self.folder} has no model.safetensors; save the tower there (model.save_pretrained) or set pretrained_text=false"
            )
        return file

    def build(self) -> nn.Module:
        """See `Encoder.build`."""
        transformers = import_transformers()
        if self.weights() is None:
            config = transformers.AutoConfig.from_pretrained(self.folder)
            model = transformers.AutoModel.from_config(config)
        else:
            model = self._read(transformers)
        return TransformerTower(model, self.pooling)

    def _read(self, transformers: Any) -> nn.Module:
        logging = transformers.utils.logging
        bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what is missing is reported below
        try:
            model, report = transformers.AutoModel.from_pretrained(
                self.folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # damaged files and foreign settings come as many types
            raise ModelError(f"the text tower in {self.folder} cannot be read: {error}") from error
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
        absent = sorted(name for name in report["missing_keys"] if self.pooling == "pooler" or not name.startswith("pooler."))
        if absent:
            hint = "; use text_pooling=mean" if all(name.startswith("pooler.") for name in absent) else ""
            raise ModelError(f"{self.weights()} lacks {len(absent)} tensors of the tower, first {absent[:2]}{hint}")
        tower: nn.Module = model
        return tower


class TransformerTower(nn.Module):
    """A transformer and its pooling: token ids [B, L] and mask [B, L] to features [B, D]."""

    def __init__(self, transformer: nn.Module, pooling: str) -> None:
        super().__init__()
        self.transformer, self.pooling = transformer, pooling
        has_pooler = getattr(transformer, "pooler", None) is not None
        if pooling == "pooler" and not has_pooler:
            raise ModelError("text_pooling=pooler: this tower has no pooler; use text_pooling=mean")
        if pooling == "mean" and has_pooler:
            setattr(transformer, "pooler", None)  # noqa: B010  # it would be trained by nothing and sent for nothing

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Features [B, D] of token ids and attention mask, both int64 [B, L]."""
        output = self.transformer(input_ids=input_ids, attention_mask=attention_mask)
        if self.pooling == "pooler":
            pooled: torch.Tensor = output.pooler_output
            return pooled
        return masked_mean(output.last_hidden_state, attention_mask)


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean [B, D] of states [B, L, D] over the tokens that mask [B, L] keeps."""
    kept = mask.unsqueeze(-1).to(states.dtype)  # [B, L, 1]
    return (states * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


class TinyTextEncoder(Encoder):
    """A random tower of 66,000 weights over hashed words, for tests: starts in milliseconds and downloads nothing."""

    width = 32
    vocab_size = 2048
    pretrained = False

    def __init__(self, max_length: int = 128) -> None:
        self.max_length = max_length
        self.tokenizer: Tokenizer = HashingTokenizer(self.vocab_size, max_length)

    def settings(self) -> str:
        """See `Encoder.settings`."""
        return f"text tiny {self.tokenizer.fingerprint}"

    def weights(self) -> Path | None:
        """See `Encoder.weights`."""
        return None

    def build(self) -> nn.Module:
        """See `Encoder.build`."""
        return TinyTextTower(self.vocab_size, self.width)


class TinyTextTower(nn.Module):
    """The mean of word embeddings and one layer with tanh, as BERT's pooler ends."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.pooler = nn.Linear(width, width)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Features [B, D] of token ids and attention mask, both int64 [B, L]."""
        return torch.tanh(self.pooler(masked_mean(self.embedding(input_ids), attention_mask)))


def make_text_encoder(name: str, pooling: str = "pooler", max_length: int = 128, pretrained: bool = True) -> TextEncoder | TinyTextEncoder:
    """The text encoder of a name; see `TextEncoder`."""
    if name == "tiny":
        return TinyTextEncoder(max_length)
    return TextEncoder(name, pooling, max_length, pretrained)
