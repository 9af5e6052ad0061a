"""A whole run with hostile clients: what they sent is not used, and every place where a reason is shown says which."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmap.flower.events import EventProgress
from fedmap.outputs import read_history
from fedmap.service.metrics import _newest as families
from fedmap.service.results import _newest
from tests.federations import model_bytes, run_locally

HOOK = """
from dataclasses import replace
import numpy as np

KEPT = {}

def attack(update):
    if update.client_id == 0:
        return replace(update, weights={n: np.full_like(a, np.nan) for n, a in update.weights.items()})
    if update.client_id == 1:
        return replace(update, weights={n: (50 * a).astype(a.dtype) for n, a in update.weights.items()})
    if update.client_id == 2:
        return replace(update, signals=replace(update.signals, f1_after=7.0))
    if update.client_id == 3:
        return replace(update, weights=KEPT.setdefault(3, update.weights))
    if update.client_id == 4 and update.round_index == 2:
        return replace(update, num_examples=10 * update.num_examples)
    return update

def replay_only(update):
    if update.client_id == 3 and update.round_index > 1:
        return replace(update, weights=dict(np.load(PATH)))
    if update.client_id == 3:
        np.savez(PATH, **update.weights)
    return update
"""
SIX = ("strategy=fedavg", "dataset.num_clients=6", "num_rounds=2", "runtime.quorum=0.3")


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"hostile_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(HOOK + f"\nPATH = {str(tmp_path / 'kept.npz')!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return f"hooks.after_round={name}"


def test_every_reason_is_said_everywhere(tmp_path: Path, hook: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run_locally(folder, *SIX, f"{hook}.attack", progress=EventProgress(folder / "events.jsonl"))
    history = read_history(folder)
    codes = [{c.client_id: (c.status, c.code, tuple(c.remarks)) for c in record.clients} for record in history.rounds[1:]]
    ok = ("ok", "", ())
    assert codes[0] == {0: ("rejected", "finite", ()), 1: ("ok", "", ("norm",)), 2: ("ok", "", ("signal",)), 3: ok, 4: ok, 5: ok}
    assert codes[1][3] == ("rejected", "replay", ())
    assert codes[1][4] == ("rejected", "examples", ())
    for record in history.rounds[1:]:
        assert all(client.bytes_up and client.bytes_down for client in record.clients), "refused updates have travelled, too"
        assert sum(client.weight or 0 for client in record.clients) == pytest.approx(1)
    assert history.rounds[2].clients[3].num_examples, "what it said is written down"

    rows = list(csv.DictReader((folder / "clients.csv").read_text().splitlines()))
    assert {row["code"] for row in rows} == {"", "finite", "replay", "examples"}
    assert rows[1]["remarks"].startswith("norm: client 1: its change is ")
    report = (folder / "report.md").read_text()
    assert "- round 2: client 3 rejected (replay): client 3: its model is bit for bit its own of round 1" in report
    assert "round 1: client 2 (signal): f1_after=7 is outside [0, 1]" in report
    assert "rejected (examples)" in (folder / "report.html").read_text()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert {(e["client_id"], e["code"]) for e in events if e["event"] == "lost"} == {(0, "finite"), (3, "replay"), (4, "examples")}
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert any(note.startswith("client 3 is left out of round 2 (replay): ") for note in notes)
    assert any(note.startswith("client 1 in round 1 (norm): client 1: its change is ") for note in notes)
    counted = _newest(json.loads((folder / "results.json").read_text())["rounds"])
    assert counted["rejected"] == {"finite": 2, "replay": 1, "examples": 1}
    assert counted["marked"] == {"norm": 2, "signal": 2}
    samples = {(s.name, s.labels.get("reason")): s.value for family in families(counted) for s in family.samples}
    assert samples["fedmap_updates_rejected_total", "finite"] == 2
    assert samples["fedmap_updates_marked_total", "norm"] == 2

    model = load_file(folder / "last" / "model.safetensors")
    assert all(np.isfinite(array).all() for array in model.values())


def test_a_replay_is_known_after_a_resume_and_the_run_goes_on_bit_for_bit(tmp_path: Path, hook: str) -> None:
    straight = run_locally(tmp_path / "straight", *SIX, f"{hook}.replay_only")
    run_locally(tmp_path / "resumed", *SIX, f"{hook}.replay_only", "num_rounds=1")
    resumed = run_locally(tmp_path / "resumed", *SIX, f"{hook}.replay_only", "num_rounds=2")
    for history in (straight, resumed):
        assert [(c.client_id, c.code) for c in history.rounds[2].clients if c.status != "ok"] == [(3, "replay")]
    assert model_bytes(tmp_path / "straight") == model_bytes(tmp_path / "resumed")
