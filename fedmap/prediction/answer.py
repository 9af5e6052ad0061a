"""What the command line and the HTTP service answer about one movie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmap.data.posters import decode_poster
from fedmap.errors import DataError
from fedmap.prediction.predictor import Prediction, Predictor

if TYPE_CHECKING:
    from fedmap.prediction.attribution import Explanation, Part


@dataclass(frozen=True)
class Answer:
    """One movie's prediction, and what it would be without one of the modalities.

    Attributes:
        predictor: the model that was asked.
        text: the plot; "" where there is none.
        prediction: from everything that was given.
        without_poster: from the plot alone; None where there was only one of the two.
        without_text: from the poster alone.
        explanation: what mattered, where that was asked for.
    """

    predictor: Predictor
    text: str
    prediction: Prediction
    without_poster: Prediction | None
    without_text: Prediction | None
    explanation: Explanation | None

    def document(self) -> dict[str, Any]:
        """The answer as JSON holds it; docs/guides/predict.md explains it."""
        names = self.prediction.label_names
        document: dict[str, Any] = {
            "model": {"run": str(self.predictor.run), "which": self.predictor.which, "thresholds": self.predictor.tuned},
            "decided": list(self.prediction.decided),
            "scores": self.prediction.rows(),
            "without_poster": None if self.without_poster is None else self.without_poster.rows(),
            "without_text": None if self.without_text is None else self.without_text.rows(),
            "explanation": None,
        }
        if self.explanation is not None:

            def effects(part: Part) -> dict[str, float]:
                return {name: round(float(effect), 4) for name, effect in zip(names, part.effects, strict=True)}

            document["explanation"] = {
                "log_odds": {name: round(float(value), 4) for name, value in zip(names, self.explanation.log_odds, strict=True)},
                "words": [
                    {"start": part.start, "end": part.end, "word": self.text[part.start : part.end], "effects": effects(part)}
                    for part in self.explanation.words
                ],
                "regions": [{"row": part.start, "column": part.end, "effects": effects(part)} for part in self.explanation.regions],
            }
        return document


def answer(predictor: Predictor, text: str | None, poster: bytes | None, *, explained: bool = False) -> Answer:
    """Predict one movie.

    Args:
        predictor: the model.
        text: the plot.
        poster: the bytes of a picture file.
        explained: also say what mattered, which asks the model once per word and region.

    Raises:
        DataError: there is neither plot nor poster, or the picture cannot be read.
    """
    plot = text if text and text.strip() else None
    if plot is None and poster is None:
        raise DataError("there is nothing to predict from: give a plot, a poster, or both")
    if poster is not None:
        decode_poster(poster, 8)  # limits and a clear reason, whatever the model does with pictures
    both = plot is not None and poster is not None
    scores = predictor.probabilities([plot, plot, None], [poster, None, poster]) if both else predictor.probabilities([plot], [poster])
    made = [predictor.prediction(np.asarray(row)) for row in scores]
    explanation = None
    if explained:
        from fedmap.prediction.attribution import explain

        explanation = explain(predictor, plot, poster)
    return Answer(predictor, text or "", made[0], made[1] if both else None, made[2] if both else None, explanation)
