"""The genres of MM-IMDb, and how the labels of a source become the label list of a data set."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedmap.errors import DataError

# Arevalo et al., "Gated Multimodal Units for Information Fusion" (arXiv 1702.01992), table 1.
MMIMDB23: tuple[str, ...] = (
    "Action",
    "Adventure",
    "Animation",
    "Biography",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Family",
    "Fantasy",
    "Film-Noir",
    "History",
    "Horror",
    "Music",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Short",
    "Sport",
    "Thriller",
    "War",
    "Western",
)

# The raw archive has four more, too rare to learn; the paper leaves them out.
DROPPED: frozenset[str] = frozenset({"Adult", "News", "Reality-TV", "Talk-Show"})


def split_labels(field: str) -> tuple[str, ...]:
    """Labels from one text field: separated by "|", or by commas where there is no "|"; blanks and repeats removed."""
    parts = field.split("|") if "|" in field else field.split(",")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


class LabelSet:
    """The ordered labels of a data set, and the way from a source's labels to them."""

    def __init__(self, names: Sequence[str], mapping: Mapping[str, str | None], dropped: frozenset[str], hints: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        self._hints = tuple(hints or names)
        self._known = frozenset(names)
        self._mapping = dict(mapping)
        self._dropped = dropped

    @staticmethod
    def resolve(choice: str, found: Iterable[str], mapping: Mapping[str, str | None]) -> LabelSet:
        """The label set for `choice`.

        Args:
            choice: "mmimdb23" (the 23 genres), "found" (the source's labels, sorted), a path to a JSON list of names,
                or "auto": the 23 if at least half of the source's distinct labels are MM-IMDb genres (a misspelt one is
                then an error), else what was found.
            found: every label that occurs in the source.
            mapping: source label -> label of the data set, or None to drop it.

        Raises:
            DataError: no label at all, a malformed JSON file, or a mapping onto a label that does not exist.
        """
        targets = {mapping.get(label, label) for label in found} - {None}
        present = sorted(str(label) for label in targets)
        movie_genres = set(MMIMDB23) | DROPPED
        movies = choice == "mmimdb23"
        names: Sequence[str]
        if choice == "auto" and 2 * len(movie_genres.intersection(present)) >= max(1, len(present)):
            movies, names = True, [genre for genre in MMIMDB23 if genre in targets]
        elif movies:
            names = MMIMDB23
        elif choice in ("auto", "found"):
            names = present
        else:
            names = _read_names(Path(choice))
        if not names:
            raise DataError("the source has no labels at all; fill its labels column or give labels=<path to a JSON list>")
        dropped = DROPPED if movies else frozenset()
        for source, target in mapping.items():
            if target is not None and target not in names and target not in dropped:
                raise DataError(f"label_map maps {source!r} to {target!r}, which is not a label of the data set{_near(target, names)}")
        return LabelSet(names, mapping, dropped, MMIMDB23 if movies else ())

    def __call__(self, labels: Iterable[str]) -> tuple[str, ...]:
        """The labels of one row in the data set's order; empty if all of them are dropped ones.

        Raises:
            DataError: a label is unknown; the nearest one and the way to map it are named.
        """
        kept: set[str] = set()
        for label in labels:
            target = self._mapping.get(label, label)
            if target is None or target in self._dropped:
                continue
            if target not in self._known:
                raise DataError(
                    f"unknown label {label!r}{_near(label, self._hints)}; expected one of the {len(self.names)} labels of the data set; "
                    f"to map it write '+label_map.{label}=<label>', or null to drop it"
                )
            kept.add(target)
        return tuple(name for name in self.names if name in kept)


def _near(label: str, names: Sequence[str]) -> str:
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(label.lower(), list(by_lower), n=1, cutoff=0.5)
    return f" (did you mean {by_lower[near[0]]!r}?)" if near else ""


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"labels={path}: expected auto, mmimdb23, found or the path of an existing JSON file with a list of names")
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); expected a list of label names") from error
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names) or len(set(names)) != len(names):
        raise DataError(f'{path}: expected a JSON list of different label names, for example ["Action", "Comedy"]')
    return names
