"""The scale benchmark's other ground: the fusion model's head on frozen towers, and many clients with some movies each.

The towers' features are computed once, as any run does before its first round, and written to a file; what is measured is what comes
after that, hundreds of clients that train the head alone. Client k's movies follow from (seed, k): drawn from those that are not
the server's, so that two clients may have the same movie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.modality_ground import SERVER, Table, read_movies
from fedmap.data.base import Batch, Split
from fedmap.data.partition import stratified_split
from fedmap.errors import DataError
from fedmap.randomness import generator
from models import MMIMDbFusionModel


def write_features(work: Path, num_movies: int, overrides: Sequence[str]) -> Path:
    """Generate movies below `work`, compute their features, and write both to a file; returns its path."""
    movies = read_movies(work, None, num_movies, list(overrides))
    table, path = movies.table, work / "features.npz"
    np.savez(
        path,
        labels=table.labels,
        modalities=table.modalities,
        row_ids=np.array(table.row_ids),
        text=table.text,
        image=table.image,
        label_names=np.array(movies.label_names),
    )
    return path


class ManyMovies:
    """Movies dealt to many clients: `fedmap.data.base.FederatedData`.

    Args:
        features: what `write_features` has written.
        num_clients: at least 1.
        rows: of each client.
        seed: of the server's rows and of each client's.
    """

    modality_names: Sequence[str] = ["text", "image"]

    def __init__(self, features: str, num_clients: int, rows: int = 40, seed: int = 0) -> None:
        with np.load(features) as found:
            arrays = dict(found)
        self.label_names = [str(name) for name in arrays.pop("label_names")]
        ids = [str(name) for name in arrays.pop("row_ids")]
        table = Table(row_ids=ids, **arrays)
        parts = stratified_split(ids, table.labels, (*SERVER, 1 - sum(SERVER)), seed, "server")
        self.validation, self.test, self.rest = (table.take(part) for part in parts)
        if num_clients < 1 or not 1 <= rows <= len(self.rest):
            raise DataError(f"num_clients={num_clients}, rows={rows}: expected at least 1 client, with 1 to {len(self.rest)} movies")
        self.num_clients, self.rows, self.seed = num_clients, rows, seed

    def client_ids(self) -> Sequence[int]:
        """All of them."""
        return range(self.num_clients)

    def client(self, client_id: int) -> Mapping[str, Table | Chosen]:
        """The client's "train" split; its "val" and "test" splits have no rows."""
        chosen = generator(self.seed, purpose="movies", client_id=client_id).choice(len(self.rest), size=self.rows, replace=False)
        nothing = self.rest.take(_none())
        return {"train": Chosen(self.rest, np.sort(chosen)), "val": nothing, "test": nothing}

    def server(self) -> Mapping[str, Table]:
        """The server's "val" and "test" splits."""
        return {"val": self.validation, "test": self.test}


class Chosen:
    """Some rows of a table as a `fedmap.data.base.Split`; their features stay in the table, which all clients of a process share."""

    def __init__(self, table: Table, rows: npt.NDArray[np.int64]) -> None:
        self.table, self.rows = table, rows
        self.labels, self.modalities = table.labels[rows], table.modalities[rows]
        self.row_ids = [table.row_ids[row] for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """See `Split`."""
        return self.table.batch(self.rows[rows])


class Head(MMIMDbFusionModel):
    """The fusion model on rows that are features already."""

    def prepare(self, split: Split, cache_dir: Path) -> Split:  # type: ignore[override]
        """The split as it is."""
        return split


def _none() -> npt.NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)
