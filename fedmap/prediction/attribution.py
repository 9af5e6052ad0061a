"""What mattered for a prediction: each word of the plot and each region of the poster is taken away in turn (captum)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fedmap.data.posters import decode_poster
from fedmap.prediction.predictor import Predictor

GRID = 6  # the poster is cut into GRID x GRID regions
EDGE = 224  # pixels of the posters whose regions are covered, where the model does not say how large its own are
MAX_PARTS = 100  # words are taken away in groups where the plot has more
_AT_A_TIME = 16
_LEAST = 1e-6  # probabilities are kept this far from 0 and 1, so that their log-odds are finite
_WORD = re.compile(r"\w+(?:['\u2019\-]\w+)*")


@dataclass(frozen=True)
class Part:
    """A stretch of the plot, or a region of the poster, and what it does to each label's score.

    Attributes:
        start: of a word: its first character; of a region: its row, from above.
        end: of a word: after its last character; of a region: its column, from the left.
        effects: [C] log-odds of the labels with the part minus without it; above 0 speaks for the label.
    """

    start: int
    end: int
    effects: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """What mattered for one prediction.

    Attributes:
        log_odds: [C] of the labels with everything there.
        words: in the plot's order; none without a plot.
        regions: GRID x GRID of them, row by row; none without a poster.
    """

    log_odds: npt.NDArray[np.float64]
    words: tuple[Part, ...]
    regions: tuple[Part, ...]


def explain(predictor: Predictor, text: str | None, poster: bytes | None) -> Explanation:
    """Feature ablation over words and regions (Zeiler and Fergus, 2014, for pictures), by captum's `FeatureAblation`.

    Words are deleted, regions are covered with the poster's mean colour, one at a time, and the whole model is asked again: it makes
    no difference which towers are frozen or what the model is made of. What is said twice is missed by neither, so its effect is small.

    Args:
        predictor: the model.
        text: the plot.
        poster: the bytes of a picture file.

    Raises:
        DataError: there is nothing to explain, or the picture cannot be read.
    """
    from captum.attr import FeatureAblation

    picture = None if poster is None else _Picture(poster, getattr(predictor.model, "image_size", None) or EDGE)
    prediction = predictor.predict(text, poster)
    plot, spans = text or "", _spans(text or "")
    whole = [torch.ones(1, len(spans))] * bool(spans) + [torch.ones(1, GRID * GRID)] * (picture is not None)
    if not whole:
        return Explanation(_log_odds(prediction.scores), (), ())

    def ask(*present: torch.Tensor) -> torch.Tensor:
        """Log-odds [B, C] with the parts that are 1 in [B, words] and [B, regions]."""
        left = list(present)
        texts = [_without(plot, spans, row) for row in left.pop(0)] if spans else [text] * len(present[0])
        images = [None] * len(present[0]) if picture is None else [picture.covered(row) for row in left.pop(0)]
        return torch.from_numpy(_log_odds(predictor.probabilities(texts, images)))

    found = FeatureAblation(ask).attribute(tuple(whole), perturbations_per_eval=_AT_A_TIME)
    effects = [part.numpy().T for part in found]  # [parts, C] each
    words = effects.pop(0) if spans else ()
    regions = effects.pop(0) if picture is not None else ()
    return Explanation(
        _log_odds(prediction.scores),
        tuple(Part(start, end, effect) for (start, end), effect in zip(spans, words, strict=True)),
        tuple(Part(i // GRID, i % GRID, effect) for i, effect in enumerate(regions)),
    )


class _Picture:
    """A poster at the model's own size, of which regions can be covered."""

    def __init__(self, content: bytes, size: int) -> None:
        self.pixels = decode_poster(content, size).transpose(1, 2, 0)  # [S, S, 3]
        self.whole = Image.fromarray(self.pixels)
        self.mean = self.pixels.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
        self.edges = np.linspace(0, size, GRID + 1).round().astype(int)

    def covered(self, present: torch.Tensor) -> Image.Image:
        """The picture without the regions that are 0 in [GRID * GRID]."""
        absent = (present == 0).nonzero().flatten().tolist()
        if not absent:
            return self.whole
        pixels = self.pixels.copy()
        for region in absent:
            row, column = divmod(region, GRID)
            pixels[self.edges[row] : self.edges[row + 1], self.edges[column] : self.edges[column + 1]] = self.mean
        return Image.fromarray(pixels)


def _spans(text: str) -> list[tuple[int, int]]:
    """Where the words of a text lie, or groups of neighbouring words where there are more than MAX_PARTS."""
    words = [match.span() for match in _WORD.finditer(text)]
    size = -(-len(words) // MAX_PARTS) or 1
    groups = [words[start : start + size] for start in range(0, len(words), size)]
    return [(group[0][0], group[-1][1]) for group in groups]


def _without(text: str, spans: Sequence[tuple[int, int]], present: torch.Tensor) -> str:
    kept, last = [], 0
    for (start, end), there in zip(spans, present.tolist(), strict=True):
        if not there:
            kept.append(text[last:start])
            last = end
    return "".join(kept) + text[last:]


def _log_odds(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    clipped = np.clip(np.asarray(scores, dtype=np.float64), _LEAST, 1 - _LEAST)
    odds: npt.NDArray[np.float64] = np.log(clipped / (1 - clipped))
    return odds
