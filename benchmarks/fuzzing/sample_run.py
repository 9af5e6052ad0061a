"""A small run's folder with results, events and configuration, as a run leaves them; nothing is trained for it."""

from __future__ import annotations

import json
from pathlib import Path

from fedmap.config import compose_and_resolve
from fedmap.files import write_json
from fedmap.flower.events import EventProgress
from fedmap.history import ClientRecord, FinalResults, LabelResult, RoundRecord, Scores
from fedmap.outputs import RunFolder
from fedmap.records import ClientSignals

LABELS = ("Drama", "Comedy", "War")


def make_run(folder: Path) -> Path:
    """Write the folder and return it."""
    events = EventProgress(folder / "events.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder)
    run.start(compose_and_resolve("config", ["model=tiny", "tracking=none", "strategy=fedavg"]), LABELS, run_id="run-1a2b")
    events.opened(2, {"strategy": "fedavg", "model": "tiny", "dataset": "mm_imdb"})
    events.waiting([0, 1], 2)
    events.start(2)
    final = None
    for index in range(3):
        scores = Scores(0.5, 0.3 + 0.1 * index, 0.45, 0.5, 20, 0.7)
        clients = (ClientRecord(0, weight=1.0, num_examples=17, signals=ClientSignals(f1_after=0.4), bytes_up=1000, bytes_down=1000),)
        events.clients(index, [0, 1])
        events.note("client 1 is slow")
        record = RoundRecord(index, {"train": 1.5}, scores, scores, scores, scores, clients, {"kept": 0.5}, ("a note",), (0.1, 0.2, 0.3))
        run.add_round(record)
        events.round_done(record)
        final = FinalResults(
            2, scores, scores, scores, dict.fromkeys(LABELS, 0.4), (LabelResult("War", 3, 0.5, 0.5, 0.5, 0.4),), {0: scores}
        )
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    write_json(folder / "results.json", {**results, "status": "finished", "final": final})
    events.emit("finished")
    return folder
