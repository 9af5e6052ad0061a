import csv
import errno
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from torch import nn

from fedmap.errors import DataError, StorageError
from fedmap.files import plain, typed, write_text
from fedmap.history import ClientRecord, RoundRecord, RunHistory, Scores
from fedmap.local.training import Evaluation
from fedmap.metrics import MultilabelCounts
from fedmap.outputs import RunFolder, read_history, redacted
from fedmap.records import ClientSignals, ClientUpdate, RoundReport
from fedmap.scoring import final_results, round_scores

LABELS = ("Action", "Drama", "War")


def scores(macro: float, loss: float = 0.5) -> Scores:
    return Scores(micro_f1=macro + 0.1, macro_f1=macro, weighted_f1=macro, samples_f1=macro, num_samples=10, loss=loss)


def update(client_id: int, num_examples: int = 4) -> ClientUpdate:
    truth = np.array([[1, 0, 0], [0, 1, 0]])
    return ClientUpdate(
        client_id=client_id,
        round_index=1,
        weights={"w": np.ones(2)},
        num_examples=num_examples,
        num_steps=2,
        signals=ClientSignals(train_loss=float(client_id), f1_after=0.5, modality_shares={"text": 1.0}, custom={"mine": 2.0}),
        scalars={"log-likelihood": -math.inf},
        counts={"val-before": MultilabelCounts.empty(3), "val-after": MultilabelCounts.of(truth, truth)},
        seconds={"train": 0.25},
    )


def record(round_index: int, macro: float) -> RoundRecord:
    made = RoundRecord.of(
        RoundReport(1, {0: 0.25, 2: 0.75}, {"masked-share": 0.5}, ("client 1 was left out",)),
        [update(2, 12), update(0)],
        validation=scores(macro),
        test=scores(1 - macro),
        seconds={"train": 1.5},
        lost=[ClientRecord(1, "failed", "no answer within 60 s")],
        bytes_up={0: 100, 2: 100},
    )
    return replace(made, round_index=round_index)


def evaluation(logits: list[list[float]], labels: list[list[int]]) -> Evaluation:
    out, truth = np.array(logits, dtype=np.float32), np.array(labels, dtype=np.uint8)
    return Evaluation(MultilabelCounts.of(out >= 0, truth), 0.7, out, truth)


def test_a_record_pools_counts_sorts_clients_and_weights_the_loss_by_rows() -> None:
    made = record(1, 0.5)
    assert [c.client_id for c in made.clients] == [0, 1, 2]
    assert made.num_ok == 2
    assert made.clients_validation is not None
    assert made.clients_validation.num_samples == 4
    assert made.clients[0].weight == 0.25
    assert "val-before" not in made.clients[0].scores
    assert made.train_loss == pytest.approx((0 * 4 + 2 * 12) / 16)


def test_every_round_leaves_true_files_and_the_history_reads_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.start({"num_rounds": 3}, LABELS)
    assert read_history(run.path) == RunHistory(label_names=LABELS)
    for index, macro in enumerate((0.3, 0.6, 0.6), 1):
        assert run.add_round(record(index, macro)) is (index < 3)
        document = json.loads((run.path / "results.json").read_text(), parse_constant=pytest.fail)
        assert document["schema_version"] == 1
        assert document["status"] == "running"
        assert len(document["rounds"]) == index
        assert document["best_round"] == min(index, 2)
    rows = list(csv.DictReader((run.path / "results.csv").read_text().splitlines()))
    assert [row["best"] for row in rows] == ["0", "1", "0"]
    assert rows[1]["validation_macro_f1"] == "0.6"
    assert rows[1]["clients_failed"] == "1"
    assert rows[1]["bytes_up"] == "200"
    clients = list(csv.DictReader((run.path / "clients.csv").read_text().splitlines()))
    assert len(clients) == 9
    assert clients[1]["reason"] == "no answer within 60 s"
    assert clients[1]["train_loss"] == ""
    assert clients[0]["scalar_log_likelihood"] == ""
    assert clients[2]["share_text"] == "1.0"
    assert clients[2]["val_after_macro_f1"]
    run.fail("interrupted")
    back = read_history(run.path)
    assert (back.status, back.reason, len(back.rounds)) == ("failed", "interrupted", 3)
    assert plain(back.rounds) == plain(run.history.rounds)
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")]


def test_the_test_split_never_chooses_the_best_round() -> None:
    history = RunHistory(LABELS).with_round(record(1, 0.6)).with_round(record(2, 0.2))
    best = history.best
    assert best is not None
    assert best.round_index == 1
    confident = history.with_round(replace(record(3, 0.5), validation_tuned=scores(0.9)))
    assert confident.best is confident.rounds[-1]
    silent = RunHistory(LABELS).with_round(replace(record(1, 0.0), validation=scores(0.0, 0.7)))
    silent = silent.with_round(replace(record(2, 0.0), validation=scores(0.0, 0.5)))
    assert silent.best is silent.rounds[1]
    unscored = RunHistory(LABELS, tuple(replace(r, validation=None) for r in history.rounds)).best
    assert unscored is not None
    assert unscored.round_index == 2


def test_a_resumed_run_replaces_the_rounds_that_it_repeats(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.start({}, LABELS)
    for index in (1, 2, 3):
        run.add_round(record(index, 0.1 * index))
    again = RunFolder(tmp_path)
    again.start({}, LABELS, history=read_history(tmp_path))
    again.add_round(record(2, 0.9))
    assert [r.round_index for r in read_history(tmp_path).rounds] == [1, 2]


def test_secrets_never_reach_the_folder(tmp_path: Path) -> None:
    config = OmegaConf.create(
        {
            "tracking": {"wandb": {"api_key": "sk-1"}, "apiKey": "sk-2", "url": "https://me:sk-3@host/x"},
            "hub_token": "sk-4",
            "secrets": {"a": ["sk-5", {"b": 66}]},
            "password": None,
            "tokenizer": "bert",
            "max_tokens": 128,
            "same": "${tokenizer}",
        }
    )
    run = RunFolder(tmp_path)
    run.start(config, LABELS)
    text = (tmp_path / "config.yaml").read_text()
    assert "sk-" not in text
    assert "66" not in text
    assert redacted(config)["password"] is None
    assert OmegaConf.load(tmp_path / "config.yaml").same == "bert"
    assert redacted(config)["max_tokens"] == 128


def test_models_are_saved_as_last_and_best(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = RunFolder(tmp_path)
    run.start({}, LABELS)
    model = nn.Linear(2, 3)
    for index, macro in enumerate((0.5, 0.4), 1):
        model.bias.data.fill_(index)
        run.add_round(record(index, macro), model, {"Action": 0.3})
    assert load_file(tmp_path / "best" / "model.safetensors")["bias"].tolist() == [1, 1, 1]
    assert load_file(tmp_path / "last" / "model.safetensors")["bias"].tolist() == [2, 2, 2]
    assert json.loads((tmp_path / "best" / "config.json").read_text())["thresholds"] == {"Action": 0.3}


def test_a_model_of_ones_own_saves_itself(tmp_path: Path) -> None:
    class Own(nn.Module):
        def save_pretrained(self, folder: Path, *, label_names: list[str], thresholds: list[float]) -> None:
            write_text(Path(folder) / "own.txt", f"{label_names} {thresholds}")

    run = RunFolder(tmp_path)
    run.start({}, LABELS)
    assert (run.save_model("last", Own(), {"Drama": 0.25}) / "own.txt").read_text() == f"{list(LABELS)} [0.5, 0.25, 0.5]"


def test_final_results_tune_on_validation_and_only_report_test() -> None:
    validation = evaluation([[-1, -2, 0], [-3, -3, 0], [2, -1, 0]], [[1, 0, 0], [0, 0, 0], [1, 1, 0]])
    test = evaluation([[-1.5, -1.0, -5], [-4, -1.6, 5]], [[1, 1, 0], [0, 0, 1]])
    final = final_results(4, LABELS, validation, test, {3: test.counts, 1: evaluation([[1, 1, 1]], [[0, 0, 0]]).counts})
    assert final.test is not None
    assert final.test_tuned is not None
    assert final.test.macro_f1 == pytest.approx(1 / 3)
    assert [row.f1 for row in final.labels] == [1.0, pytest.approx(1.0), 1.0]
    assert final.thresholds["War"] == 0.5
    assert final.test_tuned.macro_f1 == 1.0
    assert [row.support for row in final.labels] == [1, 1, 1]
    assert list(final.clients) == [1, 3]
    assert final.worst_client == 1
    assert final.mean_client_macro_f1 == pytest.approx(1 / 6)


def test_a_model_that_decides_itself_has_no_thresholds_and_splits_may_be_absent() -> None:
    class OneLabel:
        def decide(self, logits: np.ndarray) -> np.ndarray:
            return logits == logits.max(axis=1, keepdims=True)

    one = evaluation([[1.0, -1.0, -1.0]], [[1, 0, 0]])
    untuned = final_results(4, LABELS, one, one, model=OneLabel())
    assert untuned.test_tuned is None
    assert untuned.thresholds == {}
    assert untuned.labels[0].threshold is None
    nothing = final_results(0, LABELS, None, None)
    assert nothing.test is None
    assert nothing.labels == ()


def test_a_round_knows_each_labels_f1_where_there_are_validation_rows() -> None:
    validation = evaluation([[-1, -2, 0], [-3, -3, 0], [2, -1, 0]], [[1, 0, 0], [0, 0, 0], [1, 1, 0]])
    found = round_scores(validation, validation)
    assert found["label_f1"] == (1.0, 1.0, 0.0)
    assert found["validation_tuned"] is not None
    assert found["validation_tuned"].macro_f1 == pytest.approx(sum(found["label_f1"]) / 3)
    assert round_scores(None, validation)["label_f1"] == ()


def test_what_is_read_back_is_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="outputs/<date>/<time>"):
        read_history(tmp_path)
    for text, message in (("{", "not JSON"), ("{}", "schema_version 1"), ("[]", "schema_version 1")):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_history(tmp_path)
    for value, message in (
        ({"round_index": "1"}, "round_index: expected int, got '1'"),
        ({"round": 1}, "unknown keys"),
        ({}, "missing 1 required"),
    ):
        with pytest.raises(DataError, match=message):
            typed(RoundRecord, value)


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StorageError, match=r"a\.txt: cannot be written \(No space left on device\); free space"):
        write_text(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
