"""`python -m fedmap`: help at once, mistakes in a sentence, and its pages."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fedmap.cli import main
from fedmap.config import PROJECT, compose_and_resolve
from fedmap.history import ClientRecord, FinalResults, LabelResult, RoundRecord, Scores
from fedmap.outputs import RunFolder

SCORES = Scores(0.5, 0.25, 0.4, 0.3, 10, 0.75)
NAMES = ("War", "<Drama>")
FINAL = FinalResults(1, SCORES, SCORES, SCORES, {}, tuple(LabelResult(name, 3, 0.5, 0.5, 0.5, 0.4) for name in NAMES), {0: SCORES})


def finished(folder: Path, *overrides: str) -> Path:
    run = RunFolder(folder)
    run.start(compose_and_resolve("config", ["tracking=none", *overrides]), NAMES)
    clients = (ClientRecord(0, weight=1.0, num_examples=4, bytes_up=10**6), ClientRecord(1, "failed", "no answer & no <reason>"))
    run.add_round(RoundRecord(1, {"train": 3.0}, SCORES, SCORES, clients=clients))
    run.finish(FINAL)
    return folder


def test_help_comes_at_once_and_reads_well() -> None:
    started = time.process_time(), time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "fedmap", "--help"]
    done = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True, env={**os.environ, "COLUMNS": "100"}
    )
    assert time.monotonic() - started[1] < 10  # a second on a machine at rest
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "fedmap.cli" in imported
    assert not imported & {"torch", "numpy", "flwr", "hydra", "omegaconf", "fastapi", "matplotlib", "transformers"}
    for word in ("predict", "report", "compare", "dashboard", "certs", "demo", "server_main.py", "client_main.py"):
        assert word in done.stdout


@pytest.mark.parametrize("command", ["predict", "report", "compare", "dashboard", "demo"])
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"python -m fedmap {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict"], "give --poster, --text or both, or a --table"),
        (["predict", "--text", "a", "--table", "b.csv"], "give one or the other"),
        (["predict", "--text", "a", "--data", "b"], "give --client, too"),
        (["predict", "--text", "a", "--out", "b.csv"], "belong to a --table"),
        (["predict", "--table", "a.csv", "--json"], "belong to one movie"),
        (["predict", "--text", "a", "--run", "none"], "none/best does not exist"),
        (["predict", "--text", "a"], "no run below outputs has saved a model yet"),
        (["report", "none"], "none/results.json does not exist"),
        (["compare", "none"], "there is no finished run to compare"),
        (["dashboard", "none"], "none is no folder"),
        (["dashboard", ".", "--port", "70000"], "expected 0 to 65535"),
    ],
)
def test_a_mistake_is_a_sentence_and_status_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fedmap: ")
    assert message in captured.err
    assert captured.out == ""


def self_contained(page: str) -> bool:
    """Whether a page names nothing outside itself that a browser would load, and says so to the browser."""
    loaded = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)""", page) + re.findall(r"url\(([^)]*)\)|@import", page)
    return "default-src 'none'" in page and all(place.startswith("data:image/png;base64,") for place in loaded) and "<script" not in page


def test_a_report_is_one_file_that_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path / "outputs" / "2026-11-21" / "10-00-00", "strategy=fedprox", "server.strategy.mu=0.1", "runtime=local")
    page = (run / "report.html").read_text()
    assert self_contained(page)
    assert "<h1>Run 2026-11-21/10-00-00</h1>" in page
    assert "<pre>python server_main.py strategy=fedprox runtime=local server.strategy.mu=0.1</pre>" in page
    assert "&lt;Drama&gt;" in page
    assert "<Drama>" not in page
    assert "no answer &amp; no &lt;reason&gt;" in page
    assert page.count("data:image/png;base64,") == 4
    assert main(["report", str(run), "--out", str(tmp_path / "copy.html")]) == 0
    assert (tmp_path / "copy.html").read_text() == page
    assert "report.html" in capsys.readouterr().out


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (
        finished(tmp_path / "a" / "one", "strategy=fedavg"),
        finished(tmp_path / "a" / "two", "strategy=fedadam", "random_seed=7"),
    )
    unfinished = RunFolder(tmp_path / "a" / "three")
    unfinished.start({}, NAMES)
    assert main(["compare", *map(str, (first, second, unfinished.path)), "--html", str(tmp_path / "c.html")]) == 0
    captured = capsys.readouterr()
    assert "three: this run has not finished" in captured.err
    for word in ("FedAvg", "FedAdam", "one", "two", "1.0 MB", "<Drama>"):
        assert word in captured.out
    page = (tmp_path / "c.html").read_text()
    assert self_contained(page)
    assert "FedAdam" in page
    assert "three: this run has not finished" in page
    assert "Validation by round" in page


def test_runs_with_other_labels_are_compared_without_the_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = finished(tmp_path / "one")
    other = RunFolder(tmp_path / "two")
    other.start({}, ("Cat",))
    other.add_round(RoundRecord(1))
    other.finish(replace(FINAL, labels=(LabelResult("Cat", 1, 1.0, 1.0, 1.0, None),)))
    assert main(["compare", str(first), str(other.path)]) == 0
    assert "F1 of each label" not in capsys.readouterr().out
