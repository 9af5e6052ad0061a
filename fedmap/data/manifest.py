"""The manifest of a prepared data set: where it came from, how it was dealt, how many rows of what, and checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedmap.errors import DataError

NAME = "manifest.json"
FORMAT = 1


def describe_rows(labels: npt.NDArray[np.uint8], has_text: npt.ArrayLike, has_image: npt.ArrayLike, names: Sequence[str]) -> dict[str, Any]:
    """The counts of one split.

    Args:
        labels: [n, C].
        has_text: [n] booleans.
        has_image: [n] booleans.
        names: the C labels.
    """
    counts = labels.sum(0, dtype=np.int64)
    return {
        "rows": len(labels),
        "with_text": int(np.sum(has_text)),
        "with_image": int(np.sum(has_image)),
        "labels": {name: int(count) for name, count in zip(names, counts, strict=True)},
    }


def checksums(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its path below `folder`."""
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def digest(value: Any) -> str:
    """SHA-256 of a value's JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read(dataset: Path) -> dict[str, Any] | None:
    """The manifest in the folder dataset/; None if there is none.

    Raises:
        DataError: the file is not a manifest of this format.
    """
    path = dataset / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); prepare the data again with overwrite=true") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: not a manifest of format {FORMAT}; prepare the data again with overwrite=true")
    try:
        table(content)
        sound = isinstance(content["posters"]["files"], int) and all(isinstance(part, str) for part in content["checksums"])
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise DataError(f"{path}: the manifest is damaged; prepare the data again with overwrite=true")
    return content


def changed_files(root: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The files of the manifest that are gone or differ from their checksum; posters are checked by name."""
    wrong = [
        name
        for name, expected in manifest["checksums"].items()
        if not (root / name).is_file() or hashlib.sha256((root / name).read_bytes()).hexdigest() != expected
    ]
    folder = root / "all_in_one_dataset" / "mmimdb_posters"
    present = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
    if present != manifest["posters"]["files"]:
        wrong.append(folder.relative_to(root).as_posix())
    return wrong


def table(manifest: Mapping[str, Any]) -> str:
    """The counts as a plain table for the terminal."""
    lines = [f"{'':12}{'rows':>7}{'train':>7}{'val':>7}{'test':>7}{'text':>7}{'image':>7}  modalities"]
    for holder, entry in manifest["counts"].items():
        splits = entry["splits"]
        cells = [sum(s["rows"] for s in splits.values()), *(splits[k]["rows"] if k in splits else "-" for k in ("train", "val", "test"))]
        cells += [sum(s[k] for s in splits.values()) for k in ("with_text", "with_image")]
        lines.append(f"{holder:12}" + "".join(f"{cell:>7}" for cell in cells) + f"  {entry['modalities']}")
    return "\n".join(lines)
