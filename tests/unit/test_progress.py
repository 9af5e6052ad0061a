import io
import os
import pty
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fedmap.history import ClientRecord, RoundRecord, Scores
from fedmap.progress import Pace, PlainProgress, Progress, RichProgress, duration, make_progress
from fedmap.records import ClientSignals, ClientUpdate


def record(round_index: int) -> RoundRecord:
    clients = tuple(ClientRecord(k, num_examples=2, signals=ClientSignals(train_loss=0.5)) for k in range(3))
    scores = Scores(0.5, 0.25, 0.4, 0.4, 10, 0.75)
    return RoundRecord(round_index, {"train": 4.0}, scores, scores, clients=(*clients, ClientRecord(3, "failed", "late")))


def play(progress: Progress, tick: object = None) -> None:
    progress.note("5 clients have joined [all of them]")
    progress.start(3)
    progress.round_done(replace(record(0), clients=(), seconds={}))
    for index in (1, 2, 3):
        progress.clients(index, range(4))
        for client in range(3):
            progress.client_done(ClientUpdate(client, index, {"w": np.ones(1)}, 2, 1, ClientSignals(train_loss=0.5)))
        progress.round_done(record(index))
    progress.stop()
    progress.stop()


def test_plain_lines_are_one_per_round_and_note() -> None:
    stream = io.StringIO()
    times = iter([0.0, 1.0, 5.0, 9.0, 13.0])
    play(PlainProgress(stream, lambda: next(times)))
    assert stream.getvalue().splitlines() == [
        "5 clients have joined [all of them]",
        "initial model, validation loss 0.750, validation macro-F1 0.250",
        "round 1/3: 3 of 4 clients, training loss 0.500, validation loss 0.750, validation macro-F1 0.250, 4.0 s, about 8.0 s left",
        "round 2/3: 3 of 4 clients, training loss 0.500, validation loss 0.750, validation macro-F1 0.250, 4.0 s, about 4.0 s left",
        "round 3/3: 3 of 4 clients, training loss 0.500, validation loss 0.750, validation macro-F1 0.250, 4.0 s",
    ]


def test_a_stream_that_is_no_terminal_gets_plain_lines() -> None:
    assert isinstance(make_progress(io.StringIO()), PlainProgress)


def test_the_live_display_shows_rounds_clients_loss_and_macro_f1() -> None:
    stream = io.StringIO()
    play(RichProgress(Console(file=stream, force_terminal=True, width=120)))
    shown = stream.getvalue()
    for text in ("5 clients have joined [all of them]", "round 3/3: 3 of 4 clients", "macro-F1 0.250", "mean training loss 0.500"):
        assert text in shown


def test_a_real_terminal_gets_the_live_display() -> None:
    code = "from fedmap.progress import make_progress; p = make_progress(); p.stop(); import sys; print(type(p).__name__)"
    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TTY_COMPATIBLE", "CI")} | {"TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stdout=slave, check=True, env=environment, timeout=60)
    os.close(slave)
    shown = os.read(master, 10_000).decode()
    os.close(master)
    assert "RichProgress" in shown


def test_the_time_left_of_a_resumed_run_counts_from_its_own_first_round() -> None:
    times = iter([0.0, 100.0, 110.0])
    pace = Pace(lambda: next(times))
    pace.start(10)
    assert pace.left(7) is None
    pace.begin(8)
    assert pace.left(8) == pytest.approx(20.0)


@pytest.mark.parametrize(("seconds", "text"), [(12.2, "12 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
