"""Where the files of a federation's data lie below one folder, the root.

all_in_one_dataset/{labels.json, mmimdb_posters/ or img/}     shared by everyone on this machine
dataset/client_<k>/{train,val,test}.csv, modality.json         the rows of client k
dataset/server/{server_val,server_test}.csv                    the server's rows
server_data/                                                   or the server's rows, labels and posters, unpacked or as a zip
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmap.errors import DataError

LABELS_VARIABLE = "LABELS_JSON_PATH"
SERVER_TABLES = ("server_val.csv", "server_test.csv")
POSTER_FOLDERS = ("mmimdb_posters", "img")
_CLIENT = re.compile(r"client_(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class DataLayout:
    """The paths of the layout; nothing is read or made by asking for them."""

    root: Path

    @property
    def shared(self) -> Path:
        return self.root / "all_in_one_dataset"

    @property
    def server_data(self) -> Path:
        return self.root / "server_data"

    def client(self, client_id: int) -> Path:
        return self.root / "dataset" / f"client_{client_id}"

    def client_ids(self) -> list[int]:
        """The k of every folder dataset/client_<k>, ascending."""
        folder = self.root / "dataset"
        if not folder.is_dir():
            return []
        matches = (_CLIENT.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in matches if match)

    def server_root(self) -> Path:
        """server_data/, or the folder of that name inside it, and so on down, as zips that hold their own folder unpack.

        The descent ends at the first level with a server table, else at the deepest one.
        """
        folder = self.server_data
        while (folder / "server_data").is_dir() and not any((folder / name).is_file() for name in SERVER_TABLES):
            folder /= "server_data"
        return folder

    def server_tables(self) -> dict[str, Path]:
        """The server's tables by file name, from dataset/server/ if it has any, else from the server root; maybe none."""
        for folder in (self.root / "dataset" / "server", self.server_root()):
            tables = {name: folder / name for name in SERVER_TABLES if (folder / name).is_file()}
            if tables:
                return tables
        return {}

    def poster_folders(self) -> list[Path]:
        """The existing folders of posters in the order in which a poster is looked up."""
        places = [base / name for base in (self.shared, self.server_root()) for name in POSTER_FOLDERS]
        return [place for place in places if place.is_dir()]

    def find_labels(self) -> Path | None:
        """labels.json from LABELS_JSON_PATH, all_in_one_dataset/, the server root, or the first found below it; None if nowhere.

        Raises:
            DataError: the environment variable names no file. It is not passed over: other labels would train another model.
        """
        named = os.environ.get(LABELS_VARIABLE)
        if named:
            path = Path(named).expanduser()
            if not path.is_file():
                raise DataError(f"the environment variable {LABELS_VARIABLE} names {named}, which is not a file; correct it or unset it")
            return path
        server_root = self.server_root()
        for path in (self.shared / "labels.json", server_root / "labels.json"):
            if path.is_file():
                return path
        for base in (server_root, self.server_data):
            below = (path for path in base.rglob("labels.json") if path.is_file())
            found = sorted(below, key=lambda path: (len(path.parts), path.as_posix()))
            if found:
                return found[0]
        return None

    def labels_not_found(self) -> DataError:
        return DataError(
            f"labels.json was not found. Looked at: the environment variable {LABELS_VARIABLE} (not set), {self.shared / 'labels.json'}, "
            f"{self.server_root() / 'labels.json'}, and everywhere below {self.server_data}. Write the list of label names there, "
            f"set {LABELS_VARIABLE}, or make a data set with: python data_preparation.py"
        )


def read_labels(path: Path) -> tuple[str, ...]:
    """The label names of a labels.json, in the order of the model's outputs.

    Raises:
        DataError: it is not a JSON list of unique, non-empty names without "|" or surrounding spaces.
    """
    expected = 'expected a JSON list of unique label names such as ["Action", "Comedy"]'
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"{path}: is not JSON in UTF-8 ({error}); {expected}") from error
    if not isinstance(found, list):
        raise DataError(f"{path}: holds {_kind(found)}; {expected}")
    if not found:
        raise DataError(f"{path}: the list is empty; {expected}")
    seen: dict[str, int] = {}
    for position, name in enumerate(found, start=1):
        if not isinstance(name, str):
            raise DataError(f"{path}: entry {position} is {_kind(name)}; {expected}")
        if not name.strip() or name != name.strip() or "|" in name:
            raise DataError(f"{path}: entry {position} is {name!r}; a label name is not empty and has no '|' and no spaces around it")
        if name in seen:
            raise DataError(f"{path}: {name!r} is entry {seen[name]} and again entry {position}; {expected}")
        seen[name] = position
    return tuple(found)


def read_modality(path: Path) -> tuple[bool, bool]:
    """(use_text, use_image) of a client's modality.json; both if there is no such file, and 1 for a key that it leaves out.

    Raises:
        DataError: it is not a JSON object of use_text and use_image with values 0 or 1, or both are 0.
    """
    expected = 'expected for example {"use_text": 1, "use_image": 0}'
    if not path.is_file():
        return True, True
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON in UTF-8 ({error}); {expected}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds {_kind(found)}; {expected}")
    for key, value in found.items():
        if key not in ("use_text", "use_image"):
            raise DataError(f"{path}: unknown key {key!r}; {expected}")
        if not isinstance(value, int) or value not in (0, 1):
            raise DataError(f"{path}: {key} is {json.dumps(value)}, not 0 or 1; {expected}")
    use_text, use_image = bool(found.get("use_text", 1)), bool(found.get("use_image", 1))
    if not use_text and not use_image:
        raise DataError(f"{path}: use_text and use_image are both 0, which leaves nothing to learn from; {expected}")
    return use_text, use_image


def find_poster(folders: Sequence[Path], img_name: str) -> Path | None:
    """The poster in the first folder that has it."""
    return next((folder / img_name for folder in folders if (folder / img_name).is_file()), None)


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")
