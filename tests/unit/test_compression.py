"""Packed arrays with values that a pencil can check, and what client and server make of them."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord

from fedmap.aggregators.fedavg import FedAvg
from fedmap.aggregators.gma import GMA
from fedmap.compression import Compression
from fedmap.compression.codes import Eighth, Half, TopK
from fedmap.compression.parcels import WEIGHTS, pack_broadcast, pack_update, unpack_broadcast, unpack_update
from fedmap.compression.planes import Reader, read_planes, write_planes
from fedmap.config import compose_and_resolve, parse
from fedmap.errors import ConfigError, UpdateError
from fedmap.flower.feedback import check_compression, residuals_of, with_residuals
from fedmap.flower.foreign import FlowerAggregator
from fedmap.flower.wire import RunInfo, broadcast_to_content, content_to_broadcast, content_to_update, update_to_content
from fedmap.local.rules import Memory
from fedmap.records import Broadcast, ClientUpdate
from tests.toys import same

RUN = RunInfo("run", seed=42, num_rounds=3)


def there_and_back(code, values: list[float], seed: int = 0) -> list[float]:
    flat = np.asarray(values, np.float32)
    return code.read(Reader(b"".join(code.write(flat, np.random.default_rng(seed)))), len(flat)).tolist()


def test_topk_keeps_the_largest_of_either_sign() -> None:
    assert there_and_back(TopK(0.5), [0.0, 3.0, -5.0, 1.0]) == [0.0, 3.0, -5.0, 0.0]
    assert there_and_back(TopK(0.01), [0.25, -0.5]) == [0.0, -0.5], "always at least one"


@pytest.mark.parametrize("places", [[0], [254], [255], [256], [0, 1, 2], [3, 700, 1209], [509, 510, 1999]])
def test_places_far_apart_are_found_again(places: list[int]) -> None:
    values = np.zeros(2000, np.float32)
    values[places] = 1.5
    assert there_and_back(TopK(len(places) / 2000), values.tolist()) == values.tolist()


def test_a_gap_is_one_byte_and_one_more_for_each_255_places() -> None:
    values = np.zeros(2000, np.float32)
    values[[4, 5, 261]] = 1  # 4 places before the first, none before the second, 255 before the third
    pieces = TopK(3 / 2000).write(values, np.random.default_rng(0))
    read = Reader(b"".join(pieces))
    assert read.take(4) == (4).to_bytes(4, "little")
    assert read_planes(read, 4, np.uint8).tolist() == [4, 0, 255, 0]


def test_fp16_keeps_eleven_binary_digits_of_small_and_of_large_numbers() -> None:
    for scale in (1.0, 2.0**-100, 2.0**100):
        values = [1.0 * scale, (1 + 2.0**-10) * scale, -0.5 * scale, 0.0]
        assert there_and_back(Half(), values) == values
        assert there_and_back(Half(), [(1 + 2.0**-12) * scale]) == [scale]


def test_int8_is_exact_on_whole_steps_and_right_on_average_between_them() -> None:
    assert there_and_back(Eighth(8), [127.0, -127.0, 5.0, 0.0]) == [127.0, -127.0, 5.0, 0.0]
    assert there_and_back(Eighth(8), [0.0] * 9) == [0.0] * 9
    drawn = [there_and_back(Eighth(8), [127.0, 0.25, -3.5], seed)[1:] for seed in range(400)]
    assert {value for value, _ in drawn} == {0.0, 1.0}
    assert {value for _, value in drawn} == {-4.0, -3.0}
    assert np.mean(drawn, axis=0) == pytest.approx([0.25, -3.5], abs=4 * 0.5 / 400**0.5)  # four standard errors


def test_a_block_has_a_scale_of_its_own() -> None:
    small = [0.001] * 8
    assert there_and_back(Eighth(8), [*small, 1000.0, *[0.0] * 7])[:8] == pytest.approx(small)


def test_planes_that_cannot_be_deflated_travel_as_they_are() -> None:
    noise = np.frombuffer(np.random.default_rng(0).bytes(50_000), np.uint8)
    assert sum(map(len, write_planes(noise))) == 50_000 + 5
    assert sum(map(len, write_planes(np.zeros(50_000, np.uint8)))) < 500


@pytest.mark.parametrize(
    ("head", "body", "message"),
    [
        (b"\x02", b"abc", "stored in the unknown way 2"),
        (b"\x00", b"ab", "has 2 bytes, expected 3"),
        (b"\x01", b"\xff\xff\xff", "is damaged"),
        (b"\x01", zlib.compress(b"abcd", wbits=-15), "does not unpack to 3 bytes"),
        (b"\x01", zlib.compress(b"ab", wbits=-15), "does not unpack to 3 bytes"),
        (b"\x01", zlib.compress(b"abc", wbits=-15) + b"more", "does not unpack to 3 bytes"),
    ],
)
def test_a_damaged_plane_is_refused(head: bytes, body: bytes, message: str) -> None:
    with pytest.raises(UpdateError, match=message):
        read_planes(Reader(head + len(body).to_bytes(4, "little") + body), 3, np.uint8)


def test_scales_and_places_out_of_range_are_refused() -> None:
    def refused(code, data: list, count: int, message: str) -> None:
        with pytest.raises(UpdateError, match=message):
            code.read(Reader(b"".join(data)), count)

    rng = np.random.default_rng(0)
    one = np.ones(1, np.int8)
    for scale in (np.nan, np.inf, -1.0):
        refused(Eighth(8), [*write_planes(np.float32([scale])), *write_planes(one)], 1, "negative, NaN or infinite")
    refused(Half(), [(200).to_bytes(2, "little"), *write_planes(np.ones(1, np.float16))], 1, r"2\^200")
    for value in (np.nan, np.inf):
        refused(Half(), [bytes(2), *write_planes(np.float16([value]))], 1, "NaN or infinite")
    half = Half().write(np.ones(2, np.float32), rng)
    for steps, message in [([1, 9], "below 10"), ([255, 3], "in 2 bytes|below 10"), ([3], "in 1 bytes"), ([0, 0, 0], "in 3 bytes")]:
        data = [len(steps).to_bytes(4, "little"), *write_planes(np.uint8(steps)), *half]
        refused(TopK(0.2), data, 10, message)


X = {"w": np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8), "b": np.float32([0.5]), "n": np.array(2)}
SENT = Broadcast(1, X)
SMALL = {"smallest": 8, "block": 8}


def update_of(change: np.ndarray, client_id: int = 0, **more) -> ClientUpdate:
    return ClientUpdate(client_id, 1, {**X, "w": (X["w"] + change).astype(np.float32)}, 1, 1, **more)


def test_the_rounding_of_the_broadcast_stays_out_of_the_servers_model() -> None:
    """A client that changes nothing gives back the server's own model, not the rounded one that it was sent."""
    how = Compression(up="int8", down="int8", **SMALL)
    groups = unpack_broadcast(pack_broadcast(SENT, how, 7), how, {"w": (8, 8), "b": (1,), "n": ()})
    received = replace(SENT, weights=groups[WEIGHTS])
    assert not same(received.weights, X)
    parcels, _ = pack_update(ClientUpdate(0, 1, received.weights, 1, 1), received, how, 7, {})
    assert same(unpack_update(parcels, SENT, how)[WEIGHTS], X)


def test_what_is_not_sent_is_sent_later() -> None:
    how = Compression(up="topk", density=1 / 64, feedback=True, **SMALL)
    change = np.zeros((8, 8), np.float32)
    change[0, 0], change[7, 7] = 4.0, 3.0
    parcels, residuals = pack_update(update_of(change), SENT, how, 7, {})
    arrived = unpack_update(parcels, SENT, how)[WEIGHTS]["w"] - X["w"]
    assert (arrived[0, 0], arrived[7, 7]) == (4.0, 0.0)
    assert residuals[WEIGHTS]["w"][7, 7] == 3.0
    parcels, residuals = pack_update(update_of(np.zeros((8, 8))), SENT, how, 7, residuals)
    arrived = unpack_update(parcels, SENT, how)[WEIGHTS]["w"] - X["w"]
    assert (arrived[0, 0], arrived[7, 7]) == (0.0, 3.0)
    assert not residuals[WEIGHTS]["w"].any()


def test_random_rounding_follows_seed_round_and_client_alone() -> None:
    how = Compression(up="int8", **SMALL)
    change = np.random.default_rng(0).normal(size=(8, 8))

    def packed(seed: int = 7, round_index: int = 1, client_id: int = 0) -> bytes:
        parcels, _ = pack_update(update_of(change, client_id), replace(SENT, round_index=round_index), how, seed, {})
        return bytes(parcels[WEIGHTS].data)

    assert packed() == packed()
    assert len({packed(), packed(seed=8), packed(round_index=2), packed(client_id=1)}) == 4


@pytest.mark.parametrize("up", ["lossless", "fp16", "int8", "topk"])
def test_an_array_that_is_not_finite_travels_as_it_is_so_that_the_server_can_name_it(up: str) -> None:
    how = Compression(up=up, feedback=up == "topk", **SMALL)
    before = {WEIGHTS: {"w": np.full((8, 8), 2, np.float32)}}
    for poison in (np.nan, np.inf):
        change = np.zeros((8, 8), np.float32)
        change[3, 3] = poison
        parcels, residuals = pack_update(update_of(change), SENT, how, 7, before)
        assert parcels[WEIGHTS].names == ()
        assert not np.isfinite(unpack_update(parcels, SENT, how)[WEIGHTS]["w"]).all()
        if how.feedback:
            assert same(residuals[WEIGHTS], before[WEIGHTS]), "the next rounds are not poisoned"


@pytest.mark.parametrize(
    "how", [Compression(), Compression("lossless", "lossless", **SMALL), Compression("topk", "fp16", feedback=True, **SMALL)]
)
def test_messages_say_how_they_are_packed_and_are_read_by_the_servers_own_layout(how: Compression) -> None:
    sent = replace(SENT, extras={"control": {"w": X["w"] * 2}, "odd": {"z": np.arange(9.0)}}, scalars={"mu": 0.5})
    content = broadcast_to_content(sent, RUN, how)
    received = content_to_broadcast(content, {"w": (8, 8), "b": (1,), "n": ()})
    assert (received.round_index, received.rule, received.scalars) == (1, "plain", {"mu": 0.5})
    assert ("packed.weights" in content) == ("packed.extra.control" in content) == (how.down != "none")
    assert "packed.extra.odd" not in content
    assert same(received.extras["odd"], sent.extras["odd"])
    update = update_of(np.full((8, 8), 0.25), extras={"control-delta": {"w": X["w"]}})
    parcels, _ = pack_update(update, received, how, RUN.seed, {})
    answer = update_to_content(update, parcels)
    back = content_to_update(answer, None, sent, how)
    assert list(back.weights) == list(X)
    assert set(back.extras) == {"control-delta"}
    if how.up != "topk":
        assert same(back.weights, update.weights)
    if "packed.weights" in answer:
        for key, record in (
            ("names.weights", ConfigRecord({"names": "w"})),
            ("names.weights", ConfigRecord({"names": [1, 2]})),
            ("names.weights", ConfigRecord({})),
            ("names.weights", ConfigRecord({"names": ["n"]})),
            ("packed.weights", ArrayRecord({"other": answer["packed.weights"]["data"]})),  # type: ignore[dict-item,index]
            ("packed.weights", ArrayRecord({})),
        ):
            broken = update_to_content(update, parcels)
            broken[key] = record
            with pytest.raises(UpdateError):
                content_to_update(broken, None, sent, how)
        with pytest.raises(UpdateError, match="nothing has asked for that"):
            content_to_update(answer, None, sent)


def test_a_server_that_speaks_of_unknown_codes_is_understood_as_another_version() -> None:
    for name, value in (("up", "zip"), ("down", "topk"), ("density", 0.0), ("block", 1), ("smallest", 0), ("novel", 1)):
        content = broadcast_to_content(SENT, RUN, Compression("fp16", "fp16"))
        content["compression"][name] = value  # type: ignore[index]
        with pytest.raises(UpdateError, match="use the same version on server and clients"):
            content_to_broadcast(content, {"w": (8, 8)})


def test_what_is_not_sent_lies_beside_what_the_rule_remembers() -> None:
    memory = Memory(arrays={"control": {"w": X["w"]}}, scalars={"a": 1.0})
    assert with_residuals(memory, {}) is memory
    both = with_residuals(memory, {WEIGHTS: {"w": X["w"] * 3}})
    assert same(both.arrays["control"], memory.arrays["control"])
    assert same(residuals_of(both)[WEIGHTS], {"w": X["w"] * 3})
    assert residuals_of(memory) == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compression.up=zip"], "compression.up='zip': expected one of none, lossless, fp16, int8, topk"),
        (["compression.down=topk"], "compression.down='topk': expected one of none, lossless, fp16, int8$"),
        (["compression.density=0"], "compression.density=0"),
        (["compression.block=4"], "compression.block=4"),
        (["compression.smallest=0"], "compression.smallest=0"),
        (["compression.feedback=yes please"], "compression.feedback='yes please'"),
        (["compression.down=fp16"], "compression.down=fp16 with compression.up=none: clients would start from a rounded model"),
        (["compression.feedback=true"], "compression.feedback=true with compression.up=none: there is nothing left out"),
        (["compression=zip"], "compression has no option 'zip'"),
    ],
)
def test_a_contradiction_in_the_configuration_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(compose_and_resolve("config", overrides))


def test_the_options_are_what_they_are_called() -> None:
    for name in ("none", "lossless", "fp16", "int8", "topk"):
        assert parse(compose_and_resolve("config", [f"compression={name}"])).compression.up == name
    tree = compose_and_resolve("config")
    del tree["compression"]  # a run that was stored before there was any
    assert parse(tree).compression == Compression()


def test_algorithms_that_topk_does_not_suit_refuse_it_and_say_what_does() -> None:
    topk = Compression(up="topk", feedback=True)
    check_compression(topk, FedAvg(), "plain")
    check_compression(topk, FlowerAggregator("FedAdam"), "plain")
    for aggregator in (GMA(), FlowerAggregator("FedMedian"), FlowerAggregator("FedTrimmedAvg")):
        with pytest.raises(ConfigError, match="compares the clients number by number.*choose compression=none, lossless, fp16 or int8"):
            check_compression(topk, aggregator, "plain")
        check_compression(Compression(up="int8"), aggregator, "plain")
    for how in (topk, Compression(up="int8", feedback=True)):
        with pytest.raises(ConfigError, match="go on from models of their own"):
            check_compression(how, FedAvg(), "map-prior")
    check_compression(Compression(up="fp16"), FedAvg(), "map-prior")
