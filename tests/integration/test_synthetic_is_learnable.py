"""Neither modality of the synthetic movies is enough, and both together are clearly better: shown with simple models."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from fedmap.data.synthetic import GENRES, SyntheticOptions, generate
from fedmap.metrics import MultilabelCounts, tune_thresholds

TRAIN, VAL, TEST = slice(0, 1000), slice(1000, 1200), slice(1200, 1700)


def colours(poster: bytes) -> np.ndarray:
    """The poster's colour histogram, 6 x 6 x 6 bins, and its pixels at 4 x 6."""
    with Image.open(io.BytesIO(poster)) as image:
        pixels = np.asarray(image).astype(np.int64) // 43
        small = np.asarray(image.resize((4, 6))) / 255
    codes = pixels @ np.array([36, 6, 1])
    return np.concatenate([4 * np.sqrt(np.bincount(codes.ravel(), minlength=216) / codes.size), small.ravel()])


def macro_f1(features: sparse.csr_matrix, labels: np.ndarray, strength: float) -> float:
    model = OneVsRestClassifier(LogisticRegression(C=strength, max_iter=200)).fit(features[TRAIN], labels[TRAIN])
    thresholds = tune_thresholds(model.predict_proba(features[VAL]), labels[VAL])
    return MultilabelCounts.of(model.predict_proba(features[TEST]) >= thresholds, labels[TEST]).macro_f1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_text_and_poster_complete_each_other(seed):
    movies = list(generate(SyntheticOptions(num_movies=1700), seed))
    labels = np.array([[genre in movie.labels for genre in GENRES] for movie in movies])
    text = TfidfVectorizer(sublinear_tf=True).fit([m.text for m in movies[TRAIN]]).transform([m.text for m in movies])
    raw = np.array([colours(movie.poster) for movie in movies])
    image = sparse.csr_matrix(0.3 * StandardScaler().fit(raw[TRAIN]).transform(raw))
    usual = np.zeros_like(labels[TEST])
    usual[:, np.argsort(-labels[TRAIN].sum(0))[:2]] = True

    scores = {
        "text": macro_f1(text, labels, 3.0),
        "image": macro_f1(image, labels, 0.1),
        "both": macro_f1(sparse.csr_matrix(sparse.hstack([2 * text, image])), labels, 1.0),
        "most frequent": MultilabelCounts.of(usual, labels[TEST]).macro_f1,
    }
    print(scores)
    assert scores["most frequent"] < 0.2
    assert 0.5 < scores["text"] < 0.7
    assert 0.35 < scores["image"] < 0.65
    assert scores["both"] > max(scores["text"], scores["image"]) + 0.05
    assert scores["both"] < 0.9, "too easy to tell good methods from bad ones"
