"""The server's data as one zip: fetched if configured, checked before anything of it is unpacked."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import stat
import uuid
import zipfile
from pathlib import Path, PurePosixPath

from fedmap.errors import DataError

log = logging.getLogger("fedmap.data")

ARCHIVE = "server_data.zip"
MAX_BYTES = 20 * 1000**3  # unpacked; all of MM-IMDb takes about half of it
MAX_MEMBERS = 1_000_000
_TIMEOUT = (5.0, 30.0)  # seconds to connect and between two pieces: a machine without a network is told so at once
_BLOCK = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


def unpack_server_data(folder: Path, *, url: str | None = None, sha256: str | None = None, max_bytes: int = MAX_BYTES) -> bool:
    """Unpack folder/server_data.zip into folder/server_data/, after fetching it from the url if it is missing.

    Args:
        folder: the project's server_data/.
        url: where to fetch the zip, a link to Google Drive or to any web server; None to use a zip that lies there only.
        sha256: 64 hex digits that the zip's SHA-256 must equal; None to take any zip.
        max_bytes: the zip's members may take no more than that in total, and neither may a download.

    Returns:
        True if it was unpacked, False if there is no zip and no url.

    Raises:
        DataError: the zip cannot be fetched, is not what sha256 says, or could do harm when unpacked; nothing is unpacked then.
    """
    archive, target = folder / ARCHIVE, folder / "server_data"
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DataError(f"dataset.server_sha256 is {sha256!r}; expected the 64 hex digits that sha256sum {ARCHIVE} prints, or null")
    if not archive.is_file() and url is None:
        return False
    if target.exists():
        raise DataError(f"{target} is in the way of unpacking {archive}: it has no server_test.csv or labels.json; complete or remove it")
    if url is not None and not archive.is_file():
        _fetch(url, archive, max_bytes)
    _check_digest(archive, sha256)
    temporary = folder / f".unpacking-{uuid.uuid4().hex}"
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _check_members(archive, opened, max_bytes)
            _check_space(archive, folder, sum(member.file_size for member in members))
            for member in members:
                _extract(archive, opened, member, temporary)
        temporary.rename(target)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{archive}: cannot be unpacked into {target}: {error}") from error
    except Exception as error:  # damaged bytes make the readers raise many sorts of errors
        raise DataError(
            f"{archive}: is not a sound zip ({error}); remove it and fetch it again, or put the unpacked files there"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("Unpacked %d members of %s into %s.", len(members), archive, target)
    return True


def _fetch(url: str, archive: Path, max_bytes: int) -> None:
    instead = (
        f"download it yourself and put it at {archive}, or put server_val.csv and server_test.csv into dataset/server/, "
        "or set dataset.server_url to null to do without"
    )
    if not url.startswith(("http://", "https://")):
        raise DataError(f"dataset.server_url is {url!r}; expected a link that begins with https:// or http://. Otherwise {instead}")
    try:
        import gdown
    except ImportError as error:
        raise DataError(f"fetching {url} needs the package gdown: pip install gdown. Otherwise {instead}") from error

    def progress(received: int, _total: int | None) -> None:
        if received > max_bytes:
            raise DataError(f"{url} sends more than dataset.server_max_bytes = {max_bytes:,} bytes; raise the limit if that is right")

    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.parent / f".fetching-{uuid.uuid4().hex}"
    partial.mkdir()
    log.info("Fetching the server's data from %s.", url)
    try:
        gdown.download(url, str(partial / ARCHIVE), quiet=True, use_cookies=False, progress=progress, timeout=_TIMEOUT)
        (partial / ARCHIVE).replace(archive)
    except (OSError, gdown.exceptions.DownloadError) as error:  # requests' errors are OSErrors
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{url} cannot be fetched ({reason}). Instead, {instead}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_digest(archive: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise DataError(
            f"{archive}: its SHA-256 is {found}, not {sha256.lower()} as dataset.server_sha256 says; "
            "it is another file or was damaged on its way: remove it and fetch it again, or correct the setting"
        )


def _check_members(archive: Path, opened: zipfile.ZipFile, max_bytes: int) -> list[zipfile.ZipInfo]:
    """The members, if all of them together and each on its own may be unpacked."""
    members = opened.infolist()
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise DataError(
            f"{archive}: would unpack to {total:,} bytes, more than dataset.server_max_bytes = {max_bytes:,}; "
            "it may be a zip bomb. Raise the limit if you trust it"
        )
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{archive}: has {len(members):,} members, more than {MAX_MEMBERS:,}; it may be a zip bomb")
    files: set[str] = set()
    folders: set[str] = set()
    for member in members:
        problem = _member_problem(member)
        name = PurePosixPath(member.filename).as_posix()
        parents = {parent.as_posix().casefold() for parent in PurePosixPath(name).parents} - {"."}
        known = name.casefold()  # names that differ in case only are one file on some systems
        if problem is None and (known in files or (known in folders and not member.is_dir()) or parents & files):
            problem = "has the name of another member"
        if problem is not None:
            raise DataError(f"{archive}: member {member.filename!r} {problem}; nothing was unpacked. Make the zip again without it")
        folders |= parents
        if member.is_dir():
            folders.add(known)
        else:
            files.add(known)
    return members


def _member_problem(member: zipfile.ZipInfo) -> str | None:
    name = member.orig_filename  # `filename` is cut at a zero byte
    kind = stat.S_IFMT(member.external_attr >> 16)
    path = PurePosixPath(name)
    if not name or "\\" in name or not name.isprintable():
        return "has a name with a backslash or a control character"
    if path.is_absolute() or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    if ".." in path.parts:
        return "has a path that leads out of the folder with '..'"
    if kind == stat.S_IFLNK:
        return "is a symbolic link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is not a plain file or folder"
    if member.flag_bits & 0x1:
        return "is encrypted"
    if member.compress_type not in _METHODS:  # LZMA takes as much memory as the zip says
        return "is packed by another method than stored, deflated or bzip2"
    return None


def _check_space(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{archive}: needs {needed:,} bytes unpacked, and {folder} has {free:,} free")


def _extract(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    path = target / member.filename
    if member.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with opened.open(member) as source, open(path, "xb") as sink:
        while block := source.read(_BLOCK):
            left -= len(block)
            if left < 0:  # the zip's directory told less than there is
                raise DataError(f"{archive}: member {member.filename!r} is larger than it says; it may be a zip bomb")
            sink.write(block)
