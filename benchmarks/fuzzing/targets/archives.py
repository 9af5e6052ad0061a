"""The zip of the server's data, as a stranger may have packed it."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fedmap.data.server_archive import ARCHIVE, unpack_server_data

_MAX_BYTES = 1 << 20


class Archives:
    """Nothing, or the whole zip, is unpacked into one folder, within the limit; a `DataError` says why not."""

    allowed = ()
    processes = False

    def __init__(self, folder: Path) -> None:
        self.outside = folder
        self.folder = folder / "server_data"
        self.folder.mkdir()
        (folder / "bystander").write_text("unchanged")

    def seeds(self) -> Sequence[bytes]:
        """A good zip, and one for each kind of attack."""
        good = {"server_data/server_test.csv": b"img_name,text,labels\na.jpg,x,Drama\n", "server_data/labels.json": b'["Drama"]'}
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        return [
            _zip(good),
            _zip(good, zipfile.ZIP_DEFLATED),
            _zip(good, zipfile.ZIP_BZIP2),
            _zip(good, zipfile.ZIP_LZMA),
            _zip({"a/": b"", "a/b": b"1", "A/B": b"2"}),
            _zip({"../bystander": b"gone"}),
            _zip({"/tmp/bystander": b"gone"}),
            _zip({"x\\y": b"1", "C:z": b"2", "deep/../../bystander": b"3"}),
            _zip({"bomb": bytes(2 * _MAX_BYTES)}, zipfile.ZIP_DEFLATED),
            _zip({link: b"/etc/passwd", "link/passwd": b"x"}),
            _zip({}),
        ]

    def run(self, data: bytes) -> None:
        """See the module."""
        (self.folder / ARCHIVE).write_bytes(data)
        try:
            unpack_server_data(self.folder, max_bytes=_MAX_BYTES)
        finally:
            left = sorted(path.name for path in self.folder.iterdir())
            files = [path for path in self.folder.rglob("*") if path.is_file() and path.name != ARCHIVE]
            unpacked = sum(path.stat().st_size for path in files)
            links = [path for path in self.folder.rglob("*") if path.is_symlink()]
            shutil.rmtree(self.folder / "server_data", ignore_errors=True)
            assert left in ([ARCHIVE], [ARCHIVE, "server_data"], ["server_data", ARCHIVE]), left
            assert unpacked <= _MAX_BYTES, unpacked
            assert not links, links
            assert (self.outside / "bystander").read_text() == "unchanged"
            assert sorted(path.name for path in self.outside.iterdir()) == ["bystander", "server_data"]


def _zip(members: dict[str | zipfile.ZipInfo, bytes] | dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return sink.getvalue()
