"""Whole runs of runtime=local on the digits: repeatable bits, effects of the keys, and clients that fail."""

import csv
import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmap.errors import FederationError, QuorumError
from fedmap.outputs import read_history
from tests.federations import DIGITS, Notes, model_bytes, run_locally, script

SHORT = ("dataset.num_clients=3", "num_rounds=2", "hooks.after_round=null")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_model_bit_for_bit(tmp_path: Path) -> None:
    federation = ("dataset.num_clients=5", "dataset.one_sensor=true", "num_rounds=2", "clients_per_round=4")
    histories = {workers: run_locally(tmp_path / str(workers), *federation, workers=workers) for workers in (0, 1, 2, 4)}
    for which in ("last", "best"):
        assert len({model_bytes(tmp_path / str(workers), which) for workers in histories}) == 1
    for history in histories.values():
        assert history.final == histories[0].final
        for left, right in zip(history.rounds, histories[0].rounds, strict=True):
            assert (left.validation, left.test, left.clients_validation) == (right.validation, right.test, right.clients_validation)
            assert [(c.client_id, c.weight, c.signals) for c in left.clients] == [(c.client_id, c.weight, c.signals) for c in right.clients]
    assert [len(r.clients) for r in histories[0].rounds] == [0, 4, 4]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    run_locally(folder, *SHORT)
    return folder


def test_a_run_leaves_what_it_promises(reference: Path) -> None:
    history = read_history(reference)
    assert history.status == "finished"
    assert [r.round_index for r in history.rounds] == [0, 1, 2]
    document = json.loads((reference / "results.json").read_text())
    assert document["status"] == "finished"
    assert len(list(csv.DictReader((reference / "clients.csv").read_text().splitlines()))) == 6
    for name in ("config.yaml", "versions.json", "results.csv", "report.md", "last/config.json", "best/model.safetensors"):
        assert (reference / name).stat().st_size > 0
    assert history.best is not None
    assert history.best.round_index == document["best_round"] == history.final.chosen_round  # type: ignore[union-attr]
    assert set(history.final.clients) == {0, 1, 2}  # type: ignore[union-attr]
    sent = 4 * sum(a.size for a in load_file(reference / "last" / "model.safetensors").values())
    for client in history.rounds[1].clients:
        assert sent < (client.bytes_up or 0) < sent + 5000
        assert sent < (client.bytes_down or 0) < sent + 5000
        assert client.signals.modality_shares == {"upper": 1.0, "lower": 1.0}
    assert sum(client.weight or 0 for client in history.rounds[1].clients) == pytest.approx(1)


def test_the_same_again_is_the_same_and_learning_helps(reference: Path, tmp_path: Path) -> None:
    better = run_locally(tmp_path / "again", *SHORT)
    assert model_bytes(tmp_path / "again") == model_bytes(reference)
    assert better.rounds[2].validation.loss < better.rounds[0].validation.loss  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("override", ["random_seed=43", "learning_rate=0.005", "batch_size=16", "num_epochs=2"])
def test_a_key_of_training_has_its_effect(reference: Path, tmp_path: Path, override: str) -> None:
    history, before = run_locally(tmp_path / "run", *SHORT, override, "dataset.seed=42"), read_history(reference)
    assert model_bytes(tmp_path / "run") != model_bytes(reference)
    steps = [[c.num_steps for c in h.rounds[1].clients] for h in (history, before)]
    rows = [c.num_examples for c in before.rounds[1].clients]
    assert [c.num_examples for c in history.rounds[1].clients] == rows, "the same data"
    expected = {"batch_size=16": [-(-n // 16) - (n % 16 == 1) for n in rows], "num_epochs=2": [2 * n for n in steps[1]]}  # type: ignore[operator]
    assert steps[0] == expected.get(override, steps[1])
    start = [h.rounds[0].validation.loss for h in (history, before)]  # type: ignore[union-attr]
    assert (abs(start[0] - start[1]) > 1e-5) == (override == "random_seed=43"), "the seed alone draws another initial model"


def test_rounds_and_clients_per_round_have_their_effect(reference: Path, tmp_path: Path) -> None:
    history = run_locally(tmp_path / "run", *SHORT, "num_rounds=4", "clients_per_round=1")
    asked = [[c.client_id for c in r.clients] for r in history.rounds[1:]]
    assert [len(clients) for clients in asked] == [1, 1, 1, 1]
    assert len({clients[0] for clients in asked}) > 1, "another client has its turn"
    assert len(read_history(reference).rounds) == 3


def test_the_share_of_validation_has_its_effect(tmp_path: Path) -> None:
    """dataset.validation_split belongs to the movies: their rows, pooled from train.csv and val.csv, are cut by it."""
    from fedmap.build import build_data
    from fedmap.config import compose_and_resolve, parse

    command = script(
        "data_preparation.py", "source=synthetic", f"root={tmp_path}", "num_movies=120", "clients=2", "policy=iid", "plot=false"
    )
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    sizes = {}
    for share in (0.0, 0.1, 0.5):
        tree = compose_and_resolve(
            "config", [f"dataset.root={tmp_path}", "model=tiny", "dataset.image_size=16", f"dataset.validation_split={share}"]
        )
        splits = build_data(parse(tree)).client(0)
        sizes[share] = (len(splits["train"]), len(splits["val"]), len(splits["test"]))
    rows = sizes[0.0][0] + sizes[0.0][1]
    assert sizes[0.1][:2] == (rows - round(0.1 * rows), round(0.1 * rows))
    assert sizes[0.5][:2] == (rows - round(0.5 * rows), round(0.5 * rows))
    assert len({test for *_, test in sizes.values()}) == 1


HOOKS = """
import os, signal
from examples.digits.data import DigitData
from fedmap.errors import DataError

class BrokenForClient1(DigitData):
    def client(self, client_id):
        if client_id == 1:
            raise DataError("client_1/train.csv, row 7: unknown label 'Dramma'")
        return super().client(client_id)

def kill_client_1_in_round_1(update):
    if (update.client_id, update.round_index) == (1, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return update

def refuse_client_2(update):
    if update.client_id == 2:
        raise RuntimeError("the sensor is broken")
    return update

def fail_after_round_1(update):
    if update.round_index > 1:
        raise RuntimeError("the sensor is broken")
    return update

def poison_client_0(update):
    if update.client_id == 0:
        for array in update.weights.values():
            array[...] = float("nan")
    return update

def pretend_to_be_client_1(update):
    from dataclasses import replace
    return replace(update, client_id=1)
"""


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"hooks_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(tmp_path)
    return f"hooks.after_round={name}"


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_one_client_one_round(tmp_path: Path, hooks: str) -> None:
    notes = Notes()
    history = run_locally(tmp_path / "run", *SHORT[:2], f"{hooks}.kill_client_1_in_round_1", workers=2, progress=notes)
    assert history.status == "finished"
    first, second = history.rounds[1:]
    assert [(c.client_id, c.status) for c in first.clients] == [(0, "ok"), (1, "failed"), (2, "ok")]
    assert first.clients[1].reason.startswith("the worker process was killed (by the system, if it took more memory than there is: ")
    assert first.clients[1].reason.endswith("while it answered")
    assert sum(c.weight or 0 for c in first.clients) == pytest.approx(1)
    assert [(c.client_id, c.status) for c in second.clients] == [(0, "ok"), (1, "ok"), (2, "ok")]
    assert set(history.final.clients) == {0, 1, 2}  # type: ignore[union-attr]
    assert any(said.startswith("client 1 is left out of round 1: the worker process was killed") for said in notes.said)


def test_a_client_that_fails_says_why_and_the_others_go_on(tmp_path: Path, hooks: str) -> None:
    notes = Notes()
    history = run_locally(tmp_path / "run", *SHORT[:2], f"{hooks}.refuse_client_2", progress=notes)
    assert history.status == "finished"
    for record in history.rounds[1:]:
        assert [(c.client_id, c.status) for c in record.clients] == [(0, "ok"), (1, "ok"), (2, "failed")]
        assert record.clients[2].reason == "RuntimeError: the sensor is broken"
    assert "client 2 is left out of round 1: RuntimeError: the sensor is broken" in notes.said


def test_an_update_that_is_not_finite_is_left_out(tmp_path: Path, hooks: str) -> None:
    history = run_locally(tmp_path / "run", *SHORT[:2], f"{hooks}.poison_client_0")
    for record in history.rounds[1:]:
        assert [(c.client_id, c.status) for c in record.clients] == [(0, "rejected"), (1, "ok"), (2, "ok")]
        assert "client 0: upper.weight holds NaN" in record.clients[0].reason or "holds NaN" in record.clients[0].reason
    model = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert all(np.isfinite(array).all() for array in model.values())


def test_an_update_in_another_clients_name_is_left_out(tmp_path: Path, hooks: str) -> None:
    history = run_locally(tmp_path / "run", *SHORT[:2], f"{hooks}.pretend_to_be_client_1", "runtime.quorum=0.3")
    assert [(c.client_id, c.status) for c in history.rounds[1].clients] == [(0, "rejected"), (1, "ok"), (2, "rejected")]
    assert history.rounds[1].clients[0].reason == "the node of client 0 answered as client 1"
    assert history.rounds[1].clients[1].weight == 1.0


def test_when_all_fail_the_run_ends_and_keeps_the_old_model(tmp_path: Path, hooks: str) -> None:
    notes = Notes()
    run_locally(tmp_path / "one", *SHORT[:1], "num_rounds=1")
    overrides = (*SHORT[:1], "num_rounds=9", "runtime.max_failed_rounds=2", f"{hooks}.fail_after_round_1")
    with pytest.raises(QuorumError, match="2 rounds in a row had fewer answers than the quorum; the model of round 1 is kept in"):
        run_locally(tmp_path / "run", *overrides, progress=notes)
    history = read_history(tmp_path / "run")
    assert history.status == "failed"
    assert history.reason.startswith("2 rounds in a row")
    assert [r.round_index for r in history.rounds] == [0, 1, 2, 3]
    assert all(c.status == "failed" for r in history.rounds[2:] for c in r.clients)
    assert history.rounds[3].notes == ("round 3: 0 of 3 clients gave usable answers, 2 are needed; the model is kept",)
    assert history.rounds[3].validation == history.rounds[1].validation
    for which in ("last", "best"):
        assert model_bytes(tmp_path / "run", which) == model_bytes(tmp_path / "one", which)


def test_a_client_whose_data_cannot_be_read_says_why_and_is_not_waited_for(tmp_path: Path, hooks: str) -> None:
    notes = Notes()
    broken = f"dataset._target_={hooks.partition('=')[2]}.BrokenForClient1"
    started = time.monotonic()
    history = run_locally(tmp_path / "run", *SHORT, broken, progress=notes)
    assert time.monotonic() - started < 60, "runtime.wait_seconds is 600"
    assert history.status == "finished"
    assert [c.client_id for c in history.rounds[1].clients] == [0, 2]
    assert "a client cannot take part: DataError: client_1/train.csv, row 7: unknown label 'Dramma'" in notes.said
    assert "going on with 2 of 3 clients: the others did not join" in notes.said
    with pytest.raises(QuorumError, match=r"(?s)2 of 3 clients joined, at least 3 are needed.*  - DataError: client_1/train.csv, row 7"):
        run_locally(tmp_path / "strict", *SHORT, broken, "runtime.quorum=1")


def test_more_clients_than_partitions(tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match="num_clients=4, but there are 3 client partitions"):
        run_locally(tmp_path / "more", "dataset.num_clients=3", "num_clients=4")


def test_without_a_partition_there_is_no_run(tmp_path: Path) -> None:
    overrides = ["runtime=local", "model=tiny", f"dataset.root={tmp_path}", "tracking=none", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(script("server_main.py", *overrides), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert str(tmp_path) in done.stderr
    assert "data_preparation.py" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_script_ends_with_an_exit_code_and_says_why(tmp_path: Path, hooks: str) -> None:
    common = ["runtime=local", *DIGITS, *SHORT[:1], "num_rounds=3", f"hydra.run.dir={tmp_path / 'run'}"]
    command = script("server_main.py", *common, f"{hooks}.fail_after_round_1", "runtime.max_failed_rounds=1", "runtime.workers=2")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 1
    assert "error: 1 rounds in a row had fewer answers than the quorum" in done.stderr
    assert "client 0 is left out of round 2: RuntimeError: the sensor is broken" in done.stdout
    assert "Traceback" not in done.stdout
    assert read_history(tmp_path / "run").status == "failed"


def test_more_labels_than_the_data_has(tmp_path: Path) -> None:
    with pytest.raises(
        FederationError, match=r"model.output_size=3, but the data has 10 labels \(0, 1, 2, 3, ...\); set model.output_size=10 or null"
    ):
        run_locally(tmp_path / "run", *SHORT, "model.output_size=3")
