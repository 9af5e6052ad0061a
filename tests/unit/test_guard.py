"""What a client may send: every way in which an update does not fit is refused with the client's name and the reason."""

from dataclasses import replace

import numpy as np
import pytest

from fedmap.errors import UpdateError
from fedmap.guard import check_update
from fedmap.records import Broadcast, ClientUpdate

SENT = Broadcast(
    round_index=4,
    weights={"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32), "n": np.array(5, np.int64)},
)
GOOD = ClientUpdate(7, 4, {name: array.copy() for name, array in SENT.weights.items()}, num_examples=10, num_steps=2)


def with_array(name: str, array: np.ndarray) -> ClientUpdate:
    return replace(GOOD, weights={**GOOD.weights, name: array})


def test_a_fitting_update_passes_whatever_the_order_of_its_arrays() -> None:
    check_update(GOOD, SENT)
    check_update(replace(GOOD, weights=dict(reversed(GOOD.weights.items()))), SENT)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w", "b"])
def test_one_number_that_is_not_finite_is_refused(name: str, poison: float) -> None:
    array = GOOD.weights[name].copy()
    array.reshape(-1)[-1] = poison
    with pytest.raises(UpdateError, match=f"client 7: {name} holds NaN or infinite numbers; lower the learning rate"):
        check_update(with_array(name, array), SENT)


@pytest.mark.parametrize(
    "array",
    [
        np.ones((3, 2), np.float32),  # the right number of numbers
        np.ones((1, 3), np.float32),  # would be broadcast silently
        np.ones(6, np.float32),
        np.float32(1.0) * np.ones(()),
    ],
)
def test_another_shape_is_refused(array: np.ndarray) -> None:
    with pytest.raises(UpdateError, match=r"client 7: w is float\d\d\[.*\], expected float32\[2, 3\]"):
        check_update(with_array("w", array.astype(np.float32)), SENT)


@pytest.mark.parametrize(("name", "kind"), [("w", np.float64), ("w", np.float16), ("w", np.int32), ("n", np.int32), ("n", np.float64)])
def test_another_dtype_is_refused(name: str, kind: type) -> None:
    with pytest.raises(UpdateError, match=f"client 7: {name} is {np.dtype(kind)}.*expected {SENT.weights[name].dtype}"):
        check_update(with_array(name, GOOD.weights[name].astype(kind)), SENT)


def test_missing_and_unknown_arrays_are_both_named() -> None:
    weights = {"w": GOOD.weights["w"], "n": GOOD.weights["n"], "extra.w": GOOD.weights["w"]}
    with pytest.raises(UpdateError, match=r"client 7 .*1 missing \['b'\], 1 unknown \['extra.w'\]"):
        check_update(replace(GOOD, weights=weights), SENT)
    with pytest.raises(UpdateError, match="3 missing"):
        check_update(replace(GOOD, weights={}), SENT)


def test_an_algorithm_may_expect_fewer_arrays_and_then_exactly_those() -> None:
    fewer = replace(GOOD, weights={"w": GOOD.weights["w"]})
    check_update(fewer, SENT, {"w"})
    with pytest.raises(UpdateError, match=r"2 unknown \['b', 'n'\]"):
        check_update(GOOD, SENT, {"w"})


@pytest.mark.parametrize("round_index", [0, 3, 5])
def test_an_answer_to_another_round_is_refused(round_index: int) -> None:
    with pytest.raises(UpdateError, match=f"client 7 answered round {round_index}, expected round 4"):
        check_update(replace(GOOD, round_index=round_index), SENT)


def test_further_groups_are_checked_too() -> None:
    check_update(replace(GOOD, extras={"control-delta": {"w": np.zeros((2, 3), np.float32)}}), SENT)
    for array, message in [
        (np.full((2, 3), np.nan, np.float32), "client 7, control-delta: w holds NaN"),
        (np.zeros(2, np.float32), r"client 7, control-delta: w is float32\[2\]"),
    ]:
        with pytest.raises(UpdateError, match=message):
            check_update(replace(GOOD, extras={"control-delta": {"w": array}}), SENT)
    with pytest.raises(UpdateError, match="client 7, own: z holds NaN"):
        check_update(replace(GOOD, extras={"own": {"z": np.array([np.nan])}}), SENT)


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UpdateError, match="client 7: scalar 'log-likelihood' is -inf"):
        check_update(replace(GOOD, scalars={"log-likelihood": -np.inf}), SENT)
    with pytest.raises(UpdateError, match="client 7: scalar 'log-likelihood' is not a number"):
        replace(GOOD, scalars={"log-likelihood": np.nan})


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_examples", 0), ("num_examples", -3), ("num_steps", 0), ("client_id", -1), ("num_examples", 2.5), ("num_steps", True)],
)
def test_impossible_numbers_are_refused_at_once(field: str, value: object) -> None:
    with pytest.raises(UpdateError, match=f"{field} must be an integer of at least"):
        replace(GOOD, **{field: value})  # type: ignore[arg-type]
