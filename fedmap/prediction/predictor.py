"""The saved model of a run's folder, ready to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmap.errors import DataError, ModelError
from fedmap.prediction.loading import label_names_of, load_model, thresholds_of
from fedmap.prediction.runs import WHICH


@dataclass(frozen=True)
class Prediction:
    """One movie's scores.

    Attributes:
        label_names: the C labels in the order of the model's outputs.
        scores: [C] probabilities.
        thresholds: [C] probabilities from which a label applies.
    """

    label_names: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    thresholds: npt.NDArray[np.float64]

    @property
    def decided(self) -> tuple[str, ...]:
        """The labels that apply, the most probable first."""
        return tuple(str(row["label"]) for row in self.rows() if row["decided"])

    def rows(self) -> list[dict[str, Any]]:
        """{label, score, threshold, decided} of every label, the most probable first."""
        order = np.argsort(-self.scores, kind="stable")
        return [
            {
                "label": self.label_names[i],
                "score": round(float(self.scores[i]), 6),
                "threshold": round(float(self.thresholds[i]), 6),
                "decided": bool(self.scores[i] >= self.thresholds[i]),
            }
            for i in order
        ]


@dataclass(frozen=True)
class Predictor:
    """A model with its labels and thresholds.

    Attributes:
        model: anything with `predict_proba(texts, images)`, as `models.MMIMDbFusionModel` has it.
        label_names: the C labels in the order of its outputs.
        thresholds: [C] probabilities from which a label applies.
        run: the folder that it came from.
        which: "best", "last", or "client 3".
        tuned: where the thresholds come from, as a sentence.
    """

    model: Any
    label_names: tuple[str, ...]
    thresholds: npt.NDArray[np.float64]
    run: Path
    which: str
    tuned: str

    @staticmethod
    def open(run: Path, which: str = "best", client: int | None = None, device: str = "cpu", data: Path | None = None) -> Predictor:
        """Load a model.

        Args:
            run: the folder of a run, e.g. outputs/<date>/<time>; or a saved model's folder, then `which` means nothing.
            which: "best" or "last".
            client: whose personalised model; None is the global one.
            device: where it computes.
            data: where the client's memory and rows lie; None is where they were during the run.

        Raises:
            ModelError: there is no such model, or it cannot predict from a plot and a poster.
            DataError: the folder is no run.
        """
        if which not in WHICH:
            raise ModelError(f"model {which!r}: expected one of {', '.join(WHICH)}")
        run = Path(run)
        alone = (run / "model.safetensors").is_file()
        folder = run if alone else run / which
        if alone and client is not None:
            raise ModelError(f"{run} is a single saved model; a client's own model needs the folder of the run")
        if not folder.is_dir():
            raise DataError(
                f"{folder} does not exist; give the folder of a run that has saved a model, e.g. outputs/<date>/<time>"
                + (f"; there is {_others(run)}" if _others(run) else "")
            )
        model = load_model(folder, run.parent if alone else run).to(device).eval()
        if not callable(getattr(model, "predict_proba", None)):
            raise ModelError(
                f"{type(model).__module__}.{type(model).__qualname__} cannot predict from a poster and a plot: give it a method "
                "predict_proba(texts, images) that returns probabilities [n, labels]; see docs/guides/predict.md"
            )
        names = label_names_of(model, folder, run)
        thresholds = thresholds_of(model, folder, names)
        tuned = "thresholds tuned on the server's validation rows"
        if thresholds is None or np.all(thresholds == 0.5):
            thresholds, tuned = np.full(len(names), 0.5), "no tuned thresholds: a label applies from 0.5"
        called: str = "" if alone else which
        if client is not None:
            from fedmap.prediction.personal import personalise

            thresholds, tuned = personalise(model, run, client, names, data)
            called = f"client {client}"
        return Predictor(model, names, thresholds, run, called, tuned)

    @property
    def called(self) -> str:
        """The model for people, e.g. "the best model of outputs/2026-11-21/10-00-00"."""
        if not self.which:
            return f"the model {self.run}"
        return f"the {self.which} model of {self.run}" if self.which in WHICH else f"the model of {self.which} in {self.run}"

    def probabilities(self, texts: Sequence[str | None], images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """[n, C] of n movies.

        Args:
            texts: plots; None where there is none.
            images: posters, each a PIL image, the bytes or the path of a picture file, or None.

        Raises:
            DataError: a picture cannot be read.
            ModelError: the model gives something else than [n, C] probabilities.
        """
        found = np.asarray(self.model.predict_proba(list(texts), list(images)), dtype=np.float32)
        if found.shape != (len(texts), len(self.label_names)):
            raise ModelError(f"predict_proba gave an array of shape {found.shape}, expected {(len(texts), len(self.label_names))}")
        return found

    def predict(self, text: str | None, image: Any = None) -> Prediction:
        """One movie; see `probabilities`.

        Raises:
            DataError: there is neither text nor image, or the picture cannot be read.
        """
        if not (text and text.strip()) and image is None:
            raise DataError("there is nothing to predict from: give a plot, a poster, or both")
        return self.prediction(self.probabilities([text], [image])[0])

    def prediction(self, scores: npt.NDArray[np.float32]) -> Prediction:
        """[C] scores with this model's labels and thresholds."""
        return Prediction(self.label_names, scores, self.thresholds)


def _others(run: Path) -> str:
    return " and ".join(str(run / name) for name in WHICH if (run / name).is_dir())
