"""Rows of the CSV tables img_name,text,labels, checked one by one."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmap.errors import DataError

COLUMNS = ("img_name", "text", "labels")
_PLACEHOLDERS = {"nan", "none", "null", "<na>", "n/a"}


@dataclass(frozen=True)
class Row:
    """One movie. An empty text or img_name says that the movie has no such modality.

    Attributes:
        file: the table.
        line: where the row begins, as an editor counts; the header is line 1.
        labels: positions in the list of label names, ascending.
    """

    file: Path
    line: int
    img_name: str
    text: str
    labels: tuple[int, ...]

    @property
    def row_id(self) -> str:
        """The poster's name; for a movie without one a name made from its text."""
        return self.img_name or "text-" + hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()

    @property
    def called(self) -> str:
        """What the row is called in messages."""
        return repr(self.img_name) if self.img_name else "a row without poster and with the same text"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


def read_table(path: Path, label_names: Sequence[str], *, labelled: bool = True) -> tuple[list[Row], list[BadRow]]:
    """The good and the bad rows of a table, in its order. Columns may come in any order, and others are passed over.

    Args:
        path: a CSV file in UTF-8.
        label_names: the labels there are.
        labelled: False lets the column labels be missing; all rows then have no labels.

    Raises:
        DataError: the file as a whole cannot be read: it is missing, empty, not UTF-8, not CSV, or lacks a column.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    positions = {name: position for position, name in enumerate(label_names)}
    columns: list[int] = []
    width, begins = 0, 1
    rows: list[Row] = []
    bad: list[BadRow] = []
    first_line: dict[str, int] = {}
    try:
        for fields in reader:
            line, begins = begins, reader.line_num + 1
            if not fields:
                continue
            if not columns:
                columns, width = _columns(path, fields, labelled), len(fields)
                continue
            row = _row(path, line, fields, columns, width, positions)
            if isinstance(row, Row) and row.row_id in first_line:
                row = BadRow(path, line, f"{row.called} is in this file already, in line {first_line[row.row_id]}; keep one of them")
            if isinstance(row, BadRow):
                bad.append(row)
                continue
            first_line[row.row_id] = line
            rows.append(row)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {begins}: the row that begins here is not valid CSV ({error}); "
            "a field with commas, quotes or line breaks stands in double quotes, and a quote inside it is doubled"
        ) from error
    if not columns:
        raise DataError(f"{path}: the file is empty; expected the header {','.join(COLUMNS)} and one row per movie")
    return rows, bad


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: the file is UTF-16; save it as UTF-8")
    start = 3 if content.startswith(b"\xef\xbb\xbf") else 0  # some editors mark UTF-8 so
    try:
        return content[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start
        raise DataError(
            f"{path}, line {content.count(bytes([10]), 0, offset) + 1}: byte 0x{content[offset]:02x} at offset {offset} is not UTF-8; "
            "the file may be Latin-1 or Windows-1252: save it as UTF-8"
        ) from error


def _columns(path: Path, header: Sequence[str], labelled: bool) -> list[int]:
    """Where img_name, text and, if there are any, labels stand in a row."""
    names = [name.strip() for name in header]
    found = f"the header is {','.join(names)!r}"
    expected = COLUMNS if labelled or "labels" in names else COLUMNS[:2]
    for name in expected:
        if name not in names:
            hint = "; separate the columns by commas" if len(names) == 1 and any(mark in names[0] for mark in ";\t") else ""
            raise DataError(f"{path}: column {name!r} is missing: {found}, expected {','.join(COLUMNS)!r}{hint}")
        if names.count(name) > 1:
            raise DataError(f"{path}: column {name!r} appears more than once: {found}")
    return [names.index(name) for name in expected]


def _row(path: Path, line: int, fields: Sequence[str], columns: Sequence[int], width: int, positions: dict[str, int]) -> Row | BadRow:
    if len(fields) != width:
        return BadRow(path, line, f"has {len(fields)} fields where the header has {width}; a text with commas stands in double quotes")
    img_name, text, *rest = (fields[column].strip() for column in columns)
    if not img_name and not text:
        return BadRow(path, line, "img_name and text are both empty, which leaves nothing to learn from")
    reason = _image_name_problem(img_name)
    if reason is None and text.lower() in _PLACEHOLDERS:
        reason = f"the text is {text!r}, which programs write for a missing value; leave the field empty if there is no text"
    if reason is not None:
        return BadRow(path, line, reason)
    if not rest:
        return Row(path, line, img_name, text, ())
    labels = rest[0]
    names = [name.strip() for name in labels.split("|")]
    if not labels or "" in names:
        return BadRow(path, line, f"labels is {labels!r}; expected label names separated by '|', such as 'Drama|Romance'")
    for name in names:
        if name not in positions:
            lower = {known.lower(): known for known in positions}
            near = difflib.get_close_matches(name.lower(), list(lower), n=1)
            hint = f"did you mean {lower[near[0]]!r}?" if near else f"labels.json has {', '.join(positions)}"
            return BadRow(path, line, f"unknown label {name!r}; {hint}")
    return Row(path, line, img_name, text, tuple(sorted({positions[name] for name in names})))


def _image_name_problem(img_name: str) -> str | None:
    if any(mark in img_name for mark in "/\\") or img_name in (".", "..") or not img_name.isprintable():
        return f"img_name {img_name!r} is not a plain file name; posters lie in one folder, and a name must not lead out of it"
    if len(img_name.encode()) > 255:
        return f"img_name is {len(img_name.encode())} bytes long; a file name has at most 255"
    return None
