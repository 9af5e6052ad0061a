import csv
import json
import logging
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from fedmap.data.base import Split
from fedmap.data.movies import MovieData
from fedmap.errors import ConfigError, DataError

LABELS = ["Action", "Comedy", "Drama"]


class Folder:
    """A tiny federation's folder: movies m0, m1, ... with a plot, a 6 x 9 poster and one or two genres each."""

    def __init__(self, root):
        self.root = root
        self.made = 0
        self.posters = root / "all_in_one_dataset" / "mmimdb_posters"
        self.posters.mkdir(parents=True)
        (root / "all_in_one_dataset" / "labels.json").write_text(json.dumps(LABELS))

    def movies(self, count):
        rows = []
        for number in range(self.made, self.made + count):
            name = f"m{number}.png"
            Image.new("RGB", (6, 9), (number % 256, 7, 9)).save(self.posters / name)
            rows.append([name, f"plot {number}", "|".join(LABELS[: 1 + number % 2])])
        self.made += count
        return rows

    def write(self, path, rows, header=("img_name", "text", "labels")):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        return rows

    def client(self, client_id, **splits):
        return {split: self.write(f"dataset/client_{client_id}/{split}.csv", self.movies(count)) for split, count in splits.items()}

    def server(self, **splits):
        return {split: self.write(f"dataset/server/server_{split}.csv", self.movies(count)) for split, count in splits.items()}

    def data(self, **settings):
        return MovieData(self.root, image_size=8, **settings)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("LABELS_JSON_PATH", raising=False)
    return Folder(tmp_path)


def _names(split):
    return list(split.row_ids)


def test_a_client_has_the_splits_of_its_tables(folder):
    rows = folder.client(3, train=5, val=2, test=3)
    data = folder.data(output_size=3)
    assert data.client_ids() == [3]
    assert data.label_names == ("Action", "Comedy", "Drama")
    assert data.modality_names == ("text", "image")
    splits = data.client(3)
    assert {name: _names(split) for name, split in splits.items()} == {name: [row[0] for row in found] for name, found in rows.items()}
    train = splits["train"]
    assert isinstance(train, Split)
    assert train.texts == [f"plot {i}" for i in range(5)]
    assert train.labels.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert train.modalities.all()
    assert train.images.shape == (5, 3, 8, 8)
    assert [int(image[0, 0, 0]) for image in train.images[:]] == [0, 1, 2, 3, 4]
    assert int(splits["test"].images[1][0, 0, 0]) == 8
    assert data.skipped == []


def test_a_batch_has_the_contracts_shapes_and_types(folder):
    folder.client(0, train=5, val=1)
    batch = folder.data().client(0)["train"].batch(np.array([4, 0]))
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()} == {
        "image": ((2, 3, 8, 8), torch.uint8),
        "has_text": ((2,), torch.bool),
        "has_image": ((2,), torch.bool),
        "labels": ((2, 3), torch.float32),
    }
    assert batch["image"][:, 0, 0, 0].tolist() == [4, 0]
    batch["image"].zero_()  # the batch is the caller's
    assert folder.data().client(0)["train"].images[4][0, 0, 0] == 4


def test_reading_a_client_reads_no_other(folder):
    folder.client(0, train=3, val=1)
    folder.write("dataset/client_1/train.csv", [["gone.png", "x", "Nonsense"]])
    folder.write("dataset/server/server_test.csv", [["gone.png", "x", "Nonsense"]])
    assert len(folder.data().client(0)["train"]) == 3


def test_an_empty_field_says_that_the_modality_is_absent(folder):
    rows = folder.movies(2)
    folder.write("dataset/client_0/train.csv", [[rows[0][0], "", "Drama"], ["", "only a plot", "Drama"], rows[1]])
    folder.client(0, val=1)
    train = folder.data().client(0)["train"]
    assert train.modalities.tolist() == [[False, True], [True, False], [True, True]]
    assert train.texts == ["", "only a plot", "plot 1"]
    assert not train.images[1].any()
    assert [bool(image.any()) for image in train.images[:]] == [True, False, True]
    (store,) = (folder.root / ".fedmap" / "cache").glob("posters-*/images.npy")
    assert len(np.load(store)) == 3  # what has no poster takes no space: two of train and one of val
    assert train.batch(np.array([0, 1]))["has_image"].tolist() == [True, False]


@pytest.mark.parametrize(("modality", "expected"), [('{"use_text": 1, "use_image": 0}', [True, False]), ('{"use_text": 0}', [False, True])])
def test_modality_json_masks_a_whole_client(folder, modality, expected):
    folder.client(0, train=3, val=1)
    (folder.root / "dataset/client_0/modality.json").write_text(modality)
    if not expected[1]:
        for poster in folder.posters.iterdir():
            poster.write_bytes(b"never looked at")
    train = folder.data().client(0)["train"]
    assert train.modalities.tolist() == [expected] * 3
    assert (train.texts == ["", "", ""]) is not expected[0]
    assert bool(train.images[:].any()) is expected[1]


def test_a_modality_that_the_client_expects_must_be_in_each_row(folder):
    rows = folder.movies(3)
    folder.write("dataset/client_0/train.csv", [rows[0], [rows[1][0], "  ", "Drama"], rows[2]])
    (folder.root / "dataset/client_0/modality.json").write_text('{"use_image": 0}')
    with pytest.raises(DataError, match=r"train\.csv, line 3: text is empty, and .*modality\.json says that the client uses no images"):
        folder.data().client(0)


def test_a_text_is_never_the_word_nan(folder):
    rows = folder.movies(1)
    folder.write("dataset/client_0/train.csv", [rows[0], ["", "", "Drama"]])
    with pytest.raises(DataError, match=r"train\.csv, line 3: img_name and text are both empty"):
        folder.data().client(0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["m0.png", "x", "Drma"], "unknown label 'Drma'; did you mean 'Drama'"),
        (["m1.png", "x", "Drama"], r"'m1\.png' is in this file already, in line 4"),
        (
            ["gone.png", "x", "Drama"],
            r"the poster 'gone\.png' is missing; looked in .*mmimdb_posters\. Put it there, or leave img_name empty",
        ),
        (["broken.png", "x", "Drama"], r"the poster .*broken\.png is bad: the picture cannot be decoded: it is none of"),
        (["empty.png", "x", "Drama"], r"the poster .*empty\.png is bad: the file is empty"),
        (["cut.png", "x", "Drama"], r"the poster .*cut\.png is bad: the picture cannot be decoded"),
        (["../labels.json", "x", "Drama"], r"img_name '\.\./labels\.json' is not a plain file name"),
        (["t0.png", "x", "Drama"], r"'t0\.png' is also in .*test\.csv, line 2; a movie belongs to one split"),
    ],
)
def test_a_bad_row_stops_or_is_skipped(folder, row, message, caplog):
    good = folder.movies(2)[1:]
    (folder.posters / "broken.png").write_bytes(b"<html>")
    (folder.posters / "empty.png").write_bytes(b"")
    noise = Image.effect_noise((40, 40), 90)
    noise.save(folder.posters / "cut.png")
    (folder.posters / "cut.png").write_bytes((folder.posters / "cut.png").read_bytes()[:-500])
    noise.save(folder.posters / "t0.png")
    folder.write("dataset/client_0/test.csv", [["t0.png", "a test", "Drama"]])
    folder.write("dataset/client_0/train.csv", [["", "a plot\nof two lines", "Drama"], *good, row, *folder.movies(1)])
    path = folder.root / "dataset/client_0/train.csv"
    line = 5  # after the header, a row of two lines and a row of one
    with pytest.raises(DataError, match=rf"1 bad row:\n  .*train\.csv, line {line}: {message}") as raised:
        folder.data(validation_split=0.3).client(0)
    assert str(raised.value).endswith("leave such rows out with dataset.on_bad_row=skip")

    caplog.set_level(logging.INFO, "fedmap.data")
    data = folder.data(validation_split=0.3, on_bad_row="skip")
    for _ in range(2):
        splits = data.client(0)
        assert len(splits["train"]) + len(splits["val"]) == 3
        assert [(bad.file, bad.line) for bad in data.skipped] == [(path, line)]
    assert "1 rows of client 0 are left out" in caplog.text


def test_many_bad_rows_are_counted_and_the_first_named(folder):
    folder.write("dataset/client_0/train.csv", [[f"gone{i}.png", "x", "Drama"] for i in range(14)])
    with pytest.raises(DataError, match=r"14 bad rows:\n(  .*\n){10}  and 4 more"):
        folder.data().client(0)
    data = folder.data(on_bad_row="skip")
    for _ in range(2):
        with pytest.raises(DataError, match=r"train\.csv: the file has no usable rows"):
            data.client(0)
        assert len(data.skipped) == 14


def test_files_and_folders_that_are_missing_or_empty(folder, caplog):
    folder.client(1, train=4)
    with pytest.raises(
        DataError, match=r"client_7: there is no such folder, so client 7 has no rows here \(clients here: 1\); set client_id"
    ):
        folder.data().client(7)
    folder.client(0, val=1)
    with pytest.raises(DataError, match=r"client_0/train\.csv: the file is missing"):
        folder.data().client(0)
    folder.write("dataset/client_0/train.csv", [])
    with pytest.raises(DataError, match=r"client_0/train\.csv: the file has a header and no rows"):
        folder.data().client(0)
    (folder.root / "dataset/client_0/train.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"client_0/train\.csv: the file is empty; expected the header"):
        folder.data().client(0)
    folder.write("dataset/client_1/val.csv", [])
    assert len(folder.data().client(1)["val"]) == 0
    assert "val.csv has a header and no rows; the split is empty" in caplog.text


def test_missing_labels_list_every_place(tmp_path, monkeypatch):
    monkeypatch.delenv("LABELS_JSON_PATH", raising=False)
    with pytest.raises(
        DataError, match=r"LABELS_JSON_PATH \(not set\), .*all_in_one_dataset/labels\.json, .*server_data/labels\.json, .*below"
    ):
        MovieData(tmp_path)


def test_the_models_outputs_must_be_the_labels(folder):
    with pytest.raises(DataError, match=r"model\.output_size is 23, but .*labels\.json has 3 labels; set model\.output_size=3"):
        folder.data(output_size=23)
    folder.data().check_output_size(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_bad_row": "ignore"}, r"dataset\.on_bad_row is 'ignore'; expected error or skip"),
        ({"validation_split": 1.0}, r"dataset\.validation_split is 1\.0; expected a share from 0"),
        ({"validation_split": -0.1}, r"dataset\.validation_split is -0\.1"),
        ({"validation_split": "half"}, r"dataset\.validation_split is 'half'"),
        ({"server_val_share": 0}, r"dataset\.server_val_share is 0; expected a share between 0 and 1"),
        ({"server_limit": 0}, r"dataset\.server_limit is 0; expected a whole number of at least 1"),
        ({"server_max_bytes": 1.5}, r"dataset\.server_max_bytes is 1\.5"),
    ],
)
def test_settings_out_of_range_are_named(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        folder.data(**settings)


def test_validation_split_takes_a_share_by_seed_and_client(folder, caplog):
    caplog.set_level(logging.INFO, "fedmap.data")
    folder.client(0, train=20, val=5)
    as_given = folder.data().client(0)
    assert (len(as_given["train"]), len(as_given["val"])) == (20, 5)
    carved = folder.data(validation_split=0.2).client(0)
    assert (len(carved["train"]), len(carved["val"])) == (20, 5)
    assert {*_names(carved["train"]), *_names(carved["val"])} == {*_names(as_given["train"]), *_names(as_given["val"])}
    assert _names(carved["val"]) == _names(folder.data(validation_split=0.2).client(0)["val"])
    assert _names(carved["val"]) != _names(folder.data(validation_split=0.2, seed=1).client(0)["val"])
    assert "train.csv and val.csv are pooled, and 0.2 of the rows are the validation split" in caplog.text


def test_without_any_validation_rows_a_tenth_is_taken_and_said(folder, caplog):
    folder.client(0, train=20)
    splits = folder.data().client(0)
    assert (len(splits["train"]), len(splits["val"]), len(splits["test"])) == (18, 2, 0)
    assert "no val.csv and dataset.validation_split is 0; 0.1 of its training rows become its validation split" in caplog.text


def test_a_client_with_one_row_trains_on_it(folder):
    folder.client(0, train=1)
    splits = folder.data(validation_split=0.5).client(0)
    assert (len(splits["train"]), len(splits["val"])) == (1, 0)


def test_the_server_has_its_two_tables(folder):
    rows = folder.server(val=3, test=4)
    splits = folder.data().server()
    assert list(splits) == ["val", "test"]
    assert _names(splits["val"]) == [row[0] for row in rows["val"]]
    assert _names(splits["test"]) == [row[0] for row in rows["test"]]


def test_a_single_server_table_is_split_once_and_said(folder, caplog):
    caplog.set_level(logging.INFO, "fedmap.data")
    rows = folder.server(test=10)["test"]
    splits = folder.data(server_val_share=0.3).server()
    assert (len(splits["val"]), len(splits["test"])) == (3, 7)
    assert sorted(_names(splits["val"]) + _names(splits["test"])) == sorted(row[0] for row in rows)
    assert "There is no server_val.csv" in caplog.text
    assert "is split by seed 42 into 3 validation and 7 test rows" in caplog.text
    folder.write("dataset/server/server_test.csv", rows[::-1])
    assert set(_names(folder.data(server_val_share=0.3).server()["val"])) == set(_names(splits["val"]))


def test_the_server_set_is_cut_by_its_key_alone(folder, caplog):
    caplog.set_level(logging.INFO, "fedmap.data")
    folder.server(val=110, test=120)
    assert [len(split) for split in folder.data().server().values()] == [110, 120]
    limited = folder.data(server_limit=50).server()
    assert [len(split) for split in limited.values()] == [50, 50]
    assert "dataset.server_limit: 50 of the server's 120 test rows are used" in caplog.text
    assert _names(limited["test"]) == _names(folder.data(server_limit=50).server()["test"])


def test_the_servers_rows_are_disjoint_from_each_other_and_from_the_clients(folder):
    server = folder.server(val=3, test=3)
    folder.client(4, train=2, val=1)
    folder.write("dataset/server/server_val.csv", [*server["val"], server["test"][0]])
    with pytest.raises(DataError, match=r"server_val\.csv, line 5: 'm3\.png' is also in .*server_test\.csv, line 2"):
        folder.data().server()
    folder.write("dataset/server/server_val.csv", server["val"])
    folder.write("dataset/client_4/test.csv", [server["test"][2]])
    with pytest.raises(DataError, match=r"server_test\.csv, line 4: 'm5\.png' is also in .*client_4/test\.csv, line 2"):
        folder.data().server()
    data = folder.data(on_bad_row="skip")
    assert _names(data.server()["test"]) == ["m3.png", "m4.png"]
    assert len(data.skipped) == 1


def test_a_movie_without_its_poster_is_known_by_its_text(folder):
    server = folder.server(val=2, test=3)
    folder.client(0, train=2, val=1)
    again = ["", server["test"][1][1], "Drama"]
    folder.write("dataset/client_0/test.csv", [again])
    with pytest.raises(DataError, match=r"server_test\.csv, line 3: 'm3\.png' is also in .*client_0/test\.csv, line 2"):
        folder.data().server()
    folder.write("dataset/client_0/val.csv", [again])
    message = r"val\.csv, line 2: a row without poster and with the same text is also in .*test\.csv, line 2"
    with pytest.raises(DataError, match=message):
        folder.data().client(0)


def test_two_posters_with_the_same_text_are_two_movies(folder):
    rows = folder.movies(4)
    folder.write("dataset/client_0/train.csv", [[row[0], "no plot known", "Drama"] for row in rows[:3]])
    folder.write("dataset/client_0/val.csv", [[rows[3][0], "no plot known", "Drama"]])
    assert len(folder.data().client(0)["train"]) == 3


def test_a_server_without_rows_says_where_they_belong(folder):
    data = folder.data()
    assert not data.has_server()
    with pytest.raises(DataError, match=r"the server's rows were not found: expected server_test\.csv .*dataset/server .*server_data\.zip"):
        data.server()
    folder.server(val=2)
    with pytest.raises(DataError, match=r"expected server_test\.csv"):
        data.server()
    folder.write("dataset/server/server_test.csv", [])
    with pytest.raises(DataError, match=r"server_test\.csv: the file has a header and no rows"):
        data.server()
    (folder.root / "dataset/server/server_val.csv").unlink()
    folder.server(test=1)
    with pytest.raises(DataError, match=r"server_test\.csv: has 1 usable rows; at least 2 are needed"):
        data.server()


def test_everything_can_come_from_the_servers_zip(tmp_path, monkeypatch):
    monkeypatch.delenv("LABELS_JSON_PATH", raising=False)
    made = Folder(tmp_path / "made")
    made.server(test=6)
    (tmp_path / "project" / "server_data").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "project/server_data/server_data.zip", "w") as archive:
        archive.write(made.root / "dataset/server/server_test.csv", "server_data/server_test.csv")
        archive.write(made.root / "all_in_one_dataset/labels.json", "server_data/labels.json")
        for poster in made.posters.iterdir():
            archive.write(poster, f"server_data/img/{poster.name}")
    data = MovieData(tmp_path / "project", image_size=8)
    assert data.has_server()
    assert data.label_names == tuple(LABELS)
    splits = data.server()
    assert sorted(_names(splits["val"]) + _names(splits["test"])) == [f"m{i}.png" for i in range(6)]


def test_posters_of_the_shared_folder_and_of_the_server_root_serve_together(folder):
    rows = folder.server(val=2, test=2)
    other = folder.root / "server_data" / "server_data" / "img"
    other.mkdir(parents=True)
    (folder.posters / rows["test"][0][0]).rename(other / rows["test"][0][0])
    test = folder.data().server()["test"]
    assert [int(image[0, 0, 0]) for image in test.images[:]] == [2, 3]


def test_fingerprints_follow_content_and_settings(folder):
    folder.client(0, train=4, val=1)
    first = folder.data().client(0)
    assert first["train"].fingerprint == folder.data().client(0)["train"].fingerprint
    assert first["train"].fingerprint == folder.data(cache_dir=folder.root / "elsewhere").client(0)["train"].fingerprint
    assert first["train"].fingerprint != first["val"].fingerprint
    assert first["train"].fingerprint != MovieData(folder.root, image_size=9).client(0)["train"].fingerprint
    Image.new("RGB", (6, 9), (200, 0, 0)).save(folder.posters / "m2.png")
    changed = folder.data().client(0)
    assert changed["train"].fingerprint != first["train"].fingerprint
    assert changed["val"].fingerprint == first["val"].fingerprint
    assert changed["train"].images[2][0, 0, 0] == 200


def test_a_subset_keeps_rows_together(folder):
    folder.client(0, train=6, val=1)
    train = folder.data().client(0)["train"]
    part = train.take([5, 2, 3]).take([2, 0])
    assert part.row_ids == ["m3.png", "m5.png"]
    assert part.texts == ["plot 3", "plot 5"]
    np.testing.assert_array_equal(np.asarray(part.images), train.images[np.array([3, 5])])
    np.testing.assert_array_equal(part.labels, train.labels[[3, 5]])
    assert part.fingerprint not in (train.fingerprint, train.take([3]).fingerprint)
    assert len(train.take([])) == 0
