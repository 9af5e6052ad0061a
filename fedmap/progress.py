"""What a run tells people while it runs: a live display on a terminal, one plain line per round elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING

from fedmap.history import ClientRecord, RoundRecord
from fedmap.records import ClientUpdate

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """The interface, and the progress that says nothing. Calls may come again after `stop`; they are ignored."""

    def start(self, num_rounds: int) -> None:
        """The clients are there and the first round begins."""

    def resumed(self, round_index: int) -> None:
        """The run goes on after this round; rounds that were told of after it are told of again."""

    def clients(self, round_index: int, client_ids: Sequence[int]) -> None:
        """These clients train in this round."""

    def client_done(self, update: ClientUpdate) -> None:
        """A client's update arrived and was accepted."""

    def client_lost(self, round_index: int, record: ClientRecord) -> None:
        """A client's answer did not come, or was not used; a note says the same in words."""

    def waiting(self, joined: Sequence[int], expected: int) -> None:
        """These clients have joined, of as many as are expected, before the first round."""

    def round_done(self, record: RoundRecord) -> None:
        """A round has ended; round 0 is the initial model."""

    def note(self, text: str) -> None:
        """A sentence for the user."""

    def stop(self) -> None:
        """The run has ended, well or not. May be called twice."""


def make_progress(stream: IO[str] | None = None) -> Progress:
    """A live display where the stream (standard output by default) is a terminal that can show one, else plain lines."""
    from rich.console import Console

    stream = stream or sys.stdout
    console = Console(file=stream)
    return RichProgress(console) if console.is_terminal and not console.is_dumb_terminal else PlainProgress(stream)


class Pace:
    """Estimates the time left from the rounds so far; the clock starts with the first round of training."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.num_rounds = 0
        self._started = 0.0
        self._first = 1

    def start(self, num_rounds: int) -> None:
        """Rounds begin now."""
        self.num_rounds = num_rounds
        self._started = self._clock()
        self._first = 0

    def begin(self, round_index: int) -> None:
        """Round `round_index` begins; a resumed run does not begin with 1."""
        if self._first == 0:
            self._first = round_index
            self._started = self._clock()

    def left(self, round_index: int) -> float | None:
        """Seconds until the last round will have ended, judged after round `round_index`; None before the first has."""
        done = round_index - self._first + 1
        if self._first == 0 or done < 1:
            return None
        return (self._clock() - self._started) / done * max(self.num_rounds - round_index, 0)


class PlainProgress(Progress):
    """One line per round and per note, flushed at once; nothing per client or per step."""

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stdout
        self._pace = Pace(clock)

    def start(self, num_rounds: int) -> None:
        """See `Progress`."""
        self._pace.start(num_rounds)

    def clients(self, round_index: int, client_ids: Sequence[int]) -> None:
        """See `Progress`."""
        self._pace.begin(round_index)

    def round_done(self, record: RoundRecord) -> None:
        """See `Progress`."""
        line = describe(record, self._pace.num_rounds)
        left = self._pace.left(record.round_index)
        self.note(line if not left else f"{line}, about {duration(left)} left")

    def note(self, text: str) -> None:
        """See `Progress`."""
        print(text, file=self._stream, flush=True)


class RichProgress(Progress):
    """A live display of two bars (rounds; clients of the round) below one line per finished round and the notes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        self._pace = Pace(clock)
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            refresh_per_second=4,
            transient=True,
        )
        self._rounds = self._bars.add_task("rounds ", total=None, note="waiting for clients")
        self._clients = self._bars.add_task("clients", total=None, note="", visible=False)
        self._losses: list[float] = []
        self._stopped = False
        self._bars.start()

    def start(self, num_rounds: int) -> None:
        """See `Progress`."""
        self._pace.start(num_rounds)
        self._bars.update(self._rounds, total=num_rounds, note="")

    def resumed(self, round_index: int) -> None:
        """See `Progress`."""
        self._bars.update(self._rounds, completed=round_index)

    def clients(self, round_index: int, client_ids: Sequence[int]) -> None:
        """See `Progress`."""
        self._pace.begin(round_index)
        self._losses = []
        self._bars.reset(self._clients, total=len(client_ids), description="clients", note="", visible=True)

    def client_done(self, update: ClientUpdate) -> None:
        """See `Progress`."""
        if update.signals.train_loss is not None:
            self._losses.append(update.signals.train_loss)
        note = f"client {update.client_id}"
        if self._losses:
            note += f", mean training loss {sum(self._losses) / len(self._losses):.3f}"
        self._bars.update(self._clients, advance=1, note=note)

    def round_done(self, record: RoundRecord) -> None:
        """See `Progress`."""
        left = self._pace.left(record.round_index)
        self._bars.update(self._rounds, completed=record.round_index, note=f"about {duration(left)} left" if left else "")
        self.note(describe(record, self._pace.num_rounds))

    def note(self, text: str) -> None:
        """See `Progress`."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """See `Progress`."""
        if not self._stopped:
            self._stopped = True
            self._bars.stop()


def describe(record: RoundRecord, num_rounds: int) -> str:
    """One line about a round: its number, clients, training loss, and macro-F1 on the server's validation split."""
    if record.round_index == 0:
        parts = ["initial model"]
    else:
        parts = [f"round {record.round_index}/{num_rounds}: {record.num_ok} of {len(record.clients)} clients"]
        if record.train_loss is not None:
            parts.append(f"training loss {record.train_loss:.3f}")
    scores, where = (record.validation, "validation") if record.validation else (record.clients_validation, "clients' validation")
    if scores is not None:
        if scores.loss is not None:
            parts.append(f"{where} loss {scores.loss:.3f}")
        tuned = f" ({record.validation_tuned.macro_f1:.3f} at tuned thresholds)" if record.validation_tuned else ""
        parts.append(f"{where} macro-F1 {scores.macro_f1:.3f}{tuned}")
    if record.seconds:
        parts.append(duration(sum(record.seconds.values())))
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for people: "0.4 s", "12 s", "3 min 05 s", "2 h 07 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
