"""MM-IMDb movies: plots, posters and genres of each client and of the server, read from CSV tables and checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from fedmap.data import server_archive
from fedmap.data.layout import LABELS_VARIABLE, DataLayout, read_labels, read_modality
from fedmap.data.reading import Movie, MovieReader, draw
from fedmap.data.splits import MODALITIES, MovieSplit
from fedmap.data.table import BadRow, Row, read_table
from fedmap.errors import ConfigError, DataError

log = logging.getLogger("fedmap.data")

DEFAULT_VALIDATION = 0.1  # share of the training rows, where there is neither a val.csv nor a validation_split


class MovieData:
    """The movies below one folder; a `fedmap.data.base.FederatedData`.

    Nothing but labels.json is read before a client's or the server's rows are asked for, and then only theirs.

    Attributes:
        label_names: the C labels of labels.json.
        modality_names: ("text", "image").
        skipped: the rows left out so far, with file, line and reason; only where on_bad_row is "skip".
    """

    modality_names = MODALITIES

    def __init__(
        self,
        root: str | os.PathLike[str] = ".",
        name: str = "MM_IMDB",
        image_size: int = 224,
        on_bad_row: Literal["error", "skip"] = "error",
        validation_split: float = 0.0,
        server_limit: int | None = None,
        server_val_share: float = 0.5,
        seed: int = 42,
        cache_dir: str | os.PathLike[str] | None = None,
        server_url: str | None = None,
        server_sha256: str | None = None,
        server_max_bytes: int = server_archive.MAX_BYTES,
        output_size: int | None = None,
    ) -> None:
        """Find labels.json and check the settings.

        Args:
            root: the folder with all_in_one_dataset/, dataset/ and server_data/.
            name: what the data set is called in messages.
            image_size: S; posters are squeezed to S x S pixels.
            on_bad_row: "error" raises on bad rows, naming them; "skip" leaves them out, logs how many and why, and lists them
                in `skipped`.
            validation_split: share s of a client's training rows that becomes its validation split, in [0, 1). With 0, val.csv is
                the validation split; where a client has no val.csv, a tenth of train.csv is taken and that is logged. With s > 0,
                train.csv and val.csv (if there is one) are pooled and s of them, chosen by seed and client, is the validation split.
            server_limit: at most so many rows in each of the server's splits, chosen by seed; None for all.
            server_val_share: share of server_test.csv that becomes the server's validation split where there is no server_val.csv,
                in (0, 1).
            seed: what the choices above depend on, with the rows' names and the client; the rows' order does not matter.
            cache_dir: folder of decoded posters; <root>/.fedmap/cache by default.
            server_url: where server_data.zip is fetched if the server's rows are missing; None never fetches.
            server_sha256: what the zip's SHA-256 must be; None takes any.
            server_max_bytes: the most that the zip may unpack to.
            output_size: the model's number of outputs, checked against labels.json; None leaves the check to `check_output_size`.

        Raises:
            ConfigError: a setting is out of its range.
            DataError: labels.json is missing, malformed or not of output_size.
        """
        self.name = name
        self.layout = DataLayout(Path(root).expanduser().resolve())
        self.image_size = _whole("image_size", image_size, least=1)
        self.on_bad_row = on_bad_row
        self.validation_split = _share("validation_split", validation_split, zero=True)
        self.server_limit = None if server_limit is None else _whole("server_limit", server_limit, least=1)
        self.server_val_share = _share("server_val_share", server_val_share, zero=False)
        self.seed = seed
        self.cache_dir = Path(cache_dir).expanduser().resolve() if cache_dir is not None else self.layout.root / ".fedmap" / "cache"
        self._archive = (server_url, server_sha256, _whole("server_max_bytes", server_max_bytes, least=1))
        if on_bad_row not in ("error", "skip"):
            raise ConfigError(f"dataset.on_bad_row is {on_bad_row!r}; expected error or skip")
        self._labels_path = self._find_labels()
        self.label_names = read_labels(self._labels_path)
        if output_size is not None:
            self.check_output_size(output_size)
        self._read: dict[int | None, dict[str, MovieSplit]] = {}
        self._reader = MovieReader(self.layout, self.label_names, self.image_size, self.cache_dir, skip=on_bad_row == "skip")

    @property
    def skipped(self) -> list[BadRow]:
        return [row for rows in self._reader.skipped.values() for row in rows]

    def check_output_size(self, output_size: int) -> None:
        """Raise a DataError if the model has another number of outputs than there are labels."""
        if output_size != len(self.label_names):
            raise DataError(
                f"model.output_size is {output_size}, but {self._labels_path} has {len(self.label_names)} labels; "
                f"set model.output_size={len(self.label_names)}"
            )

    def client_ids(self) -> list[int]:
        return self.layout.client_ids()

    def client(self, client_id: int) -> Mapping[str, MovieSplit]:
        """The client's "train", "val" and "test" splits; "test" is empty without a test.csv.

        Raises:
            DataError: the client has no rows here, a file is malformed, or rows are bad and on_bad_row is "error".
        """
        if client_id not in self._read:
            self._reader.skipped.pop(client_id, None)
            self._read[client_id] = self._read_client(client_id)
        return self._read[client_id]

    def has_server(self) -> bool:
        """Whether the server's rows are here or can be unpacked or fetched."""
        return bool(self.layout.server_tables() or self._archive[0] or (self.layout.server_data / server_archive.ARCHIVE).is_file())

    def server(self) -> Mapping[str, MovieSplit]:
        """The server's "val" and "test" splits, disjoint from each other and from the rows of all clients that lie here.

        Raises:
            DataError: there are none, a file is malformed, or rows are bad and on_bad_row is "error".
        """
        if None not in self._read:
            self._reader.skipped.pop(None, None)
            self._read[None] = self._read_server()
        return self._read[None]

    def _find_labels(self) -> Path:
        path = self.layout.find_labels()
        if path is None and self._unpack():
            path = self.layout.find_labels()
        if path is None:
            raise self.layout.labels_not_found()
        log.info("%s: labels from %s%s.", self.name, path, f" ({LABELS_VARIABLE})" if os.environ.get(LABELS_VARIABLE) else "")
        return path

    def _unpack(self) -> bool:
        url, sha256, max_bytes = self._archive
        return server_archive.unpack_server_data(self.layout.server_data, url=url, sha256=sha256, max_bytes=max_bytes)

    def _read_client(self, client_id: int) -> dict[str, MovieSplit]:
        folder = self.layout.client(client_id)
        if not folder.is_dir():
            here = ", ".join(map(str, self.client_ids())) or "none"
            raise DataError(
                f"{folder}: there is no such folder, so client {client_id} has no rows here (clients here: {here}); "
                "set client_id, or make a data set with: python data_preparation.py"
            )
        use_text, use_image = read_modality(folder / "modality.json")
        tables = {split: folder / f"{split}.csv" for split in ("test", "val", "train")}
        if not tables["train"].is_file():
            raise DataError(f"{tables['train']}: the file is missing; expected a table with the columns img_name,text,labels")
        rows = self._reader.tables(client_id, {split: path for split, path in tables.items() if path.is_file()})
        movies = {split: self._reader.movies(client_id, found, use_text, use_image, folder) for split, found in rows.items()}
        readable, store, positions = self._reader.posters(client_id, movies)
        if not readable["train"]:
            raise DataError(f"{tables['train']}: the file has no usable rows; a client needs at least one to train on")
        if "test" not in readable:
            log.info("Client %d has no test.csv; its test split is empty.", client_id)
        train, val = self._validation(client_id, readable["train"], readable.get("val"))
        chosen = {"train": train, "val": val, "test": readable.get("test", [])}
        splits = {split: self._reader.split(found, store, positions) for split, found in chosen.items()}
        self._log(f"client {client_id}", splits)
        return splits

    def _validation(self, client_id: int, train: list[Movie], val: list[Movie] | None) -> tuple[list[Movie], list[Movie]]:
        share = self.validation_split
        if share == 0 and val is not None:
            return train, val
        if share == 0:
            share = DEFAULT_VALIDATION
            log.warning(
                "Client %d has no val.csv and dataset.validation_split is 0; %g of its training rows become its validation split. "
                "Set dataset.validation_split to choose the share.",
                client_id,
                share,
            )
        elif val is not None:
            log.info("Client %d: train.csv and val.csv are pooled, and %g of the rows are the validation split.", client_id, share)
        pool = [*train, *(val or [])]
        count = min(max(round(share * len(pool)), 1), len(pool) - 1)
        validation, rest = draw(pool, count, f"{self.seed}/validation/{client_id}", lambda movie: movie.row.row_id)
        return rest, validation

    def _read_server(self) -> dict[str, MovieSplit]:
        found = self.layout.server_tables()
        if not found and self._unpack():
            found = self.layout.server_tables()
        if "server_test.csv" not in found:
            places = f"{self.layout.root / 'dataset' / 'server'} or in {self.layout.server_root()}"
            raise DataError(
                f"the server's rows were not found: expected server_test.csv (and server_val.csv) in {places}, or the zip "
                f"{self.layout.server_data / server_archive.ARCHIVE}. Make a data set with: python data_preparation.py, "
                "or set dataset.server_url to where the zip can be fetched"
            )
        tables = {split: found[f"server_{split}.csv"] for split in ("test", "val") if f"server_{split}.csv" in found}
        rows = self._reader.tables(None, tables, taken=self._client_rows())
        if "val" not in rows:
            if len(rows["test"]) < 2:
                raise DataError(f"{tables['test']}: has {len(rows['test'])} usable rows; at least 2 are needed for validation and test")
            count = min(max(round(self.server_val_share * len(rows["test"])), 1), len(rows["test"]) - 1)
            rows["val"], rows["test"] = draw(rows["test"], count, f"{self.seed}/server-validation", lambda row: row.row_id)
            log.info(
                "There is no server_val.csv: %s is split by seed %d into %d validation and %d test rows.",
                tables["test"],
                self.seed,
                len(rows["val"]),
                len(rows["test"]),
            )
        for split, table in rows.items():
            if self.server_limit is not None and len(table) > self.server_limit:
                rows[split], _ = draw(table, self.server_limit, f"{self.seed}/server-limit", lambda row: row.row_id)
                log.info("dataset.server_limit: %d of the server's %d %s rows are used.", self.server_limit, len(table), split)
        movies = {split: self._reader.movies(None, rows[split], True, True, None) for split in ("val", "test")}
        readable, store, positions = self._reader.posters(None, movies)
        for split, usable in readable.items():
            if not usable:
                source = tables.get(split, tables["test"])
                raise DataError(
                    f"{source}: no usable row is left for the server's {split} split; the server needs rows to validate and to test with"
                )
        splits = {split: self._reader.split(readable[split], store, positions) for split in ("val", "test")}
        self._log("server", splits)
        return splits

    def _client_rows(self) -> list[Row]:
        """The rows of every client on this machine, without their posters."""
        paths = (self.layout.client(client_id) / f"{split}.csv" for client_id in self.client_ids() for split in ("train", "val", "test"))
        return [row for path in paths if path.is_file() for row in read_table(path, self.label_names)[0]]

    def _log(self, owner: str, splits: Mapping[str, MovieSplit]) -> None:
        counts = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
        present = np.concatenate([split.modalities for split in splits.values()]).mean(axis=0)
        shares = ", ".join(f"{name} in {share:.0%}" for name, share in zip(MODALITIES, present, strict=True))
        log.info("%s, %s: %s rows; %s.", self.name, owner, counts, shares)


def _share(key: str, value: float, *, zero: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value < 1 if zero else 0 < value < 1):
        expected = "a share from 0 up to, not including, 1" if zero else "a share between 0 and 1"
        raise ConfigError(f"dataset.{key} is {value!r}; expected {expected}")
    return float(value)


def _whole(key: str, value: int, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"dataset.{key} is {value!r}; expected a whole number of at least {least}")
    return value
