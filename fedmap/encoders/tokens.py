"""Tokenisers: text to token ids, without importing transformers."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedmap.errors import ModelError

Ids = npt.NDArray[np.int32]


class Tokenizer(Protocol):
    """Turns texts into token ids.

    Attributes:
        fingerprint: names everything that shapes the ids.
    """

    fingerprint: str

    @property
    def padding(self) -> int:
        """The id that fills up short rows of a batch."""
        ...

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """One array of at least one and at most max_length ids per text."""
        ...


class HashingTokenizer:
    """Words hashed into a fixed range: needs no vocabulary, and gives the same ids in every process.

    Id 0 pads and id 1 begins every text, so that no text is empty.
    """

    def __init__(self, vocab_size: int, max_length: int) -> None:
        self.vocab_size, self.max_length = vocab_size, max_length
        self.fingerprint = f"hashing-{vocab_size}-{max_length}"

    @property
    def padding(self) -> int:
        """See `Tokenizer.padding`."""
        return 0

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """See `Tokenizer.encode`."""
        return [
            np.array([1, *(self._id(word) for word in re.findall(r"\w+", text.lower()))][: self.max_length], dtype=np.int32)
            for text in texts
        ]

    def _id(self, word: str) -> int:
        return 2 + _hash(word) % (self.vocab_size - 2)


@functools.lru_cache(maxsize=1 << 16)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


class WordPieceTokenizer:
    """The tokeniser of a text tower's folder: its tokenizer.json, or BERT's WordPiece over its vocab.txt.

    Args:
        folder: with one of these files.
        max_length: longer texts are cut.
        known: how many token ids the tower has embeddings for.

    Raises:
        ModelError: there is no tokeniser, or, at the first use, it has more ids than the tower knows.
    """

    def __init__(self, folder: Path, max_length: int, known: int) -> None:
        self.folder, self.max_length, self.known = folder, max_length, known
        found = next((folder / name for name in ("tokenizer.json", "vocab.txt") if (folder / name).is_file()), None)
        if found is None:
            raise ModelError(
                f"{folder} has neither tokenizer.json nor vocab.txt; save the tokeniser there, too (tokenizer.save_pretrained)"
            )
        self._file = found
        settings = folder / "tokenizer_config.json"
        self._lowercase = bool(json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case", True)) if settings.is_file() else True
        content = hashlib.sha256(self._file.read_bytes()).hexdigest()
        self.fingerprint = f"{self._file.name}-{content}-{self._lowercase}-{max_length}"

    @functools.cached_property
    def padding(self) -> int:
        """The id of [PAD], or 0 where the vocabulary has none: the attention mask hides it."""
        return int(self._tokenizer.token_to_id("[PAD]") or self._tokenizer.token_to_id("<pad>") or 0)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        import tokenizers

        if self._file.name == "vocab.txt":
            tokenizer = tokenizers.BertWordPieceTokenizer(str(self._file), lowercase=self._lowercase)
        else:
            tokenizer = tokenizers.Tokenizer.from_file(str(self._file))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_length)
        size = 1 + max(tokenizer.get_vocab().values())
        if size > self.known:
            raise ModelError(
                f"{self._file} has {size} tokens, but the tower's config.json says vocab_size={self.known}; they do not belong together"
            )
        return tokenizer

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """See `Tokenizer.encode`."""
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._tokenizer.encode_batch(list(texts))]


def pad(rows: Sequence[Ids], padding: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Token ids and attention mask, both [B, L], where L is the length of the longest row (at least 1)."""
    length = max((len(row) for row in rows), default=0) or 1
    ids = np.full((len(rows), length), padding, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
