import importlib.util
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedmap.config import CONF
from fedmap.errors import ConfigError
from fedmap.history import ClientRecord, FinalResults, RoundRecord, Scores
from fedmap.outputs import RunFolder
from fedmap.tracking import BackgroundTracker, Tracker, final_metrics, make_tracker, round_metrics

SCORES = Scores(0.5, 0.25, 0.4, 0.3, 10, 0.75)
RECORD = RoundRecord(1, {"train": 2.0}, SCORES, None, clients=(ClientRecord(0, weight=1.0), ClientRecord(2, "failed", "late")))
FINAL = FinalResults(1, SCORES, SCORES, SCORES)


class Recorder(Tracker):
    """Keeps the names of its calls; fails or hangs at the call it is told to."""

    def __init__(self, fail_at: str = "", hang_at: str = "") -> None:
        self.calls: list[str] = []
        self.fail_at, self.hang_at = fail_at, hang_at
        self.release = threading.Event()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fail_at:
            raise ConnectionError("no route")
        if name == self.hang_at:
            self.release.wait(20)

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._call("start")

    def round_done(self, record: RoundRecord) -> None:
        self._call("round")

    def finish(self, final: FinalResults) -> None:
        self._call("finish")

    def close(self) -> None:
        self._call("close")


def play(tracker: Tracker) -> None:
    tracker.start(Path("run"), {})
    tracker.round_done(RECORD)
    tracker.round_done(RECORD)
    tracker.finish(FINAL)
    tracker.close()
    tracker.close()


def test_metrics_are_the_known_numbers() -> None:
    metrics = round_metrics(RECORD)
    assert metrics["validation/macro_f1"] == 0.25
    assert metrics["weight/client_0"] == 1.0
    assert metrics["clients/failed"] == 1
    assert not any(name.startswith("test/") for name in metrics)
    assert "weight/client_2" not in metrics
    assert final_metrics(FINAL)["final/test_tuned/micro_f1"] == 0.5


def test_calls_arrive_in_order() -> None:
    recorder = Recorder()
    play(BackgroundTracker(recorder))
    assert recorder.calls == ["start", "round", "round", "finish", "close"]


def test_a_tracker_that_fails_costs_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(fail_at="round")
    play(BackgroundTracker(recorder))
    assert recorder.calls == ["start", "round"]
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "Recorder is left behind" in caplog.text
    assert "no route" in caplog.text


def test_a_tracker_that_hangs_costs_one_warning_and_little_time(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(hang_at="start")
    play(BackgroundTracker(recorder, flush_seconds=0.1))
    assert recorder.calls == ["start"]
    assert len(caplog.records) == 1
    assert "did not finish within 0.1 s" in caplog.text
    recorder.release.set()


def test_a_tracker_that_falls_behind_is_left(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(hang_at="start")
    play(BackgroundTracker(recorder, flush_seconds=0.05, queue_size=2))
    assert "2 calls behind" in caplog.text
    assert len(caplog.records) == 1
    recorder.release.set()


def test_tensorboard_holds_the_runs_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(tmp_path)
    run.start({"tracking": {"_target_": "fedmap.tracking.TensorBoardTracker"}}, ("a",))
    run.add_round(RECORD)
    run.fail("stopped")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("validation/macro_f1")] == [(1, 0.25)]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "tracking").glob("*.yaml")))
def test_every_file_of_conf_tracking_makes_a_tracker_or_says_what_to_install(name: str) -> None:
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(OmegaConf.load(CONF / "tracking" / f"{name}.yaml"))
    assert isinstance(node, dict)
    installed = {"mlflow": "mlflow", "wandb": "wandb"}.get(name, "torch")
    if importlib.util.find_spec(installed) is None:
        with pytest.raises(ConfigError, match="pip install"):
            make_tracker(node)
    else:
        assert isinstance(make_tracker(node), Tracker)


def test_a_missing_package_is_named_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="pip install mlflow, or set tracking=none"):
        RunFolder(tmp_path).start({"tracking": {"_target_": "fedmap.tracking.MLflowTracker"}}, ("a",))
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "fedmap.tracking.Tensorboard"}, "cannot be imported"),
        ({"_target_": "fedmap.files.plain"}, "not a subclass"),
        ({"_target_": "fedmap.tracking.TensorBoardTracker", "speed": 1}, "unexpected keyword argument 'speed'"),
        ({"_target_": "fedmap.tracking.WandbTracker", "mode": "of"}, "expected offline or online"),
    ],
)
def test_mistakes_are_named(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_tracker(node)


def test_nothing_is_imported_for_no_tracker() -> None:
    code = "import sys; from fedmap.tracking import make_tracker; make_tracker(None); "
    code += "print([m in sys.modules for m in ('tensorboard', 'torch')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(out.lower()) == [False, False]
