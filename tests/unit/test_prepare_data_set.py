"""A whole preparation: layout, manifest, policies on disk, repeating, replacing, and being killed in the middle."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmap.data import manifest as manifests
from fedmap.data.movies import MovieData
from fedmap.data.prepare import describe, prepare
from fedmap.data.staging import PARTIAL, Staging
from fedmap.errors import ConfigError, DataError

SMALL = {"source": "synthetic", "num_movies": 120, "poster_size": [16, 24], "clients": 3, "policy": "iid", "plot": False}


def tables(root: Path) -> dict[str, list[dict[str, str]]]:
    found = {}
    for path in sorted((root / "dataset").rglob("*.csv")):
        with path.open(newline="", encoding="utf-8") as stream:
            found[path.relative_to(root / "dataset").as_posix()] = list(csv.DictReader(stream))
    return found


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def csv_source(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    (folder / "posters").mkdir(parents=True)
    with (folder / "movies.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["img_name", "text", "labels"])
        writer.writerows(rows)
    for number, (name, _, _) in enumerate(rows):
        if name:
            Image.fromarray(np.full((6, 4, 3), number % 251, dtype=np.uint8)).save(folder / "posters" / name, "PNG")
    return folder


def many_rows(n: int = 60) -> list[tuple[str, str, str]]:
    return [(f"p{i:03d}.png", f"plot number {i}", ("Drama", "War|Drama", "Comedy")[i % 3]) for i in range(n)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    return root, prepare(root=root, **{**SMALL, "plot": True}).manifest


def test_the_layout_is_complete_disjoint_and_of_the_stated_sizes(small):
    root, manifest = small
    found = tables(root)
    assert {name: len(rows) for name, rows in found.items()} == {
        **{f"client_{k}/{split}.csv": n for k in range(3) for split, n in (("train", 22), ("val", 3), ("test", 7))},
        "server/server_val.csv": 12,
        "server/server_test.csv": 12,
    }
    names = [row["img_name"] for rows in found.values() for row in rows]
    assert len(names) == len(set(names)) == 120
    assert {path.name for path in (root / "all_in_one_dataset" / "mmimdb_posters").iterdir()} == set(names)
    assert json.loads((root / "all_in_one_dataset" / "labels.json").read_text()) == manifest["labels"]
    assert not (root / PARTIAL).exists()


def test_the_manifest_counts_and_checksums_what_lies_on_disk(small):
    root, manifest = small
    assert json.loads((root / "dataset" / "manifest.json").read_text()) == manifest
    for holder, entry in manifest["counts"].items():
        for split, counts in entry["splits"].items():
            rows = tables(root)[f"{holder}/{'server_' if holder == 'server' else ''}{split}.csv"]
            assert counts["rows"] == counts["with_text"] == counts["with_image"] == len(rows)
            for name, count in counts["labels"].items():
                assert count == sum(name in row["labels"].split("|") for row in rows)
    assert set(manifest["checksums"]) == {
        "all_in_one_dataset/labels.json",
        *(f"dataset/{name}" for name in tables(root)),
        *(f"dataset/client_{k}/modality.json" for k in range(3)),
    }
    assert manifests.changed_files(root, manifest) == []
    assert manifest["seed"] == 42
    assert manifest["settings"]["policy"] == "iid"
    assert manifest["source"]["kind"] == "synthetic"


def test_the_plot_is_a_picture_of_holders_by_labels(small):
    with Image.open(small[0] / "dataset" / "label_distribution.png") as plot:
        plot.load()
        assert plot.format == "PNG"
        assert plot.width > 600
        assert plot.height > 200


def test_the_reader_reads_it(small, tmp_path):
    root, manifest = small
    data = MovieData(root=root, image_size=16, cache_dir=tmp_path)
    assert list(data.label_names) == manifest["labels"]
    assert list(data.client_ids()) == [0, 1, 2]
    assert {split: len(rows) for split, rows in data.client(1).items()} == {"train": 22, "val": 3, "test": 7}
    assert data.client(1)["train"].modalities.all()
    assert {split: len(rows) for split, rows in data.server().items()} == {"val": 12, "test": 12}


def test_the_same_settings_give_the_same_bytes_elsewhere(small, tmp_path):
    prepare(root=tmp_path, **{**SMALL, "plot": True})
    assert tree(tmp_path) == tree(small[0])


def test_the_order_of_a_csv_does_not_matter(tmp_path):
    rows = many_rows()
    numbers = {row[0]: i for i, row in enumerate(rows)}
    for name, order in (("a", rows), ("b", rows[::-1])):
        source = csv_source(tmp_path / name, order)
        for img_name, number in numbers.items():
            Image.fromarray(np.full((6, 4, 3), number, dtype=np.uint8)).save(source / "posters" / img_name, "PNG")
    first, second = (prepare(root=tmp_path / f"{n}_out", path=tmp_path / n, policy="dirichlet", min_rows=2).manifest for n in "ab")
    assert first["fingerprint"] == second["fingerprint"]


def test_repeating_changes_nothing_and_says_so(small):
    root, manifest = small
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    again = prepare(root=root, **SMALL)
    assert again.unchanged
    assert again.manifest == manifest
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path != root} == {p: t for p, t in before.items() if p != root}
    assert "was there already and is unchanged" in describe(again)


def test_a_different_data_set_is_replaced_only_on_request(tmp_path):
    prepare(root=tmp_path, **{**SMALL, "plot": True})
    (tmp_path / "dataset" / "README.md").write_text("stays")
    before = tree(tmp_path)
    with pytest.raises(DataError, match=r"a different data set is there \(seed: 42, asked for 7\); overwrite=true replaces it"):
        prepare(root=tmp_path, **{**SMALL, "seed": 7})
    with pytest.raises(DataError, match=r"a different data set is there \(settings: clients=3, asked for clients=2\)"):
        prepare(root=tmp_path, **{**SMALL, "clients": 2})
    assert tree(tmp_path) == before
    replaced = prepare(root=tmp_path, **{**SMALL, "clients": 2, "num_movies": 100}, overwrite=True)
    assert replaced.manifest["settings"]["clients"] == 2
    assert not (tmp_path / "dataset" / "label_distribution.png").exists(), "the old plot would show the old data set"
    assert not (tmp_path / "dataset" / "client_2").exists(), "a client of the old data set would be trained on"
    assert len(list((tmp_path / "all_in_one_dataset" / "mmimdb_posters").iterdir())) == 100
    assert (tmp_path / "dataset" / "README.md").read_text() == "stays"


def test_edited_files_and_foreign_data_are_not_overwritten(tmp_path):
    prepare(root=tmp_path, **SMALL)
    table = tmp_path / "dataset" / "client_0" / "train.csv"
    table.write_text(table.read_text() + "mine.png,own row,Drama\n")
    with pytest.raises(DataError, match=r"its content differs from the source's now .*overwrite=true"):
        prepare(root=tmp_path, **SMALL)
    assert "own row" in table.read_text()
    (tmp_path / "dataset" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"a data set that was not made here \(it has no manifest\); overwrite=true"):
        prepare(root=tmp_path, **SMALL)
    (tmp_path / "dataset" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="not a manifest of format 1"):
        prepare(root=tmp_path, **SMALL)


def test_an_import_killed_while_reading_leaves_nothing(tmp_path, monkeypatch):
    prepare(root=tmp_path, **SMALL)
    before = tree(tmp_path)

    def killed(self: Staging) -> None:
        os._exit(9)

    monkeypatch.setattr(Staging, "commit", killed)
    child = os.fork()
    if child == 0:
        prepare(root=tmp_path, **{**SMALL, "seed": 8}, overwrite=True)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    assert {name: content for name, content in tree(tmp_path).items() if not name.startswith(PARTIAL)} == before
    assert prepare(root=tmp_path, **SMALL).unchanged
    assert tree(tmp_path) == before


def test_an_import_killed_while_moving_is_finished_by_the_next(tmp_path, monkeypatch):
    prepare(root=tmp_path, **SMALL)
    wanted = tmp_path / "wanted"
    prepare(root=wanted, **{**SMALL, "seed": 8, "clients": 2})
    real, moved = os.replace, []

    def killed_at_third(source: Path, target: Path) -> None:
        if len(moved) == 3:
            os._exit(9)
        moved.append(source)
        real(source, target)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", killed_at_third)
        prepare(root=tmp_path, **{**SMALL, "seed": 8, "clients": 2}, overwrite=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert prepare(root=tmp_path, **{**SMALL, "seed": 8, "clients": 2}).unchanged
    expected = tree(wanted)
    assert {name: content for name, content in tree(tmp_path).items() if not name.startswith("wanted/")} == expected


def test_modalities_and_missing_rates_are_written(tmp_path):
    modalities = ["both", "image", "text"]
    manifest = prepare(root=tmp_path, **SMALL, modalities=modalities, missing_text=0.25, missing_image=[0.5, 0, 0]).manifest
    found = tables(tmp_path)
    read = {k: json.loads((tmp_path / "dataset" / f"client_{k}" / "modality.json").read_text()) for k in range(3)}
    assert read == {0: {"use_text": 1, "use_image": 1}, 1: {"use_text": 0, "use_image": 1}, 2: {"use_text": 1, "use_image": 0}}
    client = [row for split in ("train", "val", "test") for row in found[f"client_0/{split}.csv"]]
    assert sum(not row["text"] for row in client) == 8
    assert sum(not row["img_name"] for row in client) == 16
    assert all(row["text"] or row["img_name"] for row in client)
    for holder in ("client_1", "client_2", "server"):
        assert all(row["text"] and row["img_name"] for name, rows in found.items() if name.startswith(holder) for row in rows)
    assert [entry["modalities"] for entry in manifest["counts"].values()] == [*modalities, "both"]
    data = MovieData(root=tmp_path, image_size=16)
    assert sum((~split.modalities).sum() for split in data.client(0).values()) == 24
    assert all(split.modalities[:, 1].all() and not split.modalities[:, 0].any() for split in data.client(1).values())


def test_shuffled_labels_touch_train_and_val_of_one_client_only(tmp_path):
    prepare(root=tmp_path / "clean", **SMALL)
    prepare(root=tmp_path / "noisy", **SMALL, shuffle_labels=[1])
    clean, noisy = tables(tmp_path / "clean"), tables(tmp_path / "noisy")
    assert {name for name in clean if clean[name] != noisy[name]} <= {"client_1/train.csv", "client_1/val.csv"}
    assert clean["client_1/train.csv"] != noisy["client_1/train.csv"]
    for rows in (clean, noisy):
        rows["both"] = rows["client_1/train.csv"] + rows["client_1/val.csv"]
    assert sorted(row["labels"] for row in clean["both"]) == sorted(row["labels"] for row in noisy["both"])
    assert [row["text"] for row in clean["both"]] == [row["text"] for row in noisy["both"]]


def test_a_source_with_its_own_split_can_give_the_server_its_rows(tmp_path):
    source = csv_source(tmp_path / "in", many_rows(90))
    lines = (source / "movies.csv").read_text().splitlines()
    marks = ["split", *(("train", "dev", "test")[i % 3] for i in range(90))]
    (source / "movies.csv").write_text("\n".join(f"{line},{mark}" for line, mark in zip(lines, marks, strict=True)))
    prepare(root=tmp_path / "out", path=source, server="source", clients=2, policy="iid")
    found = tables(tmp_path / "out")
    assert {row["img_name"] for row in found["server/server_val.csv"]} == {f"p{i:03d}.png" for i in range(1, 90, 3)}
    assert {row["img_name"] for row in found["server/server_test.csv"]} == {f"p{i:03d}.png" for i in range(2, 90, 3)}
    with pytest.raises(ConfigError, match="0 dev and 0 test rows; use server=share"):
        prepare(root=tmp_path / "other", **SMALL, server="source")


def test_rows_left_out_are_counted(tmp_path):
    odd = [("q1.png", "t1", "News"), ("q2.png", "t2", "Drama"), ("q3.png", "t3", "Drama")]
    odd += [("q4.png", "t4", "Dramma"), ("q5.png", "NaN", "War")]
    rows = [*many_rows(), *odd]
    source = csv_source(tmp_path / "in", rows)
    (source / "posters" / "q2.png").write_bytes(b"no picture")
    (source / "posters" / "q3.png").write_bytes((source / "posters" / "p001.png").read_bytes()[:-30])
    manifest = prepare(root=tmp_path / "out", path=source, on_bad_row="skip", label_map={"War": "Western"}, limit=50, min_rows=2).manifest
    counts = manifest["rows"]
    assert {key: value for key, value in counts.items() if key != "skipped_reasons"} == {
        "read": 65,
        "kept": 50,
        "skipped": 4,
        "duplicates": 0,
        "without_known_label": 1,
        "over_limit": 10,
    }
    assert manifest["labels"] == ["Comedy", "Drama", "Western"]
    reasons = "\n".join(counts["skipped_reasons"])
    for part in ("q2.png cannot be decoded: not a picture", "q3.png cannot be decoded", "(did you mean 'Drama'?)", "text is 'NaN'"):
        assert part in reasons
    assert len(list((tmp_path / "out" / "all_in_one_dataset" / "mmimdb_posters").iterdir())) == 50
    assert sum("Western" in row["labels"] for rows in tables(tmp_path / "out").values() for row in rows) > 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("x.png", "t", ""), r"row 61: has no label \(on_bad_row=skip"),
        (("", "", "Drama"), "row 61: has neither a text nor a poster"),
        (("p000.png", "t", "Drama"), "row 61: a movie with the poster 'p000.png' was there before"),
        (("x.png", "t", "Scifi"), r"row 61: unknown label 'Scifi' \(did you mean 'Sci-Fi'\?\)"),
        (("x.png", "nan", "Drama"), "row 61: the text is 'nan', which programs write for a missing value"),
    ],
)
def test_a_bad_row_stops_the_import_and_is_named(tmp_path, row, message):
    source = csv_source(tmp_path / "in", [*many_rows(), row])
    with pytest.raises(DataError, match=message):
        prepare(root=tmp_path / "out", path=source)
    assert tree(tmp_path / "out") == {}


def test_a_broken_poster_stops_the_import_and_is_named(tmp_path):
    source = csv_source(tmp_path / "in", many_rows())
    (source / "posters" / "p007.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"movies\.csv, row 8: poster .*p007\.png cannot be decoded: not a picture in a known format"):
        prepare(root=tmp_path / "out", path=source)


def test_the_same_movie_under_two_names_is_taken_once(tmp_path):
    source = csv_source(tmp_path / "in", [*many_rows(), ("twin.png", "plot number 3", "Drama")])
    (source / "posters" / "twin.png").write_bytes((source / "posters" / "p003.png").read_bytes())
    prepared = prepare(root=tmp_path / "out", path=source, min_rows=2)
    assert prepared.manifest["rows"]["duplicates"] == 1
    assert prepared.manifest["rows"]["kept"] == 60
    assert "1 duplicates left out (same text and poster)" in describe(prepared)


def test_posters_can_be_hard_linked(tmp_path):
    source = csv_source(tmp_path / "in", many_rows())
    prepare(root=tmp_path / "out", path=source, posters="hardlink", min_rows=2)
    assert (source / "posters" / "p000.png").samefile(tmp_path / "out" / "all_in_one_dataset" / "mmimdb_posters" / "p000.png")


def test_a_client_of_one_modality_needs_it_in_every_row(tmp_path):
    source = csv_source(tmp_path / "in", [*many_rows(), *(("", f"only words {i}", "War") for i in range(30))])
    prepare(root=tmp_path / "fine", path=source, min_rows=2)
    with pytest.raises(ConfigError, match=r"client \d uses only the image, but \d+ of its rows have none"):
        prepare(root=tmp_path / "out", path=source, modalities="image", min_rows=2)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_movie": 5}, ConfigError, "there is no setting 'num_movie'; did you mean 'num_movies'"),
        ({"source": "syntetic"}, ConfigError, "did you mean 'synthetic'"),
        ({"source": "csv"}, ConfigError, "source=csv needs path="),
        ({"path": "/x"}, ConfigError, "source=synthetic reads nothing, but path=/x is given"),
        ({"source": "auto"}, DataError, "nothing to import: give path="),
        ({"seed": "x"}, ConfigError, "seed='x' must be a whole number"),
        ({"num_movies": 0}, ConfigError, "num_movies=0 must be at least 1"),
        ({"num_movies": 20}, ConfigError, "16 rows cannot give 3 clients at least 10 each"),
        ({"label_noise": 2}, ConfigError, "label_noise=2 must lie from 0 to 1"),
        ({"poster_size": [8, 96]}, ConfigError, "poster width 8 must lie from 16"),
        ({"poster_size": [64]}, ConfigError, r"poster_size=\[64\] must be \[width, height\]"),
        ({"split": [0.7, 0.1]}, ConfigError, r"split=\[0.7, 0.1\] must be the shares \[train, val, test\]"),
        ({"split": [0.5, 0.1, 0.1]}, ConfigError, "they add up to 1"),
        ({"split": "half"}, ConfigError, "split='half' must be a list of numbers"),
        ({"server_val": 0.6, "server_test": 0.5}, ConfigError, "together below 1"),
        ({"server_val": "x"}, ConfigError, "server_val='x' must be a number"),
        ({"server": "none"}, ConfigError, "server='none' is unknown; expected one of share, source"),
        ({"on_bad_row": "ignore"}, ConfigError, "expected one of error, skip"),
        ({"posters": "move"}, ConfigError, "expected one of copy, hardlink"),
        ({"overwrite": "yes"}, ConfigError, "overwrite='yes' must be true or false"),
        ({"limit": 0}, ConfigError, "limit=0 must be at least 1"),
        ({"policy": "iidd"}, ConfigError, "policy='iidd' is unknown"),
        ({"policy": "proportions"}, ConfigError, "5 proportions for 3 clients"),
        ({"alpha": -1}, ConfigError, "alpha=-1 must be positive"),
        ({"label_map": {"a": 3}}, ConfigError, "must map labels of the source"),
        ({"modalities": "sound"}, ConfigError, "modalities: 'sound' is unknown; expected both, text, image"),
        ({"modalities": ["both"]}, ConfigError, "modalities has 1 entries for 3 clients"),
        ({"missing_text": 1.0}, ConfigError, "missing_text=1.0 must be a number from 0 to below 1"),
        ({"missing_text": 0.6, "missing_image": 0.6}, ConfigError, "no row may lose both"),
        ({"missing_image": [0.1]}, ConfigError, "missing_image has 1 entries for 3 clients"),
        ({"shuffle_labels": [3]}, ConfigError, "shuffle_labels names client 3; there are the clients 0 to 2"),
    ],
)
def test_a_bad_setting_is_named_and_nothing_is_written(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        prepare(root=tmp_path, **{**SMALL, **settings})
    assert tree(tmp_path) == {}


def test_a_root_that_cannot_be_a_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: cannot be written"):
        prepare(root=tmp_path / "file", **SMALL)
