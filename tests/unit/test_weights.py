"""Arithmetic on named arrays: figures by hand, kinds of arrays, refusals."""

import numpy as np
import pytest

from fedmap.weights import Layout, add_scaled, difference, norm, weighted_mean, weighted_sum, zeros_like

W = {"w": np.array([1.0, -2.0], dtype=np.float32), "n": np.array(3, dtype=np.int64)}
V = {"w": np.array([3.0, 6.0], dtype=np.float32), "n": np.array(7, dtype=np.int64)}


def test_mean_by_hand() -> None:
    """(1*1 + 3*3)/4 = 2.5 and (-2 + 3*6)/4 = 4; the counter takes the maximum."""
    mean = weighted_mean([W, V], [1, 3])
    np.testing.assert_array_equal(mean["w"], np.array([2.5, 4.0], dtype=np.float32))
    assert mean["w"].dtype == np.float32
    assert mean["n"] == 7
    assert mean["n"].dtype == np.int64
    assert mean["n"].shape == ()


def test_coefficients_need_not_sum_to_one() -> None:
    np.testing.assert_array_equal(weighted_sum([W, V], [-1.0, 2.0])["w"], np.array([5.0, 14.0], dtype=np.float32))


def test_a_model_without_weight_does_not_set_counters() -> None:
    assert weighted_sum([W, V], [1.0, 0.0])["n"] == 3
    assert weighted_sum([W, V], [0.0, 0.0])["n"] == 7, "without any weight there is only the plain maximum"


def test_sums_are_rounded_once() -> None:
    """In float32 1 + 2^-24 is 1, three times over; summed in float64 first, 1 + 3 * 2^-24 rounds up to 1 + 2^-22."""
    tiny = {"w": np.float32([2.0**-24])}
    one = {"w": np.float32([1.0])}
    assert weighted_sum([one, tiny, tiny, tiny], [1, 1, 1, 1])["w"][0] == np.float32(1 + 2.0**-22)


def test_arrays_longer_than_a_block_and_not_contiguous() -> None:
    rng = np.random.default_rng(0)
    models = [{"w": rng.normal(size=(300, 401)).astype(np.float32).T} for _ in range(3)]
    expected = sum(a * m["w"].astype(np.float64) for a, m in zip((0.2, 0.3, 0.5), models, strict=True)).astype(np.float32)
    result = weighted_sum(models, [0.2, 0.3, 0.5])["w"]
    assert result.shape == (401, 300)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(("models", "coefficients"), [([], []), ([W], [1.0, 2.0]), ([W, V], [1.0])])
def test_other_numbers_of_models_and_coefficients_are_refused(models: list, coefficients: list) -> None:
    with pytest.raises(ValueError, match="as many coefficients as models"):
        weighted_sum(models, coefficients)


@pytest.mark.parametrize("weights", [[0, 0], [1, -0.5], [1, float("nan")], [float("inf"), 1]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="must be finite, not negative and not all zero"):
        weighted_mean([W, V], weights)


def test_difference_norm_and_step() -> None:
    delta = difference(V, W)
    assert list(delta) == ["w"], "counters have no difference"
    np.testing.assert_array_equal(delta["w"], [2.0, 8.0])
    assert norm({"a": np.array([3.0]), "b": np.array([[4.0]]), "n": np.array(100)}) == pytest.approx(5.0)
    assert norm({"a": np.array([3.0]), "b": np.array([4.0])}, ["b"]) == pytest.approx(4.0)
    stepped = add_scaled(W, delta, 0.5)
    np.testing.assert_array_equal(stepped["w"], [2.0, 2.0])
    assert stepped["n"] == 3
    assert all(not array.any() for array in zeros_like(W).values())
    assert {name: (array.dtype, array.shape) for name, array in zeros_like(W).items()} == {
        name: (array.dtype, array.shape) for name, array in W.items()
    }


def test_the_norm_of_a_float16_model_does_not_overflow() -> None:
    assert norm({"w": np.full(1000, 60000, dtype=np.float16)}) == pytest.approx(60000 * np.sqrt(1000), rel=1e-3)


def test_the_layout_of_bare_arrays() -> None:
    layout = Layout.of({**W, "flag": np.array([True])})
    assert layout.buffers == {"n", "flag"}
    assert list(layout.parameters(W)) == ["w"]
