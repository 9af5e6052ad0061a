"""Reading real posters and plots. FEDMAP_MOVIES names a folder with movies.csv (img_name,text,labels) and posters/."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from fedmap.data.movies import MovieData


@pytest.fixture
def movies():
    folder = os.environ.get("FEDMAP_MOVIES")
    if not folder:
        pytest.skip("FEDMAP_MOVIES is not set: real movies are read where it names a folder with movies.csv and posters/")
    return Path(folder)


def test_real_movies_are_read_row_by_row(movies, tmp_path, monkeypatch):
    monkeypatch.delenv("LABELS_JSON_PATH", raising=False)
    with open(movies / "movies.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:200]
    labels = sorted({label for row in rows for label in row["labels"].split("|")})
    shared = tmp_path / "all_in_one_dataset"
    shared.mkdir()
    (shared / "labels.json").write_text(json.dumps(labels))
    (shared / "mmimdb_posters").symlink_to((movies / "posters").resolve(), target_is_directory=True)
    client = tmp_path / "dataset" / "client_0"
    client.mkdir(parents=True)
    with open(client / "train.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["img_name", "text", "labels"])
        writer.writeheader()
        writer.writerows(rows)

    splits = MovieData(tmp_path, image_size=64, validation_split=0.25).client(0)
    assert (len(splits["train"]), len(splits["val"])) == (150, 50)
    expected = {row["img_name"]: row for row in rows}
    for split in splits.values():
        for name, text, found, modalities in zip(split.row_ids, split.texts, split.labels, split.modalities, strict=True):
            assert text == expected[name]["text"].strip()
            assert {labels[i] for i in np.flatnonzero(found)} == set(expected[name]["labels"].split("|"))
            assert modalities.all()
    images = splits["train"].images[:]
    assert images.shape == (150, 3, 64, 64)
    spread = images.reshape(150, -1).std(axis=1)
    assert np.median(spread) > 30  # posters, not flat areas
