"""Folders of runs in every state, written by what writes them in a real run, with made-up numbers: for tests of what shows runs."""

from __future__ import annotations

import math
from pathlib import Path

from fedmap.flower.events import EVENTS, EventProgress
from fedmap.history import FAILED, REJECTED, ClientRecord, FinalResults, LabelResult, RoundRecord, Scores
from fedmap.outputs import RunFolder
from fedmap.records import ClientSignals, ClientUpdate

HOSTILE = '<img src=x onerror="window.hacked = true">'
LABELS = ("Action", "Comedy", HOSTILE, "Drama", "Science Fiction and Fantasy")


def scores(value: float, loss: float | None = None) -> Scores:
    return Scores(micro_f1=min(value + 0.05, 1.0), macro_f1=value, weighted_f1=value, samples_f1=value, num_samples=240, loss=loss)


def signals(client_id: int, round_index: int) -> ClientSignals:
    return ClientSignals(
        f1_before=0.4 * round_index / (round_index + 3),
        f1_after=0.5 * round_index / (round_index + 3) + 0.01 * (client_id % 7),
        train_loss=0.7 / round_index + 0.02 * (client_id % 5),
        update_norm=1.5 / round_index,
        modality_shares={"text": (1.0, 0.8, 0.0)[client_id % 3], "image": (1.0, 1.0, 1.0)[client_id % 3]},
        custom={HOSTILE: 0.5} if client_id == 0 else {},
    )


class StagedRun:
    """A run that goes as far as a test wants: `opened`, `joined`, `rounds`, `begin_round`, `finish` or `fail`.

    Attributes:
        path: its folder.
    """

    def __init__(self, path: Path, num_clients: int = 4, num_rounds: int = 6, strategy: str = "fedavg", **config: object) -> None:
        self.path, self.num_clients, self.num_rounds = path, num_clients, num_rounds
        path.mkdir(parents=True)
        self.folder = RunFolder(path)
        self.events = EventProgress(path / EVENTS)
        self.events.opened(num_rounds, {"strategy": strategy, "model": "tiny", "dataset": "mm_imdb"})
        target = f"fedmap.aggregators.{strategy}.{strategy}"
        tree = {"server": {"strategy": {"_target_": target}}, "runtime": {"name": "superlink"}, "num_rounds": num_rounds, **config}
        self.folder.start(tree, LABELS)

    def joined(self, count: int) -> StagedRun:
        self.events.waiting(list(range(count)), self.num_clients)
        return self

    def rounds(self, count: int) -> StagedRun:
        self.joined(self.num_clients)
        self.events.start(self.num_rounds)
        self._record(RoundRecord(0, {}, scores(0.1, 0.8), scores(0.09, 0.82), scores(0.2, 0.8), label_f1=(0.2,) * len(LABELS)))
        for round_index in range(1, count + 1):
            self.begin_round(round_index, self.num_clients)
            self._record(self._round(round_index))
        return self

    def begin_round(self, round_index: int, answers: int) -> StagedRun:
        self.events.clients(round_index, range(self.num_clients))
        for client_id in range(answers):
            if self._lost(client_id, round_index) is None:
                self.events.client_done(ClientUpdate(client_id, round_index, {}, 100 + client_id, 4, signals(client_id, round_index)))
        return self

    def finish(self) -> StagedRun:
        labels = tuple(LabelResult(name, 40 - 5 * i, 0.5, 0.25 + 0.1 * i, 0.3 + 0.1 * i, 0.4) for i, name in enumerate(LABELS))
        clients = {k: scores(0.3 + 0.01 * (k % 9)) for k in range(self.num_clients)}
        best = self.folder.history.best
        assert best is not None
        # the report with its plots is not what is tested here, so the end is written as `RunFolder.finish` writes it, without one
        self.folder._end(
            "finished", "", FinalResults(best.round_index, best.validation, best.test, scores(0.55), {LABELS[0]: 0.4}, labels, clients)
        )
        self.events.emit("finished")
        return self

    def fail(self, reason: str) -> StagedRun:
        self.folder.fail(reason)
        self.events.failed(RuntimeError(reason))
        return self

    def _record(self, record: RoundRecord) -> None:
        self.folder.add_round(record)
        self.events.round_done(record)

    def _lost(self, client_id: int, round_index: int) -> ClientRecord | None:
        if client_id % 9 == 2 and round_index in (2, 3):
            return ClientRecord(client_id, FAILED, f"RuntimeError: the disk is full {HOSTILE}")
        if client_id % 50 == 3 and round_index == 2:
            return ClientRecord(client_id, REJECTED, f"client {client_id}: head.weight holds NaN; lower the learning rate")
        return None

    def _round(self, round_index: int) -> RoundRecord:
        good = 0.8 * (1 - math.exp(-round_index / 4))
        clients = []
        for client_id in range(self.num_clients):
            lost = self._lost(client_id, round_index)
            clients.append(
                lost
                or ClientRecord(
                    client_id,
                    weight=1 / self.num_clients,
                    num_examples=100 + client_id,
                    num_steps=4,
                    signals=signals(client_id, round_index),
                    seconds={"train": 1.0 + 0.01 * client_id, "evaluate": 0.1},
                    bytes_up=300_000,
                    bytes_down=310_000,
                )
            )
        return RoundRecord(
            round_index,
            {"train": 2.5, "aggregate": 0.4, "evaluate": 0.2},
            scores(good - 0.05, 0.7 / round_index),
            scores(good - 0.08, 0.75 / round_index),
            scores(good, 0.7 / round_index),
            None,
            tuple(clients),
            {"teacher-score": good, "student-score": good - 0.01, "alpha-performance": 0.6, "own-score-client-1": good, HOSTILE: 1.0},
            (f"a note about {HOSTILE}",),
            tuple(good - 0.02 * i for i in range(len(LABELS))),
        )
