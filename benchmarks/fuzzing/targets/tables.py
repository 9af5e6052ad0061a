"""Tables of movies: what a client reads, what is imported as CSV, and Parquet shards. The first byte says which."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmarks.fuzzing.choices import Choices
from fedmap.data.importers import IMPORTERS
from fedmap.data.importers.base import BadRows
from fedmap.data.table import read_table

_LABELS = ("Drama", "Comedy", "War")
_TABLES = (
    b"img_name,text,labels\na.jpg,A man falls.,Drama|War\nb.jpg,,Comedy\n,No poster here.,Drama\n",
    b'\xef\xbb\xbflabels,text,img_name,split\r\nDrama,"A ""quoted"", long\r\ntext",a.jpg,train\r\nWar,x,b.jpg,dev\r\n',
    "text;labels;img_name\nDéjà vu;Drama;a.jpg\n".encode("latin-1"),
    b"img_name,text,labels\n../../etc/passwd,up,Drama\na.jpg,nan,Dram\na.jpg\n",
    "img_name,text,labels\na.jpg,x,Drama\n".encode("utf-16"),
)


class Tables:
    """A table as a whole is refused by a `DataError`; bad rows are reported, each on its own."""

    allowed = ()
    processes = False

    def __init__(self, folder: Path) -> None:
        self.table = folder / "movies.csv"
        self.shard = folder / "train.parquet"
        picture = io.BytesIO()
        Image.new("RGB", (4, 4), "red").save(picture, "JPEG")
        self.picture = picture.getvalue()
        for name in ("a.jpg", "b.jpg"):
            (folder / name).write_bytes(self.picture)

    def seeds(self) -> Sequence[bytes]:
        """Tables of each kind, good and bad ones."""
        return [*(bytes([which]) + table for which in range(2) for table in _TABLES), *(b"\2" + shard for shard in self._shards())]

    def _shards(self) -> Sequence[bytes]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        found = []
        columns = {"image": [self.picture, None], "text": ["A man.", None], "labels": [["Drama"], ["War", "Drama"]]}
        nested = {"image": [{"bytes": self.picture, "path": "a.jpg"}], "text": ["x"], "labels": ["Drama, War"]}
        for table in (columns, nested):
            for compression in ("none", "snappy"):
                sink = io.BytesIO()
                pq.write_table(pa.table(table), sink, compression=compression)
                found.append(sink.getvalue())
        return found

    def run(self, data: bytes) -> None:
        """See the module."""
        choices = Choices(data)
        which = choices.byte() % 3
        path = self.shard if which == 2 else self.table
        path.write_bytes(choices.rest())
        if which == 0:
            rows, bad = read_table(path, _LABELS)
            for row in rows:
                assert row.row_id
                assert row.labels
                assert "/" not in row.img_name
            assert all(str(row) for row in bad)
            return
        skipping = BadRows("skip")
        for movie in IMPORTERS["csv" if which == 1 else "mmimdb_parquet"](path, skipping):
            assert movie.name == Path(movie.name).name
            assert isinstance(movie.text, str)
