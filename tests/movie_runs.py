"""Short real federations on made-up movies that leave a model which predicts well, for tests of what is done with a run."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedmap.data.prepare import prepare
from fedmap.history import RunHistory

GOOD = ("strategy=fedavg", "num_rounds=8", "num_epochs=6", "learning_rate=0.008")  # tuned test macro-F1 0.62, most first guesses right; 8 s


@dataclass(frozen=True)
class MovieRun:
    """A finished run.

    Attributes:
        outputs: the folder of its runs.
        folder: its own.
        data: the folder of its data.
        history: its results.
    """

    outputs: Path
    folder: Path
    data: Path
    history: RunHistory

    def poster(self, name: str) -> Path:
        return self.data / "all_in_one_dataset" / "mmimdb_posters" / name

    @cached_property
    def movies(self) -> list[dict[str, str]]:
        """The server's test rows: img_name, text, labels."""
        return self.rows("server/server_test.csv")

    def rows(self, table: str) -> list[dict[str, str]]:
        with (self.data / "dataset" / table).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


def movie_data(folder: Path, num_movies: int, seed: int = 3) -> Path:
    """A data set of made-up movies, dealt to five clients and the server."""
    prepare(root=str(folder), source="synthetic", num_movies=num_movies, seed=seed)
    return folder


def train_on_movies(outputs: Path, name: str, data: Path, *overrides: str) -> MovieRun:
    """Train the tiny model in this process; the run lies in outputs/<name>."""
    from tests.federations import run_locally

    folder = outputs / name
    settings = ("model=tiny", "dataset=mm_imdb", f"dataset.root={data}", "dataset.image_size=32", *overrides)
    return MovieRun(outputs, folder, data, run_locally(folder, *settings))
