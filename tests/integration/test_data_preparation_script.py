"""`python data_preparation.py`: the script as a user runs it, over every kind of source."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image

import data_preparation
from fedmap.config import CONF, PROJECT
from fedmap.data.movies import MovieData
from fedmap.data.preparation import PreparationOptions

GENRES = ("Drama", "Comedy", "War", "Sci-Fi", "Talk-Show")


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 16, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def make_csv(folder: Path, n: int) -> None:
    (folder / "posters").mkdir()
    with (folder / "movies.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["img_name", "text", "labels"])
        for i in range(n):
            (folder / "posters" / f"{i:07d}.jpg").write_bytes(picture(i))
            writer.writerow([f"{i:07d}.jpg", f"plot {i}, with a comma", "|".join(sorted({GENRES[i % 5], GENRES[i % 3]}))])


def make_archive(folder: Path, n: int) -> None:
    (folder / "dataset").mkdir()
    for i in range(n):
        (folder / "dataset" / f"{i:07d}.jpeg").write_bytes(picture(i))
        movie = {"plot": [f"plot {i}", f"the longer plot {i}"], "genres": [GENRES[i % 5]], "title": "ignored"}
        (folder / "dataset" / f"{i:07d}.json").write_text(json.dumps(movie))
    splits = {name: [f"{i:07d}" for i in range(n) if i % 3 == part] for part, name in enumerate(("train", "dev", "test"))}
    (folder / "split.json").write_text(json.dumps(splits))


def make_parquet(folder: Path, n: int) -> None:
    for shard in range(2):
        numbers = range(shard, n, 2)
        columns = {
            "image": [{"bytes": picture(i), "path": f"{i:07d}.jpeg"} for i in numbers],
            "text": [f"plot {i}" for i in numbers],
            "labels": [[GENRES[i % 5]] for i in numbers],
        }
        pq.write_table(pa.table(columns), folder / f"all-{shard:05d}-of-00002.parquet")


SOURCES = {"csv": make_csv, "mmimdb_archive": make_archive, "mmimdb_parquet": make_parquet}


def run(*arguments: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    script = str(PROJECT / "data_preparation.py")
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_is_recognised_imported_and_can_be_read(tmp_path, source, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    SOURCES[source](folder, 100)
    assert data_preparation.main([f"path={folder}", f"root={tmp_path / 'out'}", "plot=false", "min_rows=4"]) == 0
    out = capsys.readouterr().out
    dropped = 0 if source == "csv" else 20  # rows whose only genre is Talk-Show
    assert f"{100 - dropped} movies with 4 labels from {source}, seed 42" in out
    assert (f"{dropped} rows left out whose every label is dropped" in out) == (dropped > 0)
    data = MovieData(root=tmp_path / "out", image_size=16)
    clients = [data.client(k) for k in data.client_ids()]
    rows = [name for holder in [*clients, data.server()] for split in holder.values() for name in split.row_ids]
    assert len(clients) == 5
    assert len(rows) == len(set(rows)) == 100 - dropped
    assert all(split.modalities.all() for split in clients[0].values())


def test_the_script_runs_on_its_own_and_answers_a_typo(tmp_path):
    arguments = ["source=synthetic", "num_movies=80", "clients=2", "policy=quantity", f"root={tmp_path}", "poster_size=[16,24]"]
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert "80 movies with 12 labels from synthetic" in out
    assert (tmp_path / "dataset" / "label_distribution.png").is_file()
    code, out, err = run("num_moves=80", f"root={tmp_path}")
    assert (code, out) == (2, "")
    assert "did you mean 'num_movies'?" in err
    assert "Traceback" not in err


def test_errors_end_with_2_and_one_sentence(tmp_path, capsys):
    assert data_preparation.main([f"path={tmp_path / 'nowhere'}", f"root={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"data_preparation: path={tmp_path / 'nowhere'} does not exist\n"


def test_labels_can_be_mapped_from_the_command_line(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    make_csv(folder, 90)
    assert data_preparation.main([f"path={folder}", f"root={tmp_path / 'out'}", "plot=false", "min_rows=4", "+label_map.War=Western"]) == 0
    manifest = json.loads((tmp_path / "out" / "dataset" / "manifest.json").read_text())
    assert manifest["counts"]["server"]["splits"]["test"]["labels"]["Western"] > 0
    assert "War" not in manifest["labels"]


def test_help_explains_every_key_without_loading_anything_heavy():
    code = (
        "import sys, data_preparation; data_preparation.main(['--help']); "
        "heavy = {'torch', 'hydra', 'pandas', 'matplotlib', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, timeout=60)
    assert done.returncode == 0, done.stderr
    for field in dataclasses.fields(PreparationOptions):
        assert f"\n{field.name}:" in done.stdout


def test_the_settings_file_says_the_defaults_of_the_library():
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "data_preparation.yaml"))
    assert PreparationOptions.of(settings) == PreparationOptions()
    assert set(settings) == {field.name for field in dataclasses.fields(PreparationOptions)}


def test_the_reader_is_offered_under_its_configured_name():
    assert data_preparation.MovieData is MovieData
    with pytest.raises(AttributeError, match="has no attribute 'MovieDatum'"):
        _ = data_preparation.MovieDatum


def test_real_movies_are_imported_into_five_clients(tmp_path, capsys):
    folder = os.environ.get("FEDMAP_MOVIES")
    if not folder:
        pytest.skip("FEDMAP_MOVIES does not name a folder with movies.csv and posters/")
    assert data_preparation.main(["source=csv", f"path={folder}", f"root={tmp_path}", "plot=false"]) == 0
    with (Path(folder) / "movies.csv").open(newline="", encoding="utf-8-sig") as stream:
        original = {row["img_name"]: (row["text"].strip(), set(row["labels"].split("|"))) for row in csv.DictReader(stream)}
    written = {}
    for table in (tmp_path / "dataset").rglob("*.csv"):
        with table.open(newline="", encoding="utf-8") as stream:
            written.update({row["img_name"]: (row["text"], set(row["labels"].split("|"))) for row in csv.DictReader(stream)})
    assert written == original
    counts = json.loads((tmp_path / "dataset" / "manifest.json").read_text())["counts"]
    rows = [sum(split["rows"] for split in counts[f"client_{k}"]["splits"].values()) for k in range(5)]
    assert np.allclose(np.array(rows) / sum(rows), [0.35, 0.10, 0.15, 0.20, 0.20], atol=0.005)
    assert set(counts["server"]["splits"]) == {"val", "test"}
