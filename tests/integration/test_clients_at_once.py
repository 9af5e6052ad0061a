"""Runs whose clients train together: the same results within rounding, whatever the workers, and a client's failure is its own."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from safetensors.numpy import load_file

from fedmap.errors import ConfigError
from fedmap.flower.local_grid import LocalGrid, _bunches
from fedmap.history import RunHistory
from tests.federations import model_bytes, run_locally

SHORT = ("dataset.num_clients=5", "num_rounds=2", "strategy=fedprox")
THREE = "runtime.clients_at_once=3"
HOOKS = """
import os
from examples.digits.data import DigitData
from fedmap.errors import DataError

class BrokenForClient2(DigitData):
    def client(self, client_id):
        splits = super().client(client_id)
        if client_id == 2:
            def batch(rows):
                raise DataError(f"row {splits['train'].row_ids[rows[0]]} cannot be read")
            splits["train"].batch = batch
        return splits

def refuse_client_2(update):
    if update.client_id == 2:
        raise RuntimeError("the sensor is broken")
    return update

def kill_client_1_in_round_1(update):
    if update.client_id == 1 and update.round_index == 1:
        os.kill(os.getpid(), 9)
    return update
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"hooks_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(tmp_path)
    return f"hooks.after_round={name}"


def test_bunches_follow_from_the_order_alone_and_are_about_equally_long() -> None:
    LocalGrid({}, 0)  # names the run and the node that Flower's messages ask for
    content, other = RecordDict(), RecordDict()
    messages = [Message(content, node, "train") for node in range(7)] + [Message(other, node, "train") for node in range(7, 9)]
    found = [[message.metadata.dst_node_id for message in bunch] for bunch in _bunches(messages, 3)]
    assert found == [[0, 1], [2, 3], [4, 5, 6], [7, 8]], "only what has one content goes together"
    asked = [Message(content, node, "query") for node in range(3)]
    assert [len(bunch) for bunch in _bunches(asked, 3)] == [1, 1, 1], "only training is done together"
    assert [len(bunch) for bunch in _bunches(messages, 1)] == [1] * 9


def statuses(history: RunHistory, round_index: int) -> list[tuple[int, str]]:
    return [(client.client_id, client.status) for client in history.rounds[round_index].clients]


def test_a_run_is_the_same_run_within_rounding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone = run_locally(tmp_path / "alone", *SHORT)
    together = run_locally(tmp_path / "together", *SHORT, THREE)
    assert "one after another" not in caplog.text
    for left, right in zip(alone.rounds, together.rounds, strict=True):
        assert [(c.client_id, c.num_steps, c.num_examples) for c in left.clients] == [
            (c.client_id, c.num_steps, c.num_examples) for c in right.clients
        ]
        for one, other in zip(left.clients, right.clients, strict=True):
            assert other.signals.train_loss == pytest.approx(one.signals.train_loss, abs=1e-4)
            assert other.signals.gradient_norm == pytest.approx(one.signals.gradient_norm, abs=1e-3)
            assert other.bytes_up == one.bytes_up
    found, expected = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("together", "alone"))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-3, err_msg=name)
    assert model_bytes(tmp_path / "together") != model_bytes(tmp_path / "alone"), "they did train together"


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_model_bit_for_bit(tmp_path: Path) -> None:
    for workers in (0, 2):
        run_locally(tmp_path / str(workers), *SHORT, THREE, "clients_per_round=4", workers=workers)
    assert model_bytes(tmp_path / "0") == model_bytes(tmp_path / "2")


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_one_client_one_round(tmp_path: Path, hooks: str) -> None:
    """Nobody knows which of the clients it was: they are asked again, one by one."""
    history = run_locally(tmp_path / "run", *SHORT, THREE, f"{hooks}.kill_client_1_in_round_1", workers=2)
    assert statuses(history, 1) == [(0, "ok"), (1, "failed"), (2, "ok"), (3, "ok"), (4, "ok")]
    assert statuses(history, 2) == [(client, "ok") for client in range(5)]


def test_a_client_that_fails_after_training_takes_nobody_with_it(tmp_path: Path, hooks: str) -> None:
    history = run_locally(tmp_path / "run", *SHORT, THREE, f"{hooks}.refuse_client_2")
    assert statuses(history, 1) == [(0, "ok"), (1, "ok"), (2, "failed"), (3, "ok"), (4, "ok")]
    assert history.rounds[1].clients[2].reason == "RuntimeError: the sensor is broken"


def test_a_client_that_cannot_train_takes_nobody_with_it(tmp_path: Path, hooks: str, caplog: pytest.LogCaptureFixture) -> None:
    target = f"dataset._target_={hooks.partition('=')[2]}.BrokenForClient2"
    history = run_locally(tmp_path / "run", *SHORT, THREE, target)
    assert statuses(history, 1) == [(0, "ok"), (1, "ok"), (2, "failed"), (3, "ok"), (4, "ok")]
    assert "3 clients train one after another and not together: row digit-" in caplog.text


def test_what_cannot_be_done_together_is_said_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="by the rule 'control-variate', and only plain and proximal can be stacked"):
        run_locally(tmp_path / "run", "dataset.num_clients=2", "strategy=scaffold", THREE)
    with pytest.raises(ConfigError, match="clients_at_once=3 and privacy=client do not go together"):
        run_locally(tmp_path / "run", "dataset.num_clients=2", "privacy=client", "privacy.noise_multiplier=1", THREE)
    with pytest.raises(ConfigError, match="clients_at_once=0: expected an integer of at least 1"):
        run_locally(tmp_path / "run", "dataset.num_clients=2", "runtime.clients_at_once=0")
