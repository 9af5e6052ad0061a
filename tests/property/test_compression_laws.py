"""Laws of packed arrays: what comes back, how far it may be off, and that no bytes of a stranger do more than be refused."""

import contextlib
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmap.compression import Compression
from fedmap.compression.codes import make_code
from fedmap.compression.parcels import WEIGHTS, Parcel, pack_broadcast, pack_update, unpack_broadcast, unpack_update
from fedmap.compression.planes import Reader, read_planes, write_planes
from fedmap.compression.settings import DOWN, UP
from fedmap.errors import UpdateError
from fedmap.records import Broadcast, ClientUpdate
from tests.toys import same

CODES = [code for code in UP if code != "none"]
finite = st.floats(-(2.0**127), 2.0**127, width=32)  # what is nearer to the largest float32 of all may round to infinity
usual = st.floats(-100, 100, width=32)
vectors = hnp.arrays(np.float32, st.integers(1, 700), elements=usual)


def coded(name: str, values: np.ndarray, seed: int = 0, **options) -> np.ndarray:
    """The numbers there and back."""
    code = make_code(name, Compression(up=name, **options))
    read = Reader(b"".join(code.write(values, np.random.default_rng(seed))))
    back = code.read(read, len(values))
    read.end()
    assert (back.dtype, back.shape) == (np.float32, values.shape)
    return back


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(st.sampled_from([np.uint8, np.int8, np.float16, np.float32, np.float64]), st.integers(1, 40_000)))
def test_planes_give_any_bytes_back(values: np.ndarray) -> None:
    read = Reader(b"".join(write_planes(values)))
    assert read_planes(read, len(values), values.dtype.type).tobytes() == values.tobytes()
    read.end()


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 300)))
def test_lossless_gives_every_bit_back(values: np.ndarray) -> None:
    assert coded("lossless", values).tobytes() == values.tobytes()


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 300), elements=finite))
def test_fp16_is_off_by_half_a_digit(values: np.ndarray) -> None:
    off = np.abs(coded("fp16", values).astype(np.float64) - values)
    largest = max(float(np.abs(values).max()), 2.0**-111)  # below that there is no power of two left to scale by
    assert (off <= np.maximum(2.0**-11 * np.abs(values, dtype=np.float64), 2.0**-39 * largest)).all()


@settings(deadline=None)
@given(vectors, st.integers(8, 64), st.integers(0, 2**32))
def test_int8_is_off_by_less_than_a_step_of_its_block(values: np.ndarray, block: int, seed: int) -> None:
    back = coded("int8", values, seed, block=block)
    for start in range(0, len(values), block):
        part = slice(start, start + block)
        step = float(np.abs(values[part]).max()) / 127
        tiny = 127 * float(np.finfo(np.float32).smallest_subnormal)  # a scale has no digits finer than that
        assert (np.abs(back[part].astype(np.float64) - values[part]) <= step * (1 + 1e-3) + tiny).all()


@settings(deadline=None)
@given(vectors, st.floats(0.001, 1))
def test_topk_sends_the_largest_and_nothing_else(values: np.ndarray, density: float) -> None:
    back = coded("topk", values, density=density)
    k = min(len(values), max(1, int(np.ceil(density * len(values)))))
    sent = back != 0
    assert sent.sum() <= k
    if sent.sum() == k < len(values):
        assert np.abs(values[sent]).min() >= np.abs(values[~sent]).max()
    np.testing.assert_allclose(back[sent], values[sent], rtol=2.0**-10, atol=float(np.abs(values).max()) * 2.0**-38)


@st.composite
def rounds(draw):
    """A broadcast and an answer: a matrix, a vector, a small array, a counter, and a group of extras."""
    shapes = {"w": draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=12)), "v": (draw(st.integers(1, 300)),), "s": ()}
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1e-6, 1e-2, 1.0, 1e6]))
    x = {n: np.asarray(rng.normal(size=s), np.float32) for n, s in shapes.items()} | {"n": np.array(draw(st.integers(0, 9)))}
    y = {n: np.asarray(a + scale * rng.normal(size=a.shape), a.dtype) for n, a in x.items()}
    extras = {"control": {"v": np.asarray(rng.normal(size=shapes["v"]), np.float32)}, "own": {"z": np.arange(3.0)}}
    return Broadcast(draw(st.integers(1, 99)), x, extras=extras), ClientUpdate(draw(st.integers(0, 9)), 1, y, 1, 1, extras=extras)


options = st.builds(
    Compression,
    up=st.sampled_from(UP),
    down=st.sampled_from(DOWN),
    density=st.floats(0.01, 1),
    block=st.integers(8, 300),
    smallest=st.integers(1, 200),
    feedback=st.booleans(),
)


def bits(*groups) -> list[bytes]:
    return [array.tobytes() for group in groups for array in group.values()]


@settings(deadline=None)
@given(rounds(), options, st.integers(0, 2**40))
def test_messages_keep_names_kinds_and_order_and_change_no_input(messages, how: Compression, seed: int) -> None:
    sent, update = messages
    before = bits(sent.weights, update.weights, *sent.extras.values(), *update.extras.values())
    shapes = {name: array.shape for name, array in sent.weights.items()}
    groups = unpack_broadcast(pack_broadcast(sent, how, seed), how, shapes)
    received = Broadcast(sent.round_index, groups.pop(WEIGHTS), extras=groups)
    parcels, residuals = pack_update(update, received, how, seed, {})
    arrived = unpack_update(parcels, sent, how)
    for own, other in ((received.weights, sent.weights), (arrived[WEIGHTS], update.weights)):
        assert [(n, a.dtype, a.shape) for n, a in own.items()] == [(n, a.dtype, a.shape) for n, a in other.items()]
        small = [n for n, a in other.items() if a.size < how.smallest or a.dtype != np.float32]
        assert same({n: own[n] for n in small}, {n: other[n] for n in small})
    assert set(groups) == set(sent.extras)
    assert set(arrived) == {WEIGHTS, *update.extras}
    assert same(arrived["own"], update.extras["own"])
    assert bits(sent.weights, update.weights, *sent.extras.values(), *update.extras.values()) == before
    again, kept = pack_update(update, received, how, seed, {})
    assert {g: (p.names, bytes(p.data)) for g, p in again.items()} == {g: (p.names, bytes(p.data)) for g, p in parcels.items()}
    assert all(same(kept[group], residuals[group]) for group in residuals)
    if how.up in ("none", "lossless") and how.down in ("none", "lossless"):
        assert same(received.weights, sent.weights)
        assert same(arrived[WEIGHTS], update.weights)


@settings(deadline=None)
@given(rounds(), st.sampled_from(["fp16", "int8", "topk"]), st.integers(1, 4))
def test_what_has_arrived_and_what_is_kept_is_all_there_was(messages, up: str, count: int) -> None:
    """After any number of rounds: sum of what arrived + residual = sum of the changes, but for rounding in float32."""
    sent, update = messages
    how = Compression(up=up, smallest=1, feedback=True, density=0.1, block=16)
    residuals: dict = {}
    total = {name: np.zeros(array.shape) for name, array in update.weights.items()}
    for round_index in range(1, count + 1):
        now = Broadcast(round_index, sent.weights)
        parcels, residuals = pack_update(update, now, how, 5, residuals)
        arrived = unpack_update(parcels, now, how)[WEIGHTS]
        for name in total:
            total[name] += arrived[name].astype(np.float64) - sent.weights[name]
    for name, array in update.weights.items():
        if array.dtype == np.float32:
            change = count * (array.astype(np.float64) - sent.weights[name])
            most = 1e-5 * count * float(np.abs(array).max() + np.abs(sent.weights[name]).max() + np.abs(change).max())
            np.testing.assert_allclose(total[name] + residuals[WEIGHTS][name], change, rtol=0, atol=most)


SENT = Broadcast(1, {"w": np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30), "n": np.array(3)}, extras={"c": {}})
ANSWER = ClientUpdate(
    0, 1, {"w": (SENT.weights["w"] + 0.01 * np.sin(np.arange(600).reshape(20, 30))).astype(np.float32), "n": np.array(4)}, 1, 1
)


def answered(up: str) -> tuple[Compression, Parcel]:
    how = Compression(up=up, smallest=1, density=0.02, block=32)
    parcels, _ = pack_update(ANSWER, SENT, how, 1, {})
    return how, parcels[WEIGHTS]


def arrives(how: Compression, parcel: Parcel) -> dict[str, np.ndarray]:
    """What the server makes of it: arrays of the right kind, or an UpdateError; anything else fails the test."""
    found = unpack_update({WEIGHTS: parcel}, SENT, how)[WEIGHTS]
    for name in parcel.names:
        assert (found[name].shape, found[name].dtype) == (SENT.weights[name].shape, np.float32)
    return found


@pytest.mark.parametrize("up", CODES)
@settings(deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_are_arrays_of_the_right_kind(up: str, data) -> None:
    how, good = answered(up)
    raw = bytearray(good.data)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
    bad = bytes(raw[:end]) + data.draw(st.binary(max_size=3))
    with contextlib.suppress(UpdateError):
        arrives(how, Parcel(good.whole, good.names, bad))


@pytest.mark.parametrize("up", CODES)
@settings(deadline=None)
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_refused_or_are_arrays_of_the_right_kind(up: str, raw: bytes) -> None:
    how, good = answered(up)
    with contextlib.suppress(UpdateError):
        arrives(how, Parcel(good.whole, good.names, raw))


@pytest.mark.parametrize("up", CODES)
@settings(deadline=None)
@given(cut=st.integers(1, 50), more=st.binary(min_size=1, max_size=20))
def test_bytes_too_few_or_too_many_are_always_refused(up: str, cut: int, more: bytes) -> None:
    how, good = answered(up)
    assume(cut < len(good.data))
    for data in (bytes(good.data)[:-cut], bytes(good.data) + more, b""):
        with pytest.raises(UpdateError, match="packed arrays"):
            arrives(how, Parcel(good.whole, good.names, data))


@pytest.mark.parametrize("names", [("x",), ("w", "w"), ("n",), ("w", "x"), ("",)])
def test_names_that_the_server_did_not_send_are_refused(names: tuple[str, ...]) -> None:
    how, good = answered("fp16")
    with pytest.raises(UpdateError, match="unknown or of another kind|there twice"):
        arrives(how, Parcel({}, names, bytes(good.data) * len(names)))
    with pytest.raises(UpdateError, match="there twice"):
        arrives(how, Parcel({"w": SENT.weights["w"]}, ("w",), good.data))


def test_packed_arrays_that_nobody_asked_for_are_refused() -> None:
    _, good = answered("fp16")
    with pytest.raises(UpdateError, match="nothing has asked for that"):
        arrives(Compression(), good)


def test_a_plane_that_unpacks_to_more_than_the_server_expects_takes_no_memory() -> None:
    how, good = answered("lossless")
    maker = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = maker.compress(bytes(50_000_000)) + maker.flush()
    data = bytes([1]) + len(bomb).to_bytes(4, "little") + bomb
    tracemalloc.start()
    with pytest.raises(UpdateError, match="does not unpack to 600 bytes"):
        arrives(how, Parcel(good.whole, good.names, data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
