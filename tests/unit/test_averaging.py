"""The averaging kernel: both implementations against a float64 reference, whatever the threads, the shapes and the order."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fedmap import averaging
from fedmap.averaging import all_finite, fold, set_threads, squares

SHAPES = [(3,), (300, 401), (), (0,), (7, 5, 3), (1 << 17,), (64,), (1, 1), (41, 1000)]
SHARES = [0.1, 0.3, 0.25, 0.05, 0.3, -0.5, 1e-9, 0.0, 2.0]


def models_of(clients, shapes=SHAPES, dtype=np.float32):
    rng = np.random.default_rng(clients)
    return [[np.asarray(rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 4), dtype=dtype) for shape in shapes] for _ in range(clients)]


def reference(models, coefficients):
    """Plain NumPy: each product and each sum rounded to float64, in order."""
    totals = []
    for tensors in zip(*models, strict=True):
        total = tensors[0].astype(np.float64) * coefficients[0]
        for tensor, a in zip(tensors[1:], coefficients[1:], strict=True):
            total = total + tensor.astype(np.float64) * a
        totals.append(np.asarray(total))
    return totals


def same_bits(left, right):
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


@pytest.fixture(autouse=True)
def _threads_as_before():
    yield
    set_threads(1)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("clients", [1, 2, 3, 4, 5, 8, 9])
def test_every_bit_is_the_references_whatever_the_threads(clients, compiled):
    models, shares = models_of(clients), SHARES[:clients]
    expected = reference(models, shares)
    for threads in (1, 2, 3):
        set_threads(threads)
        assert same_bits(fold(models, shares, compiled=compiled), [np.asarray(e.astype(np.float32)) for e in expected])
        assert same_bits(fold(models, shares, dtype=np.float64, compiled=compiled), expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_more_shares_of_work_than_threads(compiled, monkeypatch):
    monkeypatch.setattr(averaging, "_SHARE", 1000)
    monkeypatch.setattr(averaging, "_BLOCK", 1000)
    models = models_of(5)
    expected = [np.asarray(e.astype(np.float32)) for e in reference(models, SHARES[:5])]
    set_threads(3)
    assert same_bits(fold(models, SHARES[:5], compiled=compiled), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_dtypes(dtype):
    models = models_of(3, [(5, 7), (11,)], dtype)
    with np.errstate(over="ignore"):
        expected = [e.astype(dtype) for e in reference(models, SHARES[:3])]
        assert same_bits(fold(models, SHARES[:3]), expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_views_of_bytes_and_other_layouts(compiled):
    """What arrives from the wire may be read-only, transposed, or begin in the middle of a word."""
    models = models_of(3, [(40, 30)])
    expected = reference(models, SHARES[:3])[0].astype(np.float32)
    octets = b"x" + models[1][0].tobytes()
    odd = np.frombuffer(octets, dtype=np.float32, offset=1).reshape(40, 30)
    turned = np.asfortranarray(models[2][0])
    locked = np.frombuffer(models[0][0].tobytes(), dtype=np.float32).reshape(40, 30)
    assert not odd.flags.aligned
    assert not locked.flags.writeable
    assert same_bits(fold([[locked], [odd], [turned]], SHARES[:3], compiled=compiled), [expected])


def test_the_result_is_one_buffer_and_no_input():
    models = models_of(2)
    result = fold(models, [0.5, 0.5])
    assert len({id(array.base) for array in result}) == 1
    assert not any(np.shares_memory(array, tensor) for array in result for model in models for tensor in model)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"model 1 has a tensor of shape \(2, 3\) where the first one has \(3, 2\)"):
        fold([[np.zeros((3, 2), np.float32)], [np.zeros((2, 3), np.float32)]], [0.5, 0.5])
    with pytest.raises(ValueError, match="threads=0"):
        set_threads(0)


def test_nan_and_infinity_are_not_hidden():
    models = [[np.array([np.nan, np.inf, 1.0], np.float32)], [np.ones(3, np.float32)]]
    for compiled in (False, True):
        with np.errstate(invalid="ignore"):
            assert np.isfinite(fold(models, [0.5, 0.5], compiled=compiled)[0]).tolist() == [False, False, True]


def test_the_compiler_is_loaded_where_it_pays(monkeypatch):
    monkeypatch.delitem(sys.modules, "fedmap.compiled", raising=False)
    assert averaging.prepare(1000) is None
    fold(models_of(2), SHARES[:2])
    assert "fedmap.compiled" not in sys.modules
    thread = averaging.prepare(1 << 22)
    assert thread is not None
    thread.join()
    assert "fedmap.compiled" in sys.modules
    assert averaging.prepare(1 << 22) is None


def test_squares_are_summed_in_blocks():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 700, 500)).astype(np.float32)
    wide = left.astype(np.float64) - right.astype(np.float64)
    assert squares(left, right) == pytest.approx(float((wide**2).sum()), rel=1e-14)
    assert squares(left) == pytest.approx(float((left.astype(np.float64) ** 2).sum()), rel=1e-14)
    assert squares(np.zeros(0, np.float32)) == 0.0


@pytest.mark.parametrize(
    ("values", "finite"), [([1, 2], True), ([3e38, 3e38], True), ([np.inf, -np.inf], False), ([np.nan], False), ([], True)]
)
def test_finite_numbers_are_told_from_others(values, finite):
    """A sum that overflows without infinity in it is no reason to refuse."""
    assert all_finite(np.array(values, np.float32)) is finite
