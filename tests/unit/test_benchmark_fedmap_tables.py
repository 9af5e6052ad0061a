import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fedmap_tables
from benchmarks.fedmap_experiment import METHODS, draw
from benchmarks.fedmap_synthetic import CLIENTS, FEATURES, Generator, federation, sample, sizes
from benchmarks.harness import main


def test_rows_and_given_proportions_are_the_papers() -> None:
    assert [sizes("quantity", k)[0] for k in range(1, CLIENTS + 1)] == [2000] * 5 + [500] * 5
    clients = federation("label", 0, Generator(test_rows=100))
    for k, splits in enumerate(clients, start=1):
        given = np.concatenate([splits["train"].labels, splits["val"].labels])
        assert (len(splits["train"]), len(splits["val"])) == (1400, 600)
        assert (given == 0).mean() == (0.85 if k > 5 else 0.5)
        assert splits["test"].labels.mean() == 0.5


def test_the_classes_are_a_ball_and_a_shell_in_the_subspace_and_alike_outside() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((FEATURES, 4)))[0]
    rows, given = sample(rng, basis, 20000, 0.5, 0.0)
    inner = rows @ basis
    outer = rows - inner @ basis.T
    assert np.var(inner[given == 0], axis=0) == pytest.approx([2.0] * 4, rel=0.06)
    radius = np.linalg.norm(inner[given == 1], axis=1)
    assert (radius.mean(), radius.var()) == (pytest.approx(8.0, abs=0.06), pytest.approx(2.0, rel=0.06))
    for label in (0, 1):
        assert (outer[given == label] ** 2).sum(axis=1).mean() == pytest.approx(2.0 * 26, rel=0.02)


def test_class_noise_swaps_features_and_leaves_the_given_labels() -> None:
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((FEATURES, 4)))[0]
    rows, given = sample(rng, basis, 10000, 0.85, 0.2)
    assert (given == 0).sum() == 8500
    far = np.linalg.norm(rows @ basis, axis=1) > 5.4
    assert far[given == 0].mean() == pytest.approx(0.2, abs=0.03)
    assert far[given == 1].mean() == pytest.approx(0.8, abs=0.05)


def test_data_depend_on_the_seed_and_the_scenario_alone() -> None:
    settings = Generator(test_rows=20)
    first, again, other = (federation("feature", seed, settings)[3]["train"].features for seed in (5, 5, 6))
    assert first.equal(again)
    assert not first.equal(other)


def test_without_maps_and_shifts_the_clients_share_one_distribution() -> None:
    alike = federation("feature", 0, Generator(map_scale=0.0, shift_scale=0.0, class_noise=0.0, test_rows=20))
    norms = [float(splits["train"].features.square().sum(dim=1).mean()) for splits in alike]
    assert norms == pytest.approx([0.5 * 60 + 0.5 * (66 + 52)] * CLIENTS, rel=0.03)


def test_every_method_draws_settings_that_its_aggregator_accepts() -> None:
    for method, aggregator in METHODS.items():
        rng = np.random.default_rng(3)
        for _ in range(40):
            aggregator(**draw(method, rng).aggregator)


def test_the_quick_benchmark_writes_what_it_says(tmp_path: Path) -> None:
    out = tmp_path / "tables.json"
    arguments = ["--quick", "--out", str(out)]
    assert main("fedmap_tables", fedmap_tables.measure, argv=arguments, arguments=fedmap_tables._arguments) == 0
    content = json.loads(out.read_text())
    assert list(content["scenarios"]) == ["label", "feature", "quantity"]
    for methods in content["scenarios"].values():
        assert set(methods) == {"individual", "fedmap", "fedbn", "fedprox", "fedavg"}
        for figures in methods.values():
            assert len(figures["clients"]) == CLIENTS
            assert figures["mean"] == pytest.approx(np.mean(figures["clients"]))
            assert 30 < figures["mean"] < 100
    assert len(content["targets"]) == 12
