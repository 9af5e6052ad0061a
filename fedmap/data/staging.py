"""Writing a data set so that a killed import leaves nothing half: everything is made in a hidden folder, then moved."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fedmap.data.importers.base import Movie
from fedmap.data.layout import DataLayout
from fedmap.errors import DataError

PARTIAL = ".data_preparation"
PLOT = "label_distribution.png"
_COMPLETE = "complete"
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
_PROBE = (64, 64)  # JPEGs are decoded at this scale only, which still reads every byte


class Staging:
    """A hidden folder below the root that becomes the data set in one go.

    `begin` finishes or removes what an earlier, killed import left; `commit` moves the new data set into place.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / PARTIAL
        self.layout = DataLayout(self.folder)
        self.posters = self.layout.shared / "mmimdb_posters"

    def begin(self) -> None:
        """An empty staging folder. A complete one that was killed while moving is moved to its end first."""
        self.recover()
        try:
            self.posters.mkdir(parents=True)
        except OSError as error:
            raise DataError(f"{self.root}: cannot be written ({error}); choose another folder with root=") from error

    def recover(self) -> None:
        """Finish the commit of an import that was killed while moving; throw away one that was killed before."""
        if (self.folder / _COMPLETE).exists():
            self._move()
        shutil.rmtree(self.folder, ignore_errors=True)

    def commit(self) -> None:
        """Move the new data set to the root. What it replaces is removed; other files beside it (a README) stay."""
        (self.folder / _COMPLETE).touch()
        self._move()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _move(self) -> None:
        if not (self.folder / "moving").exists():  # holders of the replaced data set that the new one does not have must not stay
            old = DataLayout(self.root)
            for holder in [old.client(client_id) for client_id in old.client_ids()] + [self.root / "dataset" / "server"]:
                shutil.rmtree(holder, ignore_errors=True)
            (self.root / "dataset" / PLOT).unlink(missing_ok=True)
            (self.folder / "moving").touch()
        for base in ("all_in_one_dataset", "dataset"):
            (self.root / base).mkdir(exist_ok=True)
            for new in sorted((self.folder / base).iterdir()):
                place = self.root / base / new.name
                if place.is_dir():
                    shutil.rmtree(place)
                os.replace(new, place)


class Posters:
    """Checks posters and puts them into a folder.

    Attributes:
        digests: SHA-256 of each poster by file name.
    """

    def __init__(self, folder: Path, hardlink: bool) -> None:
        self.folder = folder
        self._hardlink = hardlink
        self.digests: dict[str, str] = {}

    def add(self, movie: Movie) -> str:
        """Decode the movie's poster to see that it is sound, store its bytes unchanged and return its file name.

        A poster without a name is named after its content.

        Raises:
            DataError: the poster is not a readable picture, or another one with this name is there already.
        """
        assert movie.poster is not None
        content = movie.poster if isinstance(movie.poster, bytes) else movie.poster.read_bytes()
        origin = "" if isinstance(movie.poster, bytes) else f"poster {movie.poster} "
        digest = hashlib.sha256(content).hexdigest()
        suffix = _check(content, f"{movie.where}: {origin}")
        name = movie.name or digest[:16] + suffix
        if Path(name).name != name or name in (".", "..") or not name.isprintable() or len(name.encode()) > 255:
            raise DataError(f"{movie.where}: {name!r} is not a plain file name for a poster")
        if name in self.digests and isinstance(movie.poster, bytes):  # hubs may call every picture the same
            name = digest[:16] + suffix
        if name in self.digests:
            raise DataError(f"{movie.where}: a movie with the poster {name!r} was there before; names must differ")
        target = self.folder / name
        if not (self._hardlink and isinstance(movie.poster, Path) and _link(movie.poster, target)):
            target.write_bytes(content)
        self.digests[name] = digest
        return name

    def keep_only(self, names: set[str]) -> None:
        """Remove the posters of rows that were left out later."""
        for name in self.digests.keys() - names:
            (self.folder / name).unlink()
        self.digests = {name: digest for name, digest in self.digests.items() if name in names}


def _check(content: bytes, where: str) -> str:
    """The usual suffix of a sound picture's format."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            suffix = _SUFFIXES.get(image.format or "", "")
            image.draft("RGB", _PROBE)
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not a picture in a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{where.rstrip()} cannot be decoded: {reason}; replace the file or leave the row out") from error
    return suffix


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or links are not allowed: copy instead
        return False
    return True
