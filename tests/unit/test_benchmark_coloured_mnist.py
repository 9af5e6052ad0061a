"""The benchmark of coloured digits: the colouring's probabilities, the partition, selection, and the quick table."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.coloured_digits import coloured, load_digits, palette, partition
from benchmarks.coloured_mnist import METHODS, PROTOCOLS, TASKS, Setting, arguments, make_federation, measure, run, selected, stopped
from benchmarks.harness import main
from fedmap.errors import DataError

NUM = 20_000


def colours_of(inputs: np.ndarray, num_classes: int) -> np.ndarray:
    """Which colour of the palette each row wears, from its pixels alone."""
    colours = palette(num_classes)
    strength = inputs.reshape(len(inputs), colours.shape[1], -1).max(axis=2)
    return np.array([np.abs(colours - row).sum(axis=1).argmin() for row in strength])


@pytest.mark.parametrize(("num_classes", "p_colour", "noise"), [(2, 0.1, 0.25), (2, 0.9, 0.0), (10, 0.2, 0.0), (10, 0.9, 0.25)])
def test_colours_and_labels_are_replaced_as_often_as_stated(num_classes: int, p_colour: float, noise: float) -> None:
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 10, NUM)
    split = coloured(np.ones((NUM, 2, 2), np.float32), digits, np.arange(NUM), num_classes, p_colour, noise, rng)
    labels = split.labels.argmax(axis=1)
    np.testing.assert_array_equal(split.classes, digits if num_classes == 10 else digits >= 5)
    assert np.mean(labels != split.classes) == pytest.approx(noise, abs=0.01)
    assert np.mean(colours_of(split.inputs.numpy(), num_classes) != labels) == pytest.approx(p_colour, abs=0.01)


def test_wrong_colours_are_spread_over_all_other_classes() -> None:
    rng = np.random.default_rng(0)
    split = coloured(np.ones((NUM, 2, 2), np.float32), np.zeros(NUM, np.int64), np.arange(NUM), 10, 0.9, 0.0, rng)
    shares = np.bincount(colours_of(split.inputs.numpy(), 10), minlength=10) / NUM
    np.testing.assert_allclose(shares, 0.1, atol=0.01)


def test_two_digits_per_client_and_every_row_once() -> None:
    digits = np.repeat(np.arange(10), 40)
    parts = partition(digits, 10, True, np.random.default_rng(0))
    assert [len(np.unique(digits[part])) for part in parts] == [2] * 10
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))
    even = partition(digits, 10, False, np.random.default_rng(0))
    assert [len(part) for part in even] == [40] * 10
    assert sorted(np.concatenate(even).tolist()) == list(range(400))


def test_splits_of_a_federation_share_no_digit() -> None:
    digits = load_digits(None)
    federation = make_federation(TASKS[1], digits, seed=0)
    sizes = [len(split) for split in (*federation.train, *federation.validation.values())]
    assert sum(sizes) == len(digits.train_digits)
    training = [name for split in federation.train for name in split.row_ids]
    held_out = [name.rpartition("/")[2] for split in federation.validation.values() for name in split.row_ids]
    assert len({*training, *held_out}) == sum(sizes)


def test_open_masks_are_what_they_are_said_to_be() -> None:
    """GMA with tau 0 and eta 1 is FedAvg, and so is FedGMA without a server step, at any p."""
    federation = make_federation(TASKS[0], load_digits(None), seed=0)
    plain = run(Setting("fedavg", 0.4), TASKS[0], federation, 2, 0)
    np.testing.assert_array_equal(run(Setting("gma", 0.4, 1.0, 0.0), TASKS[0], federation, 2, 0), plain)
    np.testing.assert_array_equal(run(Setting("fedgma", 0.4, 0.0, 0.8), TASKS[0], federation, 2, 0), plain)
    assert not np.array_equal(run(Setting("gma", 0.4, 1.0, 1.0), TASKS[0], federation, 2, 0), plain)


def test_selection_never_looks_at_the_test_column() -> None:
    good, bad = Setting("fedavg", 0.1), Setting("fedavg", 0.2)
    runs = {
        good: [np.array([[2, 80.0, 10.0, 1.0], [4, 70.0, 20.0, 2.0]])],
        bad: [np.array([[2, 60.0, 15.0, 99.0], [4, 75.0, 5.0, 98.0]])],
    }
    by_own = selected([good, bad], runs, "in_distribution")
    assert (by_own.setting, by_own.rounds, by_own.test) == (good, [2], [1.0])
    by_flipped = selected([good, bad], runs, "flipped_colours")
    assert (by_flipped.setting, by_flipped.rounds, by_flipped.test, by_flipped.in_distribution) == (good, [4], [2.0], [70.0])
    assert stopped(bad, runs[bad], "flipped_colours").rounds == [2]


def test_quick_run_writes_every_method_and_protocol(tmp_path: Path) -> None:
    out = tmp_path / "coloured_mnist.json"
    assert main("coloured_mnist", measure, arguments=arguments, argv=["--quick", "--rounds", "1", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    names = [*METHODS, "fedgma_unmasked", "gma_unmasked"]
    assert set(document["figures"]) == {f"{task.name}.{p}.{name}" for task in TASKS[:2] for p in PROTOCOLS for name in names}
    assert all(0 <= value <= 100 for figure in document["figures"].values() for value in figure["values"])
    assert "scikit-learn" in document["settings"]["data"]
    assert len(document["targets"]) == 4


def test_files_that_are_not_mnist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_digits(tmp_path / "mnist.npz")
    with pytest.raises(DataError, match="expected exactly one .npz file"):
        load_digits(tmp_path)
    file = tmp_path / "mnist.npz"
    file.write_text("not an archive")
    with pytest.raises(DataError, match="not an .npz archive"):
        load_digits(file)
    np.savez(file, x_train=np.zeros((1, 28, 28), np.uint8))
    with pytest.raises(DataError, match="lacks y_train, x_test, y_test"):
        load_digits(file)
    arrays = {"x_train": np.zeros((5, 28, 28)), "y_train": np.zeros(5), "x_test": np.zeros((5, 28, 28)), "y_test": np.zeros(5)}
    np.savez(file, **arrays)
    with pytest.raises(DataError, match=r"expected x_train as uint8 \[n, 28, 28\]"):
        load_digits(file)
    np.savez(file, **{name: array.astype(np.uint8) for name, array in arrays.items()})
    with pytest.raises(DataError, match="at least 1,000 digits"):
        load_digits(tmp_path)


def test_one_learning_rate_for_all_and_a_choice_of_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "coloured_mnist.json"
    argv = ["--quick", "--rounds", "1", "--learning-rate", "0.1", "--only", "IID", "--out", str(out)]
    assert main("coloured_mnist", measure, arguments=arguments, argv=argv) == 0
    document = json.loads(out.read_text())
    assert list(document["tasks"]) == ["binary, IID"]
    assert {setting["learning_rate"] for setting in document["tasks"]["binary, IID"]["sweep"]} == {0.1}
    assert main("coloured_mnist", measure, arguments=arguments, argv=["--quick", "--only", "three", "--out", str(out)]) == 2
    assert "part of no task's name; the tasks are binary, IID; binary, two digits" in capsys.readouterr().out
