"""The process that predicts: it answers, refuses what is too much, survives its own death, and leaves with its server."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedmap.errors import DataError, FederationError, ModelError
from fedmap.history import RunHistory
from fedmap.outputs import RunFolder
from fedmap.prediction.worker import BusyError, Question, Worker
from models import MMIMDbFusionModel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.history = RunHistory(("Drama", "War"))
    model = MMIMDbFusionModel(2, bert_name="tiny", vision_name="tiny", pretrained_vision=False)
    model.image_size = 16
    folder.save_model("best", model, {"Drama": 0.3})
    return folder.path


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker(waiting=1)
    yield made
    made.close()


def pid(worker: Worker) -> int:
    assert worker._process is not None
    assert worker._process.pid is not None
    return worker._process.pid


def test_answers_and_refusals_come_through(worker: Worker, run: Path) -> None:
    answer = worker.ask(Question(run, text="a robot", explained=True))
    assert {row["label"]: row["threshold"] for row in answer["scores"]} == {"Drama": 0.3, "War": 0.5}
    assert [word["word"] for word in answer["explanation"]["words"]] == ["a", "robot"]
    assert psutil.Process(pid(worker)).nice() >= 10
    first = pid(worker)
    with pytest.raises(DataError, match="nothing to predict from"):
        worker.ask(Question(run))
    with pytest.raises(DataError, match="cannot be decoded"):
        worker.ask(Question(run, poster=b"no picture"))
    with pytest.raises(DataError, match="last does not exist"):
        worker.ask(Question(run, "last", text="a"))
    with pytest.raises(ModelError, match="expected one of"):
        worker.ask(Question(run, "first", text="a"))
    assert pid(worker) == first


def test_too_many_at_once_are_refused_and_the_others_are_answered(worker: Worker, run: Path) -> None:
    worker.ask(Question(run, text="a"))
    os.kill(pid(worker), signal.SIGSTOP)  # so that the first question takes its time
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(worker.ask(Question(run, text="a robot")))) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        end = time.monotonic() + 10
        while worker._places._value and time.monotonic() < end:
            time.sleep(0.02)
        with pytest.raises(BusyError, match="2 predictions are under way or waiting already"):
            worker.ask(Question(run, text="one too many"))
    finally:
        os.kill(pid(worker), signal.SIGCONT)
        for thread in threads:
            thread.join(30)
    assert len(answers) == 2
    assert worker.ask(Question(run, text="a"))["decided"] is not None


def test_its_death_costs_one_answer(worker: Worker, run: Path) -> None:
    worker.ask(Question(run, text="a"))
    os.kill(pid(worker), signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (pid(worker), signal.SIGKILL)).start()
    with pytest.raises(FederationError, match="has ended, maybe for want of memory"):
        worker.ask(Question(run, text="a"))
    assert worker.ask(Question(run, text="a"))["scores"]


def test_what_takes_too_long_is_given_up(run: Path) -> None:
    worker = Worker(seconds=0.0)
    with pytest.raises(BusyError, match="took longer than 0 s"):
        worker.ask(Question(run, text="a"))
    assert worker._process is None
    worker.close()


def test_an_idle_process_leaves_and_the_next_question_starts_another(run: Path) -> None:
    worker = Worker(idle=0.2)
    worker.ask(Question(run, text="a"))
    first = pid(worker)
    end = time.monotonic() + 20
    while psutil.pid_exists(first) and psutil.Process(first).status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.05)
    assert worker.ask(Question(run, text="a"))["scores"]
    assert pid(worker) != first
    second = pid(worker)
    worker.close()
    assert not psutil.pid_exists(second) or psutil.Process(second).status() == psutil.STATUS_ZOMBIE
    with pytest.raises(BusyError, match="about to end"):
        worker.ask(Question(run, text="a"))


def test_a_model_that_was_written_anew_is_read_anew(worker: Worker, run: Path) -> None:
    before = worker.ask(Question(run, text="a robot"))["scores"]
    folder = RunFolder(run)
    folder.history = RunHistory(("Drama", "War"))
    model = MMIMDbFusionModel(2, bert_name="tiny", vision_name="tiny", pretrained_vision=False)
    folder.save_model("best", model, {"Drama": 0.4})
    after = worker.ask(Question(run, text="a robot"))["scores"]
    assert before != after
    assert {row["label"]: row["threshold"] for row in after}["Drama"] == 0.4
