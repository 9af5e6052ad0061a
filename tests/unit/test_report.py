from dataclasses import replace
from pathlib import Path

import pytest

from fedmap.errors import DataError
from fedmap.history import ClientRecord, FinalResults, LabelResult, RoundRecord, RunHistory, Scores
from fedmap.outputs import RunFolder
from fedmap.records import ClientSignals
from fedmap.report import folder as report
from fedmap.report.plots import _spaced, write_plots
from fedmap.report.tables import Table, client_table, comparison_table, label_table, rounds_table, summary_table

SCORES = Scores(0.5, 0.25, 0.4, 0.3, 10, 0.75)
LABELS = tuple(LabelResult(name, rows, 0.5, 0.5, 0.5, 0.4) for name, rows in (("War", 3), ("Drama", 30), ("a|b", 3)))
FINAL = FinalResults(2, SCORES, SCORES, replace(SCORES, macro_f1=0.3), {"War": 0.4}, LABELS, {0: SCORES, 1: replace(SCORES, macro_f1=0.1)})


def history(num_rounds: int = 2, num_clients: int = 2) -> RunHistory:
    made = RunHistory(("War", "Drama", "a|b"), (RoundRecord(0, validation=SCORES, test=SCORES),))
    for index in range(1, num_rounds + 1):
        clients = tuple(
            ClientRecord(k, weight=1 / num_clients, num_examples=4, signals=ClientSignals(train_loss=0.5, f1_before=0.2, f1_after=0.3))
            for k in range(num_clients - index % 2)
        )
        lost = ClientRecord(num_clients, "rejected", "a weight is not finite") if index % 2 else ClientRecord(num_clients, "failed", "late")
        better = replace(SCORES, macro_f1=0.25 + 0.1 * index)
        made = made.with_round(RoundRecord(index, {"train": 3.0}, better, SCORES, clients=(*clients, lost), notes=("a note",)))
    return replace(made, final=FINAL, status="finished")


def test_tables_hold_the_runs_figures() -> None:
    run = history()
    assert [row[0] for row in summary_table(run).rows] == ["validation", "test", "test, thresholds tuned on validation"]
    assert [row[0] for row in label_table(run).rows] == ["Drama", "War", "a|b"]
    assert rounds_table(run).cells()[2] == ["2 *", "2 of 3", "0.500", "0.750", "0.450", "0.500", "0.250", "0.500", "3.0 s"]
    assert client_table(run).cells() == [
        ["client 0", "2 of 2", "4", "0.500", "0.200", "0.300", "0.250", "0.500"],
        ["client 1", "1 of 1", "4", "0.500", "0.200", "0.300", "0.100", "0.500"],
        ["client 2", "0 of 2", "-", "-", "-", "-", "-", "-"],
    ]
    assert comparison_table({"federated": FINAL, "empty": FinalResults(0)}).cells() == [
        ["federated", "0.250", "0.500", "0.300", "0.500", "0.175", "0.100"],
        ["empty", "-", "-", "-", "-", "-", "-"],
    ]


def test_markdown_keeps_bars_and_lines_apart() -> None:
    assert Table("t", ("a", "b"), [("x|y\nz", 1.0)]).markdown() == "| a | b |\n| --- | ---: |\n| x\\|y z | 1.000 |"


@pytest.mark.parametrize(("rounds", "clients"), [(1, 2), (3, 2), (12, 30), (101, 3)])
def test_every_plot_is_drawn_without_a_warning(tmp_path: Path, rounds: int, clients: int) -> None:
    from PIL import Image

    files = write_plots(history(rounds, clients), tmp_path)
    assert [file.name for file in files] == ["f1.png", "loss.png", "labels.png", "weights.png"]
    for file in files:
        with Image.open(file) as image:
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f1.png", "labels.png", "loss.png", "weights.png"]


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    assert write_plots(RunHistory(("a",)), tmp_path) == []
    only_losses = RunHistory(("a",), tuple(replace(r, validation=None, test=None) for r in history().rounds))
    assert [path.name for path in write_plots(only_losses, tmp_path)] == ["loss.png", "weights.png"]


def test_ticks_are_round_numbers() -> None:
    assert _spaced(list(range(1, 51)), 14) == [4, 9, 14, 19, 24, 29, 34, 39, 44, 49]
    assert _spaced([7], 14) == [0]
    assert _spaced([1, 3], 1) == [0]


def test_a_finished_run_has_a_report_and_says_where_things_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path)
    run.start({}, ("War", "Drama", "a|b"))
    for record in history().rounds:
        run.add_round(record)
    run.finish(FINAL)
    text = (tmp_path / "report.md").read_text()
    assert "![weights](plots/weights.png)" in text
    assert "- round 1: client 2 rejected: a weight is not finite" in text
    assert "finished after 2 rounds" in text
    report.print_report(tmp_path)
    printed = capsys.readouterr().out
    assert "Drama" in printed
    assert f"report:  {tmp_path / 'report.html'}" in printed
    report.compare_folders([tmp_path, tmp_path])


def test_an_unfinished_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path)
    run.start({}, ("War",))
    run.add_round(history().rounds[1])
    report.write_report(tmp_path)
    report.print_report(tmp_path)
    assert "has not finished" in capsys.readouterr().out
    run.fail("too few clients")
    report.print_report(tmp_path)
    assert "failed after 1 rounds: too few clients" in capsys.readouterr().out
    with pytest.raises(DataError, match="has not finished, so it has no final results"):
        report.compare_folders([tmp_path, tmp_path])


def test_a_report_that_cannot_be_drawn_does_not_cost_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.start({}, ("War",))
    run.add_round(history().rounds[1])
    (tmp_path / "plots").write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="could not be written"):
        run.finish(FINAL)
    assert '"status": "finished"' in (tmp_path / "results.json").read_text()
