"""The project's files as Flower bundles them, and whether a bundle is the same code."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import zipfile
from pathlib import Path

from fedmap.config import PROJECT
from fedmap.errors import FederationError

_NOT_APP = ("all_in_one_dataset", "dataset", "server_data", "outputs", "multirun", "demo", "docs", "certs", "node_modules", "venv")
_PRODUCT = "fedmap/"  # what server and client must have in common; models.py and hooks are everybody's own, and Flower edits pyproject.toml
_MANIFEST = ".info/CONTENT"
_MANIFEST_BYTES = 4 << 20


def stage(home: Path) -> Path:
    """Copy the app's files alone to a folder of their own: Flower would walk through data and environments to bundle the project.

    Args:
        home: a Flower home of this run.

    Returns:
        The folder.
    """

    def unwanted(folder: str, names: list[str]) -> set[str]:
        at_root = Path(folder) == PROJECT
        return {
            name
            for name in names
            if name.startswith((".", "__pycache__"))
            or (at_root and name in _NOT_APP)
            or (not name.endswith((".py", ".yaml", ".toml", "LICENSE")) and not (Path(folder) / name).is_dir())
        }

    app = home / "fedmap"
    shutil.rmtree(app, ignore_errors=True)
    shutil.copytree(PROJECT, app, ignore=unwanted)
    return app


def check_same(bundle: bytes, own: Path) -> None:
    """Check that a bundle holds the same product as a folder: nothing of it is unpacked or run.

    Args:
        bundle: Flower's app bundle, a zip archive with a list of files and their SHA-256.
        own: the folder of this machine's own copy.

    Raises:
        FederationError: a file of the product is another one, is missing, or is too many; or the bundle is damaged.
    """
    theirs = _manifest(bundle)
    ours = {path.relative_to(own).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in (own / "fedmap").rglob("*.py")}
    product = {name: digest for name, digest in theirs.items() if name.startswith(_PRODUCT)}
    different = sorted(name for name in ours.keys() | product.keys() if ours.get(name) != product.get(name))
    if different:
        more = f" and {len(different) - 1} more files differ" if different[1:] else " differs"
        raise FederationError(
            f"the server's code is not this client's: {different[0]}{more}; "
            "use the same version on both machines. Nothing of the server's code was run"
        )


def _manifest(bundle: bytes) -> dict[str, str]:
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            if archive.getinfo(_MANIFEST).file_size > _MANIFEST_BYTES:
                raise ValueError("its list of files is too long")
            rows = list(csv.reader(io.StringIO(archive.read(_MANIFEST).decode("utf-8"))))
            return {row[0]: row[1] for row in rows if row}
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError, csv.Error, NotImplementedError, EOFError) as error:
        raise FederationError(f"the server's app cannot be read as a bundle of Flower's: {error}") from error
