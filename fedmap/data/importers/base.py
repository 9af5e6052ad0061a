"""What every source gives: movies one at a time, so that a source larger than memory can be imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedmap.errors import DataError


@dataclass(frozen=True)
class Movie:
    """One row of a source.

    Attributes:
        name: file name of the poster; "" if the movie has no poster or its source does not name it.
        where: file and row, for messages.
        text: the plot; "" if the movie has none.
        labels: the source's own label names.
        poster: the encoded picture or the file that holds it; None if the movie has none.
        split: "train", "dev" or "test" if the source comes with a split, else "".
    """

    name: str
    where: str
    text: str
    labels: tuple[str, ...]
    poster: bytes | Path | None
    split: str = ""


@dataclass
class BadRows:
    """What to do with a row that cannot be used: stop at once, or leave it out and report it.

    Attributes:
        policy: "error" or "skip".
        skipped: one message for each row left out.
    """

    policy: str = "error"
    skipped: list[str] = field(default_factory=list)

    def report(self, message: str) -> None:
        """Note a bad row.

        Raises:
            DataError: the policy is "error".
        """
        if self.policy == "error":
            raise DataError(f"{message} (on_bad_row=skip leaves such rows out and counts them)")
        self.skipped.append(message)
