"""Predictions of a real run's model: from a table they score as the run did, and a client's own model is the one it was scored with."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmap.cli import main
from fedmap.errors import DataError, ModelError
from fedmap.metrics import MultilabelCounts
from fedmap.prediction.attribution import GRID, explain
from fedmap.prediction.predictor import Predictor
from fedmap.prediction.table import predict_table
from tests.movie_runs import MovieRun, movie_data, train_on_movies

pytestmark = pytest.mark.slow


def test_a_table_scores_as_the_run_did(movie_run: MovieRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = movie_run.data / "dataset" / "server" / "server_test.csv"
    out = tmp_path / "predictions.csv"
    posters = str(movie_run.poster("").parent / "mmimdb_posters")
    assert main(["predict", "--run", str(movie_run.folder), "--table", str(table), "--posters", posters, "--out", str(out)]) == 0
    tuned = movie_run.history.final.test_tuned
    assert f"micro-F1 {tuned.micro_f1:.4f}  macro-F1 {tuned.macro_f1:.4f}" in capsys.readouterr().out
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["img_name"] for row in rows] == [row["img_name"] for row in movie_run.movies]
    assert set(rows[0]) == {"line", "img_name", "decided", *movie_run.history.label_names}


def test_most_first_guesses_are_right(movie_run: MovieRun) -> None:
    predictor = Predictor.open(movie_run.folder)
    movies = movie_run.movies
    made = [predictor.predict(movie["text"], movie_run.poster(movie["img_name"])) for movie in movies]
    right = sum(one.rows()[0]["label"] in movie["labels"].split("|") for one, movie in zip(made, movies, strict=True))
    assert right / len(movies) > 0.7


def test_thresholds_are_those_of_the_run(movie_run: MovieRun) -> None:
    best = Predictor.open(movie_run.folder)
    np.testing.assert_allclose(best.thresholds, [movie_run.history.final.thresholds[name] for name in best.label_names])
    assert best.tuned == "thresholds tuned on the server's validation rows"
    alone = Predictor.open(movie_run.folder / "best")
    assert alone.which == ""
    np.testing.assert_array_equal(alone.thresholds, best.thresholds)


@pytest.mark.parametrize("strategy", ["individual", "fedbn"])
def test_a_clients_own_model_is_the_one_that_it_was_scored_with(tmp_path: Path, strategy: str) -> None:
    data = movie_data(tmp_path / "data", 250)
    run = train_on_movies(tmp_path / "outputs", "own", data, f"strategy={strategy}", "num_rounds=2", "num_epochs=3", "learning_rate=0.01")
    for client in (0, 3):
        predictor = Predictor.open(run.folder, client=client)
        assert "validation rows of client" in predictor.tuned
        made = predict_table(predictor, data / "dataset" / f"client_{client}" / "test.csv", [run.poster("x").parent])
        truth = [[name in movie["labels"].split("|") for name in predictor.label_names] for movie in run.rows(f"client_{client}/test.csv")]
        counts = MultilabelCounts.of(np.stack([one.scores for one in made.predictions]) >= 0.5, truth)
        assert counts.scores() == pytest.approx(
            {name: getattr(run.history.final.clients[client], name) for name in counts.scores()}
        )  # as the client reported it, at 0.5
    moved = tmp_path / "moved"
    data.rename(moved)
    with pytest.raises(ModelError, match="the memory of client 0 is not in"):
        Predictor.open(run.folder, client=0)
    assert "validation rows" in Predictor.open(run.folder, client=0, data=moved).tuned
    with pytest.raises(ModelError, match="there are those of clients 0, 1, 2, 3, 4"):
        Predictor.open(run.folder, client=9, data=moved)


def test_one_model_for_everybody_is_said(movie_run: MovieRun) -> None:
    with pytest.raises(ModelError, match="FedAvg trains one model for everybody"):
        Predictor.open(movie_run.folder, client=0)


def test_leaving_out_the_other_modality_is_predicting_from_one(
    movie_run: MovieRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    movie = movie_run.movies[0]
    monkeypatch.chdir(movie_run.outputs.parent)  # the newest run in outputs/ is taken
    command = ["predict", "--json", "--text", movie["text"]]
    assert main([*command, "--poster", str(movie_run.poster(movie["img_name"])), "--explain"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    plot = json.loads(capsys.readouterr().out)
    assert [(row["label"], row["decided"]) for row in both["without_poster"]] == [(row["label"], row["decided"]) for row in plot["scores"]]
    assert [row["score"] for row in both["without_poster"]] == pytest.approx([row["score"] for row in plot["scores"]], abs=1e-5)
    assert plot["without_poster"] is plot["without_text"] is plot["explanation"] is None
    assert both["decided"] == [row["label"] for row in both["scores"] if row["score"] >= row["threshold"]]
    words = both["explanation"]["words"]
    assert [word["word"] for word in words] == [movie["text"][word["start"] : word["end"]] for word in words]
    assert len(both["explanation"]["regions"]) == GRID * GRID
    assert main(["predict", "--text", movie["text"], "--explain"]) == 0
    assert "Words that mattered" in capsys.readouterr().out


def test_an_effect_is_what_the_model_says_without_the_word(movie_run: MovieRun) -> None:
    predictor = Predictor.open(movie_run.folder)
    movie = movie_run.movies[1]
    content = movie_run.poster(movie["img_name"]).read_bytes()
    found = explain(predictor, movie["text"], content)
    word = found.words[3]
    without = predictor.predict(movie["text"][: word.start] + movie["text"][word.end :], content).scores
    np.testing.assert_allclose(found.log_odds - word.effects, np.log(without / (1 - without)), atol=1e-3)


def test_a_broken_poster_is_named(movie_run: MovieRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert main(["predict", "--run", str(movie_run.folder), "--poster", str(tmp_path / "bad.png")]) != 0
    assert "bad.png: the picture cannot be decoded" in capsys.readouterr().err


def test_a_broken_poster_names_its_row(movie_run: MovieRun, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    table = tmp_path / "movies.csv"
    table.write_text("text,img_name\na robot,good.png\na cat,bad.png\n,none.png\n,\nonly text,\n")
    predictor = Predictor.open(movie_run.folder)
    with pytest.raises(DataError) as caught:
        predict_table(predictor, table)
    for line, reason in ((3, "the picture cannot be decoded"), (4, "'none.png' is missing"), (5, "both empty")):
        assert f"{table}, line {line}: " in str(caught.value)
        assert reason in str(caught.value)
    made = predict_table(predictor, table, skip_bad=True)
    assert [row.line for row in made.rows] == [2, 6]
    assert len(made.bad) == 3
    assert made.counts is None


def test_bytes_and_paths_and_pictures_are_one(movie_run: MovieRun) -> None:
    predictor = Predictor.open(movie_run.folder)
    path = movie_run.poster(movie_run.movies[0]["img_name"])
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        scores = predictor.probabilities([None] * 4, [path, str(path), path.read_bytes(), picture.copy()])
    np.testing.assert_allclose(scores, scores[[0, 0, 0, 0]], atol=1e-6)
