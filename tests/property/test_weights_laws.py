"""Laws of the weighted mean: fixed points, hulls, order, kinds of arrays, and untouched inputs."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmap.aggregators.base import in_client_order
from fedmap.records import ClientUpdate
from fedmap.weights import add_scaled, difference, weighted_mean

shapes = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
shares = st.floats(1e-6, 1e6)


@st.composite
def federations(draw, dtype=np.float32, elements=float32s):
    """2 to 5 models with a float array of any shape and a counter, and a positive weight for each."""
    shape, count = draw(shapes), draw(st.integers(1, 5))
    models = [
        {"w": draw(hnp.arrays(dtype, shape, elements=elements)), "n": draw(hnp.arrays(np.int64, (), elements=st.integers(0, 2**40)))}
        for _ in range(count)
    ]
    return models, draw(st.lists(shares, min_size=count, max_size=count))


@settings(deadline=None)
@given(federations())
def test_the_mean_stays_within_the_models_and_keeps_kinds(federation) -> None:
    models, weights = federation
    mean = weighted_mean(models, weights)
    stack = np.stack([model["w"] for model in models])
    assert (stack.min(axis=0) <= mean["w"]).all()
    assert (mean["w"] <= stack.max(axis=0)).all()
    assert {name: (a.dtype, a.shape) for name, a in mean.items()} == {name: (a.dtype, a.shape) for name, a in models[0].items()}
    assert mean["n"] == max(int(model["n"]) for model in models)


@settings(deadline=None)
@given(federations())
def test_the_mean_equals_a_float64_reference(federation) -> None:
    models, weights = federation
    exact = np.average([model["w"].astype(np.longdouble) for model in models], axis=0, weights=np.asarray(weights, np.longdouble))
    scale = np.max([np.abs(model["w"].astype(np.float64)) for model in models], axis=0)
    result = weighted_mean(models, weights)["w"].astype(np.float64)
    rounding = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)  # one unit in the last place of float32
    assert (np.abs(result - exact.astype(np.float64)) <= rounding + 1e-14 * scale).all()


@settings(deadline=None)
@given(federations(), st.integers(1, 6), st.data())
def test_identical_models_are_a_fixed_point(federation, count: int, data) -> None:
    model = federation[0][0]
    weights = data.draw(st.lists(shares, min_size=count, max_size=count))
    mean = weighted_mean([model] * count, weights)
    np.testing.assert_array_equal(mean["w"], model["w"])
    assert mean["n"] == model["n"]


@settings(deadline=None)
@given(federations(), st.randoms(use_true_random=False))
def test_sorted_updates_give_the_same_bits_in_any_order_of_arrival(federation, random) -> None:
    models, weights = federation
    updates = [ClientUpdate(k, 1, model, num_examples=1, num_steps=1) for k, model in enumerate(models)]

    def mean(arrived):
        ordered = in_client_order(arrived)
        return weighted_mean([u.weights for u in ordered], [weights[u.client_id] for u in ordered])

    first = mean(updates)
    random.shuffle(updates)
    second = mean(updates)
    assert {name: array.tobytes() for name, array in first.items()} == {name: array.tobytes() for name, array in second.items()}


@settings(deadline=None)
@given(federations())
def test_inputs_are_neither_changed_nor_shared(federation) -> None:
    models, weights = federation
    before = [{name: array.tobytes() for name, array in model.items()} for model in models]
    for result in (weighted_mean(models, weights), weighted_mean(models[:1], [1.0])):
        for array in result.values():
            array[...] = 1
    assert before == [{name: array.tobytes() for name, array in model.items()} for model in models]


@settings(deadline=None)
@given(federations(np.float64, st.floats(-1e6, 1e6)))
def test_a_difference_added_again_gives_the_model_back(federation) -> None:
    start, end = federation[0][0], federation[0][-1]
    again = add_scaled(start, difference(end, start))
    np.testing.assert_allclose(again["w"], end["w"], rtol=0, atol=1e-9)
    assert again["n"] == start["n"]
