"""Every source read from small real files, and what each says about bad ones."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedmap.data.importers import IMPORTERS, BadRows, detect
from fedmap.errors import DataError


def picture(shade: int, format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((12, 8, 3), shade, dtype=np.uint8)).save(file, format)
    return file.getvalue()


def read(source, path, policy="error"):
    bad = BadRows(policy)
    return list(IMPORTERS[source](path, bad)), bad.skipped


@pytest.fixture
def csv_folder(tmp_path):
    (tmp_path / "posters").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "posters" / name).write_bytes(picture(90))
    return tmp_path


def write_csv(folder, content):
    (folder / "movies.csv").write_text(content, encoding="utf-8")
    return folder


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    movies = {
        "0000002": {"plot": ["short", "the longest plot"], "genres": ["Drama", "News"]},
        "0000001": {"plot": "one plot", "genres": ["Talk-Show"]},
    }
    for movie_id, content in movies.items():
        (folder / f"{movie_id}.json").write_text(json.dumps(content))
        (folder / f"{movie_id}.jpeg").write_bytes(picture(50))
    (tmp_path / "split.json").write_text(json.dumps({"train": ["0000001"], "dev": ["0000002"], "test": []}))
    return tmp_path


def write_shard(path, columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_csv_rows_keep_quotes_commas_and_empty_fields(csv_folder):
    write_csv(
        csv_folder, '\ufeffimg_name,text,labels\na.jpg,"A ""plot"", with\ntwo lines",Drama|Comedy\nb.jpg,,"Crime, War"\n,only text,War\n'
    )
    movies, skipped = read("csv", csv_folder)
    assert [(m.name, m.text, m.labels) for m in movies] == [
        ("a.jpg", 'A "plot", with\ntwo lines', ("Drama", "Comedy")),
        ("b.jpg", "", ("Crime", "War")),
        ("", "only text", ("War",)),
    ]
    assert movies[0].poster == csv_folder / "posters" / "a.jpg"
    assert movies[2].poster is None
    assert not skipped


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("img_name,plot,labels\n", r"movies\.csv: column 'text' is missing; the header is \['img_name', 'plot', 'labels'\]"),
        ("", "column 'img_name' is missing"),
        ("img_name,text,labels\na.jpg,t,Drama,x\n", r"movies\.csv, row 1: has more fields than the header; quote texts"),
        ("img_name,text,labels\na.jpg,t\n", "row 1: has fewer fields"),
        ("img_name,text,labels\na.jpg,t,Drama\nc.jpg,t,Drama\n", r"row 2: poster .*c\.jpg does not exist \(on_bad_row=skip"),
        ("img_name,text,labels\n../a.jpg,t,Drama\n", r"row 1: img_name '\.\./a\.jpg' must be a plain file name"),
        ('img_name,text,labels\na.jpg,"t,Drama\n', r"near line \d: not a valid UTF-8 CSV file"),
    ],
)
def test_a_bad_csv_is_named_with_its_row(csv_folder, content, message):
    with pytest.raises(DataError, match=message):
        read("csv", write_csv(csv_folder, content))


def test_a_csv_that_is_not_utf8_is_an_error(csv_folder):
    (csv_folder / "movies.csv").write_bytes(b"img_name,text,labels\na.jpg,caf\xe9,Drama\n")
    with pytest.raises(DataError, match="not a valid UTF-8 CSV file"):
        read("csv", csv_folder)


def test_bad_csv_rows_can_be_skipped_and_are_listed(csv_folder):
    movies, skipped = read("csv", write_csv(csv_folder, "img_name,text,labels\nc.jpg,t,Drama\na.jpg,t,Drama\n"), "skip")
    assert [m.name for m in movies] == ["a.jpg"]
    assert len(skipped) == 1
    assert "c.jpg does not exist" in skipped[0]


def test_the_archive_gives_the_longest_plot_the_raw_genres_and_the_split(archive):
    movies, _ = read("mmimdb_archive", archive)
    assert [(m.name, m.text, m.labels, m.split) for m in movies] == [
        ("0000001.jpeg", "one plot", ("Talk-Show",), "train"),
        ("0000002.jpeg", "the longest plot", ("Drama", "News"), "dev"),
    ]


def test_a_bad_archive_is_named_with_its_file(archive):
    (archive / "dataset" / "0000002.json").write_text('{"plot": "x"}')
    with pytest.raises(DataError, match=r'0000002\.json: expected "genres", a list of names'):
        read("mmimdb_archive", archive)
    (archive / "dataset" / "0000002.json").write_text("{")
    with pytest.raises(DataError, match=r"0000002\.json: not a JSON file"):
        read("mmimdb_archive", archive)
    (archive / "dataset" / "0000002.json").write_text('{"plot": "x", "genres": ["War"]}')
    (archive / "dataset" / "0000002.jpeg").unlink()
    with pytest.raises(DataError, match=r"0000002\.jpeg: the movie's poster does not exist"):
        read("mmimdb_archive", archive)
    (archive / "dataset" / "0000002.json").unlink()
    with pytest.raises(DataError, match=r"0000002\.json: named in split\.json but does not exist"):
        read("mmimdb_archive", archive)
    (archive / "split.json").write_text("[]")
    with pytest.raises(DataError, match=r'split\.json: expected \{"train"'):
        read("mmimdb_archive", archive)


@pytest.mark.parametrize("labels", [[["Drama", "War"]], ["Drama|War"], ["Drama, War"]])
@pytest.mark.parametrize("as_record", [True, False])
def test_parquet_takes_bytes_or_records_and_lists_or_text(tmp_path, labels, as_record):
    image = [{"bytes": picture(9), "path": "x/7.jpg"}] if as_record else [picture(9)]
    write_shard(tmp_path / "train-00000-of-00001.parquet", {"image": image, "text": [" plot "], "labels": labels})
    (movie,), _ = read("mmimdb_parquet", tmp_path)
    assert (movie.name, movie.text, movie.labels, movie.split) == ("7.jpg" if as_record else "", "plot", ("Drama", "War"), "train")
    assert movie.poster == picture(9)


def test_parquet_shards_are_read_in_order_and_row_by_row(tmp_path):
    for shard in (1, 0):
        columns = {"image": [picture(shard)] * 100, "text": [f"{shard}-{row}" for row in range(100)], "labels": ["War"] * 100}
        write_shard(tmp_path / f"{shard}.parquet", columns)
    movies, _ = read("mmimdb_parquet", tmp_path)
    assert [m.text for m in movies] == [f"{shard}-{row}" for shard in (0, 1) for row in range(100)]
    assert movies[-1].where.endswith("1.parquet, row 100")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"x"], "labels": ["War"]}, r"s\.parquet: column 'text' is missing; its columns are \['image', 'labels'\]"),
        ({"image": ["x.jpg"], "text": ["t"], "labels": ["War"]}, r"s\.parquet, row 1: image is str; expected encoded bytes"),
        ({"image": [b"x"], "text": ["t"], "labels": [3]}, r"row 1: labels must be a list of names or one text, not 3"),
        ({"image": [b"x"], "text": [3], "labels": ["War"]}, r"row 1: text is int"),
    ],
)
def test_a_bad_shard_is_named_with_its_row(tmp_path, columns, message):
    write_shard(tmp_path / "s.parquet", columns)
    with pytest.raises(DataError, match=message):
        read("mmimdb_parquet", tmp_path)


def test_a_damaged_shard_is_an_error(tmp_path):
    (tmp_path / "s.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"s\.parquet: not a readable Parquet file .*fetch this shard again"):
        read("mmimdb_parquet", tmp_path)


def test_the_kind_of_source_is_seen_from_the_path(csv_folder, archive, tmp_path_factory):
    shards = tmp_path_factory.mktemp("shards")
    write_shard(shards / "s.parquet", {"image": [b"x"]})
    assert detect(shards) == detect(shards / "s.parquet") == "mmimdb_parquet"
    assert detect(archive) == "mmimdb_archive"
    write_csv(csv_folder, "")
    assert detect(csv_folder / "movies.csv") == "csv"


def test_an_unknown_path_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"path=.*nowhere does not exist"):
        detect(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no known source; expected movies\.csv with posters/"):
        detect(tmp_path)
    (tmp_path / "mmimdb.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match="is packed; unpack it"):
        detect(tmp_path / "mmimdb.tar.gz")
