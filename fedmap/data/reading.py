"""From checked tables to splits: rows that appear twice, modalities, posters, and what to do about bad rows."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from fedmap.data.cache import content_key
from fedmap.data.layout import DataLayout, find_poster
from fedmap.data.posters import PosterStore, load_posters, why_unreadable
from fedmap.data.splits import MODALITIES, MovieSplit, PosterView
from fedmap.data.table import BadRow, Row, read_table
from fedmap.errors import DataError

log = logging.getLogger("fedmap.data")

_SHOWN = 10  # bad rows named in one message

_T = TypeVar("_T")


@dataclass(frozen=True)
class Movie:
    """A row, whether its text is used, and where its poster lies (None where the row has no image)."""

    row: Row
    has_text: bool
    poster: Path | None


class _Known:
    """Rows by what tells movies apart: the poster's name, and the text where one of two rows has no poster."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._by_id: dict[str, Row] = {}
        self._by_text: dict[str, Row] = {}
        self.add(rows)

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._by_id[row.row_id] = row
            if row.text and (not row.img_name or row.text not in self._by_text):
                self._by_text[row.text] = row

    def find(self, row: Row) -> Row | None:
        """A known row of the same movie."""
        same_text = self._by_text.get(row.text)
        if same_text is not None and row.img_name and same_text.img_name:
            same_text = None  # two posters, two movies
        return self._by_id.get(row.row_id, same_text)


class MovieReader:
    """Reads the rows of one owner after another: a client by its number, the server as None.

    Attributes:
        skipped: the bad rows of each owner that were left out.
    """

    def __init__(self, layout: DataLayout, label_names: Sequence[str], image_size: int, cache_dir: Path, *, skip: bool) -> None:
        """Read with these settings.

        Args:
            image_size: S; posters are squeezed to S x S pixels.
            cache_dir: folder of decoded posters.
            skip: leave bad rows out instead of raising.
        """
        self.layout = layout
        self.label_names = label_names
        self.image_size = image_size
        self.cache_dir = cache_dir
        self.skip = skip
        self.skipped: dict[int | None, list[BadRow]] = {}

    def tables(self, owner: int | None, tables: Mapping[str, Path], taken: Sequence[Row] = ()) -> dict[str, list[Row]]:
        """The rows of each table, none of them in an earlier table or among the taken ones."""
        elsewhere = _Known(taken)
        rows: dict[str, list[Row]] = {}
        bad: list[BadRow] = []
        for split, path in tables.items():
            found, wrong = read_table(path, self.label_names)
            bad.extend(wrong)
            rows[split] = []
            for row in found:
                other = elsewhere.find(row)
                if other is None:
                    rows[split].append(row)
                else:
                    where = f"{other.file}, line {other.line}"
                    bad.append(BadRow(path, row.line, f"{row.called} is also in {where}; a movie belongs to one split, keep one of them"))
            elsewhere.add(rows[split])
            if not found and not wrong:
                if split == "train" or (owner is None and split == "test"):
                    raise DataError(f"{path}: the file has a header and no rows")
                log.warning("%s has a header and no rows; the split is empty.", path)
        self._refuse(owner, bad)
        return rows

    def movies(self, owner: int | None, rows: Sequence[Row], use_text: bool, use_image: bool, folder: Path | None) -> list[Movie]:
        """Which modalities each row has, and where its poster lies."""
        folders = self.layout.poster_folders()
        movies: list[Movie] = []
        bad: list[BadRow] = []
        for row in rows:
            poster = find_poster(folders, row.img_name) if use_image and row.img_name else None
            reason = None
            if use_image and row.img_name and poster is None:
                looked = ", ".join(map(str, folders)) or f"neither {self.layout.shared / 'mmimdb_posters'} nor another folder of posters"
                reason = f"the poster {row.img_name!r} is missing; looked in {looked}. Put it there, or leave img_name empty"
            elif not (use_text and row.text) and poster is None:
                empty, other = ("text", "images") if use_text else ("img_name", "text")
                reason = f"{empty} is empty, and {folder and folder / 'modality.json'} says that the client uses no {other}"
            if reason is not None:
                bad.append(BadRow(row.file, row.line, reason))
            else:
                movies.append(Movie(row, use_text and bool(row.text), poster))
        self._refuse(owner, bad)
        return movies

    def posters(self, owner: int | None, movies: Mapping[str, list[Movie]]) -> tuple[dict[str, list[Movie]], PosterStore, dict[Path, int]]:
        """The movies whose posters can be decoded, the decoded posters, and where each lies in the store."""
        paths = list(dict.fromkeys(movie.poster for found in movies.values() for movie in found if movie.poster is not None))
        positions = {path: position for position, path in enumerate(paths)}
        store = load_posters(paths, self.image_size, self.cache_dir)
        reasons = {paths[position]: why_unreadable(paths[position], self.image_size) for position in np.flatnonzero(~store.readable)}
        self._refuse(
            owner,
            [
                BadRow(movie.row.file, movie.row.line, f"the poster {movie.poster} is bad: {reasons[movie.poster]}")
                for found in movies.values()
                for movie in found
                if movie.poster is not None and movie.poster in reasons
            ],
        )
        readable = {split: [movie for movie in found if movie.poster not in reasons] for split, found in movies.items()}
        return readable, store, positions

    def split(self, movies: Sequence[Movie], store: PosterStore, positions: Mapping[Path, int]) -> MovieSplit:
        labels = np.zeros((len(movies), len(self.label_names)), np.uint8)
        for position, movie in enumerate(movies):
            labels[position, list(movie.row.labels)] = 1
        modalities = np.array([(movie.has_text, movie.poster is not None) for movie in movies], np.bool_).reshape(-1, len(MODALITIES))
        row_ids = [movie.row.row_id for movie in movies]
        texts = [movie.row.text if movie.has_text else "" for movie in movies]
        chosen = np.array([-1 if movie.poster is None else positions[movie.poster] for movie in movies], np.int64)
        posters = np.concatenate([store.digests, np.zeros((1, 32), np.uint8)])[chosen]  # position -1 is the row of zeros
        return MovieSplit(
            labels=labels,
            modalities=modalities,
            row_ids=row_ids,
            texts=texts,
            images=PosterView(store.images, chosen),
            fingerprint=content_key(labels, modalities, list(self.label_names), row_ids, texts, posters, {"image_size": self.image_size}),
        )

    def _refuse(self, owner: int | None, bad: Sequence[BadRow]) -> None:
        """Raise on bad rows, or note that they are left out."""
        if not bad:
            return
        listed = "\n".join(f"  {row}" for row in bad[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        if not self.skip:
            count = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
            raise DataError(f"{count}:\n{listed}{more}\nMend the files, or leave such rows out with dataset.on_bad_row=skip")
        self.skipped.setdefault(owner, []).extend(bad)
        whose = "the server" if owner is None else f"client {owner}"
        log.warning("dataset.on_bad_row=skip: %d rows of %s are left out:\n%s%s", len(bad), whose, listed, more)


def draw(items: Sequence[_T], count: int, purpose: str, name: Callable[[_T], str]) -> tuple[list[_T], list[_T]]:
    """`count` of the items and the others, both in their order; which ones depends on the names alone, not on the order."""

    def rank(position: int) -> bytes:
        return hashlib.blake2b(f"{purpose}/{name(items[position])}".encode()).digest()

    drawn = set(sorted(range(len(items)), key=rank)[:count])
    return [item for i, item in enumerate(items) if i in drawn], [item for i, item in enumerate(items) if i not in drawn]
