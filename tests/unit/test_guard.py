"""What a client may send: every way in which one update does not fit is refused with the client's name, the reason and its code."""

from dataclasses import replace

import numpy as np
import pytest

from fedmap.errors import UpdateError
from fedmap.guard import Defence, Form, GuardState, Ladder
from fedmap.guard.measuring import check_model
from fedmap.records import Broadcast, ClientSignals, ClientUpdate

SENT = Broadcast(
    round_index=4,
    weights={"w": np.ones((2, 3), np.float32), "b": np.zeros(3, np.float32), "n": np.array(5, np.int64)},
)
GOOD = ClientUpdate(7, 4, {name: array.copy() for name, array in SENT.weights.items()}, num_examples=10, num_steps=2)


def refused(update: ClientUpdate, code: str, message: str, form: Form | None = None, **settings: object) -> None:
    ladder = Ladder(Defence(), SENT, form or Form.of(SENT.weights), **settings)  # type: ignore[arg-type]
    with pytest.raises(UpdateError, match=message) as caught:
        ladder.admit(update)
    assert caught.value.code == code
    assert ladder.settle().updates == ()


def passes(update: ClientUpdate, form: Form | None = None, **settings: object) -> None:
    ladder = Ladder(Defence(), SENT, form or Form.of(SENT.weights), **settings)  # type: ignore[arg-type]
    ladder.admit(update)
    (kept,) = ladder.settle().updates
    assert kept is update, "neither copied nor changed"


def with_array(name: str, array: np.ndarray) -> ClientUpdate:
    return replace(GOOD, weights={**GOOD.weights, name: array})


def test_a_fitting_update_passes_whatever_the_order_of_its_arrays() -> None:
    passes(GOOD)
    passes(replace(GOOD, weights=dict(reversed(GOOD.weights.items()))))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w", "b"])
def test_one_number_that_is_not_finite_is_refused(name: str, poison: float) -> None:
    array = GOOD.weights[name].copy()
    array.reshape(-1)[-1] = poison
    refused(with_array(name, array), "finite", f"client 7: {name} holds NaN or infinite numbers; lower the learning rate")


def test_numbers_whose_squares_overflow_are_told_from_infinite_ones() -> None:
    """Their norm is measured again in float64, and then it is too large for any training."""
    ladder = Ladder(Defence(), SENT, Form.of(SENT.weights))
    ladder.admit(with_array("w", np.full((2, 3), 1e30, np.float32)))
    (refusal,) = ladder.settle().refused
    assert (refusal.code, refusal.reason) == ("norm", "client 7: its change has norm 2.45e+30, which no training reaches")


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
    refused(with_array("w", array.astype(np.float32)), "shape", r"client 7: w is float\d\d\[.*\], expected float32\[2, 3\]")


@pytest.mark.parametrize(("name", "kind"), [("w", np.float64), ("w", np.float16), ("w", np.int32), ("n", np.int32), ("n", np.float64)])
def test_another_dtype_is_refused(name: str, kind: type) -> None:
    wrong = with_array(name, GOOD.weights[name].astype(kind))
    refused(wrong, "dtype", f"client 7: {name} is {np.dtype(kind)}.*expected {SENT.weights[name].dtype}")


def test_missing_and_unknown_arrays_are_both_named() -> None:
    weights = {"w": GOOD.weights["w"], "n": GOOD.weights["n"], "extra.w": GOOD.weights["w"]}
    refused(replace(GOOD, weights=weights), "names", r"client 7 .*1 missing \['b'\], 1 unknown \['extra.w'\]")
    refused(replace(GOOD, weights={}), "names", "3 missing")


def test_an_algorithm_may_expect_fewer_arrays_and_then_exactly_those() -> None:
    fewer = Form.of(SENT.weights, {"w"})
    passes(replace(GOOD, weights={"w": GOOD.weights["w"]}), fewer)
    refused(GOOD, "names", r"2 unknown \['b', 'n'\]", fewer)


@pytest.mark.parametrize("round_index", [0, 3, 5])
def test_an_answer_to_another_round_is_refused(round_index: int) -> None:
    refused(replace(GOOD, round_index=round_index), "round", f"client 7 answered round {round_index}, expected round 4")


def test_a_second_answer_of_one_client_is_refused_and_the_first_stays() -> None:
    ladder = Ladder(Defence(), SENT, Form.of(SENT.weights))
    ladder.admit(GOOD)
    with pytest.raises(UpdateError, match="client 7 has answered in round 4 already") as caught:
        ladder.admit(replace(GOOD, num_examples=1))
    assert caught.value.code == "duplicate"
    assert ladder.settle().updates == (GOOD,)


def test_further_groups_are_those_that_the_strategy_needs() -> None:
    form = Form.of(SENT.weights, extras={"control-delta": {"w": SENT.weights["w"]}})
    passes(replace(GOOD, extras={"control-delta": {"w": np.zeros((2, 3), np.float32)}}), form)
    for array, code, message in [
        (np.full((2, 3), np.nan, np.float32), "finite", "client 7, control-delta: w holds NaN"),
        (np.zeros(2, np.float32), "shape", r"client 7, control-delta: w is float32\[2\]"),
        (np.zeros((2, 3)), "dtype", "client 7, control-delta: w is float64"),
    ]:
        refused(replace(GOOD, extras={"control-delta": {"w": array}}), code, message, form)
    refused(GOOD, "names", r"did not send \['control-delta'\], which the strategy needs from every client", form)
    refused(
        replace(GOOD, extras={"own": {"z": np.zeros(1)}}), "names", r"sent \['own'\], which the strategy does not expect.*expected_extras"
    )
    refused(replace(GOOD, extras={"control-delta": {}}), "names", r"client 7, control-delta sent.*1 missing \['w'\]", form)


def test_numbers_are_finite_and_those_of_the_strategy_in_range() -> None:
    refused(replace(GOOD, scalars={"log-likelihood": -np.inf}), "finite", "client 7: scalar 'log-likelihood' is -inf")
    with pytest.raises(UpdateError, match="client 7: scalar 'log-likelihood' is not a number"):
        replace(GOOD, scalars={"log-likelihood": np.nan})
    form = Form.of(SENT.weights, scalars={"log-likelihood": (-np.inf, 0.0)})
    passes(replace(GOOD, scalars={"log-likelihood": -3.5, "own": 1e6}), form)
    refused(GOOD, "scalar", "client 7 did not send the number 'log-likelihood'", form)
    refused(replace(GOOD, scalars={"log-likelihood": 1e6}), "scalar", r"log-likelihood=1e\+06 is outside \[-inf, 0\]", form)


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("num_examples", 0, "examples"),
        ("num_examples", -3, "examples"),
        ("num_examples", 2.5, "examples"),
        ("num_examples", True, "examples"),
        ("num_steps", 0, "steps"),
        ("num_steps", True, "steps"),
        ("client_id", -1, "identity"),
    ],
)
def test_impossible_numbers_are_refused_at_once(field: str, value: object, code: str) -> None:
    with pytest.raises(UpdateError, match=f"{field} must be an integer of at least") as caught:
        replace(GOOD, **{field: value})  # type: ignore[arg-type]
    assert caught.value.code == code


def test_rows_are_at_most_those_that_the_client_joined_with() -> None:
    passes(GOOD, rows={7: 10})
    passes(replace(GOOD, num_examples=6), rows={7: 10})  # it may leave some out
    refused(replace(GOOD, num_examples=11), "examples", "client 7 says that it trained on 11 rows, and it joined with 10", rows={7: 10})
    refused(replace(GOOD, num_examples=10**7 + 1), "examples", "expected at most defence.max_examples=10000000")
    refused(replace(GOOD, num_examples=2**70), "examples", "expected at most defence.max_examples=10000000")


def test_a_client_that_joins_again_may_have_twice_the_rows_and_no_more() -> None:
    known = GuardState(rows={7: 10})
    passes(replace(GOOD, num_examples=20), rows={7: 20}, state=known)
    refused(replace(GOOD, num_examples=21), "examples", "and it had 10 at first; expected at most 2 times", rows={7: 5000}, state=known)


def test_more_steps_than_a_thousand_for_each_row_are_not_believed() -> None:
    passes(replace(GOOD, num_steps=10_000))
    refused(replace(GOOD, num_steps=10_001), "steps", r"10001 steps on 10 rows, expected at most 1000 a row \(defence.max_passes\)")


@pytest.mark.parametrize(
    ("signals", "sentence"),
    [
        (ClientSignals(f1_after=float("nan")), "f1_after is nan"),
        (ClientSignals(validation_loss=float("inf")), "validation_loss is inf"),
        (ClientSignals(diversity=-0.5), r"diversity=-0.5 is outside \[0, 1\]"),
        (ClientSignals(gradient_norm=-1.0), r"gradient_norm=-1 is outside \[0, inf\]"),
        (ClientSignals(modality_shares={"text": 7.0}), r"share.text=7 is outside \[0, 1\]"),
        (ClientSignals(custom={"battery": float("nan")}), "custom.battery is nan"),
    ],
)
def test_a_signal_that_cannot_be_believed_marks_an_update_and_does_not_refuse_it(signals: ClientSignals, sentence: str) -> None:
    ladder = Ladder(Defence(), SENT, Form.of(SENT.weights))
    ladder.admit(replace(GOOD, signals=signals))
    settled = ladder.settle()
    assert len(settled.updates) == 1
    assert settled.refused == ()
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(settled.remarks[7]["signal"])


@pytest.mark.parametrize("value", [2**40, -(2**40), 2**63 - 1])
def test_an_integer_buffer_counts_no_further_than_training_can(value: int) -> None:
    passes(with_array("n", np.array(5 + 10**6, np.int64)), buffers={"n"})
    refused(with_array("n", np.array(value, np.int64)), "norm", "client 7: n counts from .* no training counts that far", buffers={"n"})


def test_arrays_may_lie_in_memory_as_they_like() -> None:
    passes(with_array("w", np.asfortranarray(GOOD.weights["w"])))
    passes(with_array("w", np.ones((2, 6), np.float32)[:, ::2]))
    read_only = GOOD.weights["w"].copy()
    read_only.setflags(write=False)
    passes(with_array("w", read_only))


def test_an_aggregated_model_that_is_not_finite_is_not_taken() -> None:
    check_model(SENT.weights)
    with pytest.raises(UpdateError, match="the aggregated model's b holds NaN or infinite numbers"):
        check_model({**SENT.weights, "b": np.array([0, np.inf, 0], np.float32)})
