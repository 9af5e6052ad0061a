"""The scale benchmark: its ground is the same whoever asks, and its figures are what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.scale import _ratios, _targets, job_of, steady
from benchmarks.scale_clock import Job
from benchmarks.scale_ground import SHAPES, Classifier, ManyClients
from benchmarks.scale_movies import ManyMovies, write_features
from benchmarks.scale_ours import HEADS, tree_of
from fedmap.build import build_data, build_model, prepare_split
from fedmap.config import parse
from fedmap.data.base import Split
from fedmap.errors import DataError
from fedmap.local.tensors import shared_tensors


@pytest.mark.parametrize("task", sorted(SHAPES))
def test_a_clients_rows_do_not_depend_on_how_many_there_are(task: str) -> None:
    few, many = (ManyClients(task, count, validation_rows=4, seed=3) for count in (5, 50))
    for name, split in few.client(4).items():
        other = many.client(4)[name]
        assert isinstance(split, Split)
        assert torch.equal(split.x, other.x)
        assert torch.equal(split.y, other.y)
        assert (split.labels.argmax(1) == split.y.numpy()).all()
    assert [len(few.client(4)[name]) for name in ("train", "val", "test")] == [40, 4, 4]
    assert not torch.equal(few.client(3)["train"].x, few.client(4)["train"].x)
    assert len(few.server()["val"]) == len(few.server()["test"]) == 1000


@pytest.mark.parametrize(("task", "size"), [("mlp", 4810), ("cnn", 9802)])
def test_the_configuration_names_the_same_model_and_data(task: str, size: int) -> None:
    config = parse(tree_of(job_of("fedmap-inside", task, 7, 2, seed=1)))
    data = build_data(config)
    model = build_model(config, data)
    assert isinstance(model, Classifier)
    assert sum(p.numel() for p in model.parameters()) == size
    assert list(data.client_ids()) == list(range(7))
    assert (config.runtime.workers, config.num_rounds, config.batch_size, config.training.optimizer) == (0, 2, 10, "sgd")
    batch = data.client(0)["train"].batch(np.arange(3))
    assert model(batch).shape == (3, 10)
    assert torch.equal(model(batch), model(batch["x"])), "the peers give the inputs alone"


def _found(system: str, milliseconds: float, clients: int = 10) -> dict[str, object]:
    step = milliseconds * clients / 1e3
    marks = [0.0, 5.0, 5.0 + step, 5.0 + 2 * step]
    job = {"system": system, "task": "mlp", "clients": clients, "seed": 0}
    return {"job": job, "wall": marks, "processor": marks, "memory": [1.0] * 4, "private": [1.0] * 4, "accuracy": [0.5] * 4}


def test_figures_are_per_client_and_leave_the_first_round_out() -> None:
    assert steady(_found("ray", 3.0), "wall") == pytest.approx([3.0, 3.0])


def test_targets_are_ratios_of_pairs() -> None:
    runs = {("mlp", system): [_found(system, ms)] for system, ms in (("fedmap", 2.0), ("fedmap-inside", 3.0), ("ray", 12.0))}
    growth = {"fedmap-inside": [_found("fedmap-inside", 4.0, 10), _found("fedmap-inside", 2.0, 100), _found("fedmap-inside", 2.2, 500)]}
    assert [target.value for target in _targets(runs, growth)] == pytest.approx([6.0, 4.0, 1.1])
    together = runs | {("mlp", "fedmap-together"): [_found("fedmap-together", 1.0)]}
    assert [target.value for target in _targets(together, growth)] == pytest.approx([12.0, 4.0, 1.1])
    assert [row[2:] for row in _ratios(together).rows] == [
        ("fedmap", pytest.approx(6.0), pytest.approx(6.0)),
        ("fedmap-inside", pytest.approx(4.0), pytest.approx(4.0)),
        ("fedmap-together", pytest.approx(12.0), pytest.approx(12.0)),
    ]
    larger = {size: _found("fedmap-inside", 2.0, size) for size in (100, 1000, 2000)}
    larger[2000]["private"] = [1.0, 101.0]
    assert _targets(runs, {"fedmap-inside": list(larger.values())})[-1].value == pytest.approx(100 - 10.96 - 19.24)


def test_the_head_has_many_clients_with_movies_each(tmp_path: Path) -> None:
    features = write_features(tmp_path, 60, ["runtime=local", *HEADS["tiny-head"]])
    config = parse(tree_of(Job("fedmap-inside", "tiny-head", 30, 2, rows=12, workers=0, features=str(features))))
    data = build_data(config)
    model = build_model(config, data)
    assert not any("tower" in name for name, _ in shared_tensors(model))
    one, again, other = (data.client(client_id)["train"] for client_id in (3, 3, 4))
    assert isinstance(one, Split)
    assert (len(one), one.row_ids, len(data.client(3)["val"])) == (12, again.row_ids, 0)
    assert one.row_ids != other.row_ids
    server = {name for split in data.server().values() for name in split.row_ids}
    assert not server & {*one.row_ids, *other.row_ids}
    batch = prepare_split(model, one, tmp_path).batch(np.array([5, 0]))
    assert model(batch).shape == (2, len(data.label_names))
    assert np.array_equal(batch["labels"].numpy(), one.labels[[5, 0]])
    with pytest.raises(DataError, match="rows=1000"):
        ManyMovies(str(features), 3, rows=1000)


def test_a_job_knows_its_workers() -> None:
    assert job_of("fedmap", "mlp", 5, 2, 0).workers == 2
    assert job_of("fedmap-inside", "mlp", 5, 2, 0).workers == 0
    assert (together := job_of("fedmap-together", "mlp", 5, 2, 0)).at_once == 32
    assert parse(tree_of(together)).runtime.clients_at_once == 32
    assert isinstance(job_of("ray", "cnn", 5, 2, 0), Job)
