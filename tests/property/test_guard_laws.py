"""Laws of the ladder: valid updates always pass, mutated ones are refused with a code or leave the model within bounds, and nothing else."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmap.aggregators.base import expected_form
from fedmap.aggregators.fedavg import FedAvg
from fedmap.errors import UpdateError
from fedmap.guard import Defence, Ladder, climb
from fedmap.guard.form import Kind, read_npy
from fedmap.guard.measuring import check_model, measure
from fedmap.reasons import MEANING, Reason
from fedmap.records import ClientUpdate
from fedmap.weights import difference, norm

SHAPES = {"w": (3, 2), "b": (4,), "c": ()}
WEIGHTS = {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}
STATE = FedAvg().init(WEIGHTS)
CODES = {str(reason) for reason in Reason}

usual = st.floats(-1, 1, width=32).filter(lambda value: abs(value) > 1e-3)
anything = st.floats(width=32, allow_nan=True, allow_infinity=True)


def ladder(defence: Defence = Defence()) -> Ladder:  # noqa: B008
    sent = FedAvg().broadcast(STATE)
    return Ladder(defence, sent, expected_form(FedAvg(), STATE, sent))


def updates_of(values):
    arrays = st.fixed_dictionaries({name: hnp.arrays(np.float32, shape, elements=values) for name, shape in SHAPES.items()})
    one = st.builds(lambda weights, rows: (weights, rows), arrays, st.integers(1, 10**6))
    return st.lists(one, min_size=1, max_size=6).map(
        lambda found: [ClientUpdate(k, 1, weights, num_examples=rows, num_steps=1) for k, (weights, rows) in enumerate(found)]
    )


@settings(deadline=None, max_examples=60)
@given(updates_of(usual))
def test_valid_updates_pass_the_checks_of_each_update_and_give_a_finite_model(updates: list[ClientUpdate]) -> None:
    settled = climb(ladder(Defence(norm="off", direction="off", replay="off")), updates)
    assert settled.refused == ()
    state, _ = FedAvg().aggregate(STATE, settled.updates)
    check_model(state.weights)


@settings(deadline=None, max_examples=100)
@given(updates_of(anything), st.permutations(range(6)))
def test_whatever_numbers_come_the_model_stays_within_three_usual_changes(updates: list[ClientUpdate], order: list[int]) -> None:
    settled = climb(ladder(), updates)
    assert {refusal.code for refusal in settled.refused} <= CODES
    again = climb(ladder(), [updates[k] for k in order if k < len(updates)])
    assert [u.client_id for u in again.updates] == [u.client_id for u in settled.updates], "the order of arrival changes nothing"
    if not settled.updates:
        return
    state, _ = FedAvg().aggregate(STATE, settled.updates)
    check_model(state.weights)
    changes = [norm(difference(update.weights, WEIGHTS)) for update in updates]
    known = sorted(change for change in changes if 0 < change < np.inf)
    bound = 3 * known[(len(known) - 1) // 2] if len(known) >= 3 else 1e7
    assert norm(difference(state.weights, WEIGHTS)) <= bound * (1 + 1e-5) + 1e-5


mutations = st.sampled_from(
    [
        lambda u, d: replace(u, weights={**u.weights, "w": u.weights["w"].astype(d.draw(st.sampled_from(["f8", "f2", "i4", "u1", "?"])))}),
        lambda u, d: replace(u, weights={**u.weights, "w": np.zeros(d.draw(hnp.array_shapes(max_dims=3, max_side=4)), np.float32)}),
        lambda u, d: replace(u, weights={n: a for n, a in u.weights.items() if n != d.draw(st.sampled_from(sorted(SHAPES)))}),
        lambda u, d: replace(u, weights={**u.weights, d.draw(st.text(max_size=5)): u.weights["w"]}),
        lambda u, d: replace(u, round_index=d.draw(st.integers(-5, 5))),
        lambda u, d: replace(u, num_examples=d.draw(st.one_of(st.integers(), st.floats(), st.booleans(), st.none()))),
        lambda u, d: replace(u, num_steps=d.draw(st.one_of(st.integers(), st.floats(), st.booleans()))),
        lambda u, d: replace(u, scalars={d.draw(st.text(max_size=300)): d.draw(st.floats())}),
        lambda u, d: replace(u, extras={d.draw(st.text(max_size=5)): u.weights}),
        lambda u, d: replace(u, signals=replace(u.signals, f1_after=d.draw(st.floats()), custom={"x": d.draw(st.floats())})),
    ]
)


@settings(deadline=None, max_examples=150)
@given(st.data(), updates_of(usual), mutations)
def test_a_mutated_update_is_refused_with_a_code_or_leaves_the_model_within_bounds(data, updates, mutate) -> None:
    codes = []
    try:
        updates[0] = mutate(updates[0], data)
    except UpdateError as error:  # it cannot even be made
        codes.append(error.code)
        del updates[0]
    assert set(codes) <= CODES
    settled = climb(ladder(), updates)
    assert {refusal.code for refusal in settled.refused} <= CODES
    if settled.updates:
        state, _ = FedAvg().aggregate(STATE, settled.updates)
        check_model(state.weights)
        assert norm(difference(state.weights, WEIGHTS)) <= 1.5 * 3 * np.sqrt(11)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
    ),
    st.sampled_from(["C", "F"]),
)
def test_npy_bytes_are_read_without_a_copy_as_they_were_written(array: np.ndarray, order: str) -> None:
    written = array.copy(order=order)
    buffer = io.BytesIO()
    np.save(buffer, written)
    back = read_npy("w", buffer.getvalue(), Kind.of(array))
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300), st.booleans())
def test_strange_bytes_are_refused_as_unreadable_or_as_another_kind(data: bytes, magic: bool) -> None:
    with pytest.raises(UpdateError) as caught:
        read_npy("w", (b"\x93NUMPY\x01\x00" if magic else b"") + data, Kind((3,), np.dtype(np.float32)))
    assert caught.value.code in {Reason.MALFORMED, Reason.SHAPE, Reason.DTYPE}


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"descr": "<f4", "fortran_order": False, "shape": (10**15,)}, "shape"),  # np.load would ask for the memory
        ({"descr": "<f4", "fortran_order": False, "shape": (2**62, 2**62)}, "shape"),
        ({"descr": "<f4", "fortran_order": False, "shape": (-3,)}, "shape"),
        ({"descr": "|O", "fortran_order": False, "shape": (3,)}, "dtype"),  # np.load would unpickle
        ({"descr": "<f8", "fortran_order": False, "shape": (3,)}, "dtype"),
        ({"descr": ">f4", "fortran_order": False, "shape": (3,)}, "dtype"),
        ({"descr": "<f4", "fortran_order": False, "shape": (3,)}, "malformed"),  # no numbers follow
    ],
)
def test_a_header_is_believed_only_where_it_says_what_is_expected(header: dict, code: str) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    with pytest.raises(UpdateError) as caught:
        read_npy("w", buffer.getvalue(), Kind((3,), np.dtype(np.float32)))
    assert caught.value.code == code


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32)), st.data())
def test_the_digest_sees_every_bit_and_the_norm_is_that_of_the_change(array: np.ndarray, data) -> None:
    zero = {"w": np.zeros_like(array)}
    found = measure("it", {"w": array}, zero)
    assert found.norm == pytest.approx(float(np.linalg.norm(array.astype(np.float64))), rel=1e-5)
    other = array.copy()
    place = data.draw(st.integers(0, 8 * array.nbytes - 1))
    other.view(np.uint8)[place // 8] ^= np.uint8(1 << place % 8)
    if np.isfinite(other).all():
        assert measure("it", {"w": other}, zero).digest != found.digest


def test_every_code_has_a_meaning_and_the_codes_are_stable() -> None:
    assert set(MEANING) == set(Reason)
    assert [str(reason) for reason in Reason] == [
        "no-answer", "problem", "identity", "duplicate", "size", "malformed", "round", "names", "shape", "dtype", "finite", "scalar",
        "examples", "steps", "signal", "norm", "replay", "direction",
    ]  # fmt: skip
