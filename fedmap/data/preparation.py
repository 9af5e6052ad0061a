"""The settings of one data preparation, checked at the door."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from fedmap.data.importers import IMPORTERS
from fedmap.data.modality import client_modalities, missing_rates
from fedmap.data.partition import PROPORTIONS, Policy
from fedmap.data.synthetic import SyntheticOptions
from fedmap.errors import ConfigError

SOURCES = ("auto", "synthetic", *IMPORTERS)


@dataclass(frozen=True)
class PreparationOptions:
    """What to import, how to deal it and where to write it. `conf/data_preparation.yaml` explains every key.

    Raises:
        ConfigError: a value is out of its range, of the wrong kind, or contradicts another.
    """

    root: str = "."
    source: str = "auto"
    path: str | None = None
    seed: int = 42
    labels: str = "auto"
    label_map: Mapping[str, str | None] = field(default_factory=dict)
    limit: int | None = None
    on_bad_row: str = "error"
    posters: str = "copy"
    plot: bool = True
    overwrite: bool = False
    policy: str = "proportions"
    clients: int | None = None
    proportions: tuple[float, ...] = PROPORTIONS
    alpha: float = 0.5
    labels_per_client: int = 4
    min_rows: int = 10
    split: tuple[float, ...] = (0.7, 0.1, 0.2)
    server: str = "share"
    server_val: float = 0.1
    server_test: float = 0.1
    modalities: Any = "both"
    missing_text: Any = 0.0
    missing_image: Any = 0.0
    shuffle_labels: tuple[int, ...] = ()
    num_movies: int = 2000
    label_noise: float = SyntheticOptions.label_noise
    text_clarity: float = SyntheticOptions.text_clarity
    image_clarity: float = SyntheticOptions.image_clarity
    poster_size: tuple[int, int] = (64, 96)

    @staticmethod
    def of(settings: Mapping[str, Any]) -> PreparationOptions:
        """Options from plain settings; keys that are left out keep their defaults.

        Raises:
            ConfigError: an unknown key (the nearest one is named) or a bad value.
        """
        known = [f.name for f in fields(PreparationOptions)]
        for key in settings:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                raise ConfigError(f"there is no setting {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"expected {known}"))
        return PreparationOptions(**{key: _checked(key, value) for key, value in settings.items()})

    def __post_init__(self) -> None:
        _one_of("source", self.source, SOURCES)
        _one_of("on_bad_row", self.on_bad_row, ("error", "skip"))
        _one_of("posters", self.posters, ("copy", "hardlink"))
        _one_of("server", self.server, ("share", "source"))
        if self.source not in ("auto", "synthetic") and self.path is None:
            raise ConfigError(f"source={self.source} needs path=<file or folder>")
        if self.source == "synthetic" and self.path is not None:
            raise ConfigError(f"source=synthetic reads nothing, but path={self.path} is given; leave one of them out")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit} must be at least 1, or null for all rows")
        if len(self.split) != 3 or not np.isclose(sum(self.split), 1.0) or min(self.split) < 0 or self.split[0] == 0:
            raise ConfigError(f"split={list(self.split)} must be the shares [train, val, test]; they add up to 1 and train is above 0")
        if min(self.server_val, self.server_test) < 0 or self.server_val + self.server_test >= 1:
            raise ConfigError(
                f"server_val={self.server_val} and server_test={self.server_test} are shares of all rows: 0 or more, together below 1"
            )
        clients = self.num_clients
        client_modalities(self.modalities, clients)
        missing_rates("missing_text", self.missing_text, clients)
        missing_rates("missing_image", self.missing_image, clients)
        for client_id in self.shuffle_labels:
            if not 0 <= client_id < clients:
                raise ConfigError(f"shuffle_labels names client {client_id}; there are the clients 0 to {clients - 1}")
        self.dealing()
        self.synthetic()

    @property
    def num_clients(self) -> int:
        """`clients`, or as many as there are proportions."""
        return len(self.proportions) if self.clients is None else self.clients

    def dealing(self) -> Policy:
        """The partition policy."""
        return Policy(self.policy, self.num_clients, self.proportions, self.alpha, self.labels_per_client, self.min_rows)

    def synthetic(self) -> SyntheticOptions:
        """What to generate."""
        width, height = self.poster_size
        return SyntheticOptions(self.num_movies, self.label_noise, self.text_clarity, self.image_clarity, width, height)

    def recorded(self, source: str) -> dict[str, Any]:
        """The settings that decide the content of the data set, as plain values for the manifest."""
        skipped = {"root", "path", "overwrite", "plot", "posters", "source", "seed"}
        if source != "synthetic":
            skipped |= {"num_movies", "label_noise", "text_clarity", "image_clarity", "poster_size"}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped}
        plain["clients"] = self.num_clients
        return {key: _plain(value) for key, value in plain.items()}


_NUMBERS = {"alpha", "server_val", "server_test", "label_noise", "text_clarity", "image_clarity"}
_INTEGERS = {"seed", "labels_per_client", "min_rows", "num_movies"}
_LISTS = {"proportions": float, "split": float, "shuffle_labels": int, "poster_size": int}


def _checked(key: str, value: Any) -> Any:
    """The value with lists as tuples and paths as texts.

    Raises:
        ConfigError: it is of the wrong kind.
    """
    if key in _LISTS:
        kind = "whole numbers" if _LISTS[key] is int else "numbers"
        if isinstance(value, str) or not hasattr(value, "__iter__") or not all(_is_number(v, _LISTS[key]) for v in value):
            raise ConfigError(f"{key}={value!r} must be a list of {kind}")
        if key == "poster_size" and len(value) != 2:
            raise ConfigError(f"poster_size={list(value)} must be [width, height] in pixels")
        return tuple(value)
    if key in _INTEGERS or (key in ("clients", "limit") and value is not None):
        if not _is_number(value, int):
            raise ConfigError(f"{key}={value!r} must be a whole number")
    elif key in _NUMBERS and not _is_number(value, float):
        raise ConfigError(f"{key}={value!r} must be a number")
    elif key in ("overwrite", "plot") and not isinstance(value, bool):
        raise ConfigError(f"{key}={value!r} must be true or false")
    elif key == "label_map":
        if not isinstance(value, Mapping) or not all(isinstance(v, (str, type(None))) for v in value.values()):
            raise ConfigError(f"label_map={value!r} must map labels of the source to labels of the data set or null")
        return {str(name): target for name, target in value.items()}
    elif key in ("path", "root") and isinstance(value, Path):
        return str(value)
    return value


def _is_number(value: Any, kind: type) -> bool:
    return not isinstance(value, bool) and isinstance(value, int if kind is int else (int, float))


def _one_of(key: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        near = difflib.get_close_matches(str(value), options, n=1)
        raise ConfigError(
            f"{key}={value!r} is unknown; expected one of {', '.join(options)}" + (f"; did you mean {near[0]!r}?" if near else "")
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in sorted(value.items())}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
