"""Source `synthetic`: a generated look-alike of MM-IMDb, in which neither the plot nor the poster is enough alone.

Twelve genres lie on a grid of four kinds of story by three visual styles. Plots mostly tell the kind of story, posters mostly the
style; the genre is where the two meet. A few words and shapes belong to one genre alone (`text_clarity`, `image_clarity`), so that
each modality by itself is better than its groups.

                 warm        dark       cool
        heart    Romance     Drama      Comedy
        secret   Crime       Thriller   Mystery
        battle   Western     War        Action
        wonder   Fantasy     Horror     Sci-Fi
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedmap.data.importers.base import Movie
from fedmap.data.synthetic.plots import GENRES_BY_STORY, write_plot
from fedmap.data.synthetic.posters import draw_poster
from fedmap.errors import ConfigError
from fedmap.randomness import generator

__all__ = ["GENRES", "SyntheticOptions", "generate"]

STORIES = tuple(GENRES_BY_STORY)
STYLES = ("warm", "dark", "cool")
GENRES: tuple[str, ...] = tuple(genre for story in STORIES for genre in GENRES_BY_STORY[story])

# How often each genre is a movie's first one, and what goes along with it: pairs that are common on real shelves.
_PRIOR = {
    "Romance": 8, "Drama": 14, "Comedy": 13, "Crime": 8, "Thriller": 10, "Mystery": 7,
    "Western": 6, "War": 6, "Action": 9, "Fantasy": 6, "Horror": 7, "Sci-Fi": 6,
}  # fmt: skip
_PARTNERS = {
    "Romance": ("Comedy", "Drama", "Fantasy"),
    "Drama": ("Romance", "Crime", "War"),
    "Comedy": ("Romance", "Action", "Crime"),
    "Crime": ("Thriller", "Drama", "Action"),
    "Thriller": ("Crime", "Mystery", "Action"),
    "Mystery": ("Thriller", "Horror", "Crime"),
    "Western": ("Action", "Romance", "Drama"),
    "War": ("Drama", "Action", "Romance"),
    "Action": ("Thriller", "Sci-Fi", "Western"),
    "Fantasy": ("Action", "Romance", "Comedy"),
    "Horror": ("Mystery", "Thriller", "Sci-Fi"),
    "Sci-Fi": ("Action", "Horror", "Fantasy"),
}
_COUNT_SHARES = (0.45, 0.40, 0.15)  # movies with 1, 2 and 3 genres


@dataclass(frozen=True)
class SyntheticOptions:
    """What to generate.

    Attributes:
        num_movies: at least 1.
        label_noise: share of movies in [0, 1] with one genre taken away, added or exchanged after plot and poster were made.
        text_clarity: probability in [0, 1] that a telling word of a plot belongs to the genre and not to its whole kind of story.
        image_clarity: probability in [0, 1] that an emblem on a poster belongs to the genre and not to its whole style.
        width: poster width in pixels, 16 to 1024.
        height: poster height in pixels, 16 to 1024.

    Raises:
        ConfigError: a value is out of its range.
    """

    num_movies: int = 2000
    label_noise: float = 0.05
    text_clarity: float = 0.1
    image_clarity: float = 0.4
    width: int = 64
    height: int = 96

    def __post_init__(self) -> None:
        if self.num_movies < 1:
            raise ConfigError(f"num_movies={self.num_movies} must be at least 1")
        for key in ("label_noise", "text_clarity", "image_clarity"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"{key}={getattr(self, key)} must lie from 0 to 1")
        for key in ("width", "height"):
            if not 16 <= getattr(self, key) <= 1024:
                raise ConfigError(f"poster {key} {getattr(self, key)} must lie from 16 to 1024 pixels")


def generate(options: SyntheticOptions, seed: int) -> Iterator[Movie]:
    """The movies, each a function of the seed, its number and the options alone. Posters are PNG files."""
    for number in range(options.num_movies):
        rng = generator(seed, purpose="synthetic-movie", client_id=number)
        genres = _draw_genres(rng)
        text = write_plot(genres, options.text_clarity, rng)
        poster = draw_poster([_cell(genre) for genre in genres], options.image_clarity, options.width, options.height, rng)
        labels = _with_noise(genres, rng) if rng.random() < options.label_noise else genres
        yield Movie(f"synthetic_{number:06d}.png", f"synthetic movie {number}", text, labels, poster)


def _cell(genre: str) -> tuple[int, int]:
    story = next(index for index, name in enumerate(STORIES) if genre in GENRES_BY_STORY[name])
    return story, GENRES_BY_STORY[STORIES[story]].index(genre)


def _draw_genres(rng: np.random.Generator) -> tuple[str, ...]:
    prior = np.array([_PRIOR[genre] for genre in GENRES], dtype=np.float64)
    count = 1 + int(rng.choice(3, p=_COUNT_SHARES))
    chosen = [GENRES[int(rng.choice(len(GENRES), p=prior / prior.sum()))]]
    while len(chosen) < count:
        if rng.random() < 0.75:
            candidate = _PARTNERS[chosen[-1]][int(rng.integers(3))]
        else:
            candidate = GENRES[int(rng.integers(len(GENRES)))]
        if candidate not in chosen:
            chosen.append(candidate)
    return tuple(chosen)


def _with_noise(genres: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    others = [genre for genre in GENRES if genre not in genres]
    stranger = others[int(rng.integers(len(others)))]
    victim = int(rng.integers(len(genres)))
    kind = int(rng.integers(3))
    if kind == 0 and len(genres) > 1:
        return genres[:victim] + genres[victim + 1 :]
    if kind == 1 and len(genres) < 3:
        return (*genres, stranger)
    return (*genres[:victim], stranger, *genres[victim + 1 :])
