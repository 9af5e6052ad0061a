"""From a source's movies to usable rows: bad rows are reported, labels resolved, posters checked and stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmap.data.genres import LabelSet
from fedmap.data.importers import BadRows, Movie
from fedmap.data.partition import Rows, canonical_order
from fedmap.data.preparation import PreparationOptions
from fedmap.data.staging import Posters
from fedmap.errors import DataError
from fedmap.randomness import generator

_SKIPPED_SHOWN = 100
_PLACEHOLDERS = {"nan", "none", "null", "<na>", "n/a"}
_SPLITS = {"": "", "train": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev", "test": "test"}


@dataclass(frozen=True)
class Table:
    """n usable rows; their posters lie in the staging folder.

    Attributes:
        ids: n different names that order the rows: the poster's, or one made from the text.
        names: the posters' file names, "" for a row without a poster.
        texts: plots, "" for a row without one.
        labels: [n, C] uint8.
        splits: "train", "dev", "test" or "" as the source says.
    """

    ids: list[str]
    names: list[str]
    texts: list[str]
    labels: npt.NDArray[np.uint8]
    splits: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Rows) -> Table:
        """Some of the rows, in the order given."""
        ids, names, texts, splits = ([column[i] for i in rows] for column in (self.ids, self.names, self.texts, self.splits))
        return Table(ids, names, texts, self.labels[rows], splits)


def collect(
    movies: Iterable[Movie], posters: Posters, bad: BadRows, options: PreparationOptions, own_labels: Sequence[str] = ()
) -> tuple[Table, tuple[str, ...], dict[str, Any]]:
    """Read all movies.

    Args:
        own_labels: every label of a source that knows its own; "auto" then means "found", and small samples keep all of them.

    Returns:
        The rows, the label names, and for the manifest how many rows were read, kept and left out for which reason.

    Raises:
        DataError: a bad row and `bad` does not skip, or no usable row.
    """
    read, duplicates, kept = 0, 0, []
    seen: set[str] = set()
    for movie in movies:
        read += 1
        problem = _problem(movie)
        if problem is not None:
            bad.report(f"{movie.where}: {problem}")
            continue
        try:
            name = posters.add(movie) if movie.poster is not None else ""
        except DataError as error:
            bad.report(str(error))
            continue
        content = f"{posters.digests.get(name, '')} {movie.text}"
        if content in seen:  # the same movie in two splits would leak the test into the training
            duplicates += 1
            continue
        seen.add(content)
        kept.append((movie, name))

    choice = "found" if own_labels and options.labels == "auto" else options.labels
    label_set = LabelSet.resolve(choice, {*own_labels, *(label for movie, _ in kept for label in movie.labels)}, options.label_map)
    column = {name: index for index, name in enumerate(label_set.names)}
    rows, unlabelled = [], 0
    for movie, name in kept:
        try:
            labels = label_set(movie.labels)
        except DataError as error:
            bad.report(f"{movie.where}: {error}")
            continue
        if not labels:
            unlabelled += 1
            continue
        rows.append((movie, name, labels))
    if not rows:
        raise DataError(f"no usable row: {read} were read; {'; '.join(bad.skipped[:3]) or 'the source is empty'}")

    matrix = np.zeros((len(rows), len(column)), dtype=np.uint8)
    for index, (_, _, labels) in enumerate(rows):
        matrix[index, [column[label] for label in labels]] = 1
    table = Table(
        ids=[name or "text-" + hashlib.blake2b(movie.text.encode(), digest_size=8).hexdigest() for movie, name, _ in rows],
        names=[name for _, name, _ in rows],
        texts=[movie.text for movie, _, _ in rows],
        labels=matrix,
        splits=[_SPLITS[movie.split] for movie, _, _ in rows],
    )
    if options.limit is not None and options.limit < len(table):
        drawn = generator(options.seed, purpose="limit").permutation(canonical_order(table.ids))[: options.limit]
        table = table.take(np.sort(drawn))
    counts = {
        "read": read,
        "kept": len(table),
        "skipped": len(bad.skipped),
        "duplicates": duplicates,
        "without_known_label": unlabelled,
        "over_limit": len(rows) - len(table),
        "skipped_reasons": bad.skipped[:_SKIPPED_SHOWN],
    }
    return table, label_set.names, counts


def _problem(movie: Movie) -> str | None:
    if not movie.text and movie.poster is None:
        return "has neither a text nor a poster"
    if movie.text.lower() in _PLACEHOLDERS:
        return f"the text is {movie.text!r}, which programs write for a missing value; leave the field empty if there is no text"
    if not movie.labels:
        return "has no label"
    if movie.split not in _SPLITS:
        return f"split is {movie.split!r}; expected train, dev, val or test"
    return None
