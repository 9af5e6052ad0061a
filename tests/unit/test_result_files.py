"""A run's tables grow with it: the same files as if they were written anew, at a cost that does not grow."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedmap.checkpoint import load_state, save_state
from fedmap.errors import StorageError
from fedmap.files import extend
from fedmap.history import FAILED, ClientRecord, FinalResults, PackedRounds, RoundRecord, RunHistory, Scores
from fedmap.outputs import RunFolder, read_history
from fedmap.result_files import ResultFiles

LABELS = ("Ärger", "War")


def record(index: int, f1: float | None = 0.5, clients: int = 3, **more) -> RoundRecord:
    scores = None if f1 is None else Scores(f1, f1, f1, f1, 10, 0.1 * index)
    some = tuple(ClientRecord(k, num_examples=5, seconds={"train": 0.5}) for k in range(clients))
    return RoundRecord(index, {"train": 1.0}, scores, clients=some, **more)


ROUNDS = (
    record(0, 0.1, clients=0),
    record(1, 0.4),
    replace(
        record(2, 0.7), notes=("naïve",), clients=(ClientRecord(0, FAILED, 'it said "no",\nand left'), ClientRecord(7, scalars={"a": 2}))
    ),
    record(3, 0.7),
    record(4, None),
)


def test_packed_rounds_are_the_rounds(tmp_path: Path) -> None:
    packed = PackedRounds.of(ROUNDS)
    assert packed == ROUNDS
    assert packed[1:3] == ROUNDS[1:3]
    assert packed[-1] == ROUNDS[-1]
    for until in (None, 0, 1, 3, 4):
        assert RunHistory(LABELS, packed).best_round(until) == RunHistory(LABELS, ROUNDS).best_round(until)
    again = packed.with_round(replace(ROUNDS[2], notes=("again",)))
    assert [r.round_index for r in again] == [0, 1, 2]
    assert again[2].notes == ("again",)
    save_state(tmp_path / "state", RunHistory(LABELS, packed))
    assert load_state(tmp_path / "state", RunHistory) == RunHistory(LABELS, packed)
    save_state(tmp_path / "older", RunHistory(LABELS, ROUNDS))
    assert load_state(tmp_path / "older", RunHistory).packed() == RunHistory(LABELS, packed)


def test_what_grows_is_what_would_be_written_at_once(tmp_path: Path) -> None:
    history, grown, at_once = RunHistory(LABELS).packed(), tmp_path / "grown", tmp_path / "at_once"
    files = ResultFiles(grown)
    files.write(history)
    assert read_history(grown) == RunHistory(LABELS)
    for one in ROUNDS:
        history = history.with_round(one)
        files.write(history)
        assert json.loads((grown / "results.json").read_text())["best_round"] == history.best_round()
    history = replace(history, status="finished", final=FinalResults(2))
    files.write(history)
    ResultFiles(at_once).write(history)
    for name in ("results.json", "results.csv", "clients.csv"):
        assert (grown / name).read_bytes() == (at_once / name).read_bytes()
    assert (grown / "results.json").read_text() == json.dumps(
        json.loads((grown / "results.json").read_text()), indent=1, ensure_ascii=False
    ) + "\n"
    assert read_history(grown) == RunHistory(LABELS, ROUNDS, FinalResults(2), "finished")
    with (grown / "clients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], row["client"]) for row in rows][3:5] == [("2", "0"), ("2", "7")]
    assert rows[3]["reason"] == 'it said "no",\nand left'
    with (grown / "results.csv").open(newline="") as file:
        assert [row["best"] for row in csv.DictReader(file)] == ["0", "0", "1", "0", "0"]


def test_rounds_that_are_undone_are_gone_from_every_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.start({}, LABELS)
    for one in ROUNDS:
        folder.add_round(one)
    folder.add_round(record(2, 0.2))
    assert [r.round_index for r in read_history(tmp_path).rounds] == [0, 1, 2]
    assert read_history(tmp_path).rounds[2].validation == record(2, 0.2).validation
    assert "naïve" not in (tmp_path / "results.json").read_text()


def test_a_round_reads_nothing_but_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, history = ResultFiles(tmp_path), RunHistory(LABELS).packed()
    for k in range(1, 4):
        history = history.with_round(record(k))
        files.write(history)
    looked: list[int] = []
    get = PackedRounds.__getitem__

    def counted(self: PackedRounds, index):
        found = get(self, index)
        looked.extend(one.round_index for one in (found if isinstance(found, tuple) else [found]))
        return found

    history = history.with_round(record(4))
    monkeypatch.setattr(PackedRounds, "__getitem__", counted)
    files.write(history)
    assert set(looked) == {4}


def test_after_a_failure_everything_is_written_once_more(tmp_path: Path) -> None:
    files, history = ResultFiles(tmp_path), RunHistory(LABELS, ROUNDS[:2]).packed()
    files.write(history)
    (tmp_path / "clients.csv").write_text("cut")
    history = history.with_round(record(2))
    with pytest.raises(StorageError, match="another program has shortened it"):
        files.write(history)
    files.write(history)
    assert len((tmp_path / "clients.csv").read_text().splitlines()) == 1 + 6
    assert read_history(tmp_path).rounds == (*ROUNDS[:2], record(2))


def test_a_file_is_extended_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "file"
    extend(path, 0, b"abcdef")
    before = path.open("rb")
    extend(path, 3, b"xyz")
    assert path.read_bytes() == b"abcxyz"
    assert before.read() == b"abcdef", "a reader keeps what it has opened"
    before.close()
    assert list(tmp_path.iterdir()) == [path]
