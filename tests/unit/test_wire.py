"""Records to messages and back; malformed messages are refused with a reason."""

import io
import pickle

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmap.errors import UpdateError
from fedmap.flower.parcels import arrays_to_record, record_to_arrays
from fedmap.flower.wire import (
    ClientCard,
    RunInfo,
    broadcast_to_content,
    card_to_content,
    content_to_broadcast,
    content_to_card,
    content_to_counts,
    content_to_run,
    content_to_update,
    counts_to_content,
    problem_to_content,
    run_to_content,
    update_to_content,
)
from fedmap.metrics import MultilabelCounts
from fedmap.records import Broadcast, ClientSignals, ClientUpdate
from tests.toys import same

RUN = RunInfo("2026-01-31_12-00-00", seed=42, num_rounds=3, final=True)
COUNTS = MultilabelCounts.of([[1, 0], [1, 1]], [[1, 1], [0, 1]])
WEIGHTS = {
    "zulu.weight": np.array([[1.5, -0.0], [np.float32(1e-45), 3e38]], np.float32),
    "alpha.num_batches_tracked": np.array(2**40, np.int64),
    "half": np.array([1, 2], np.float16),
    "double": np.array([1 / 3]),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}
UPDATE = ClientUpdate(
    client_id=3,
    round_index=2,
    weights=WEIGHTS,
    num_examples=17,
    num_steps=4,
    signals=ClientSignals(f1_after=0.0, train_loss=0.25, modality_shares={"text": 1.0, "image": 0.5}, custom={"battery": 0.8}),
    extras={"control-delta": {"w": np.float32([1, 2])}, "last-gradient": {"w": np.float32([3])}},
    scalars={"log-likelihood": -1.5},
    counts={"val-before": COUNTS, "val-after": COUNTS + COUNTS},
    seconds={"train": 1.25},
)


def over_the_wire(content: RecordDict) -> RecordDict:
    """Through Flower's own bytes, as between two machines."""
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
    from flwr.proto.recorddict_pb2 import RecordDict as Proto

    return recorddict_from_proto(Proto.FromString(recorddict_to_proto(content).SerializeToString()))


def test_an_update_comes_back_as_it_was() -> None:
    back = content_to_update(over_the_wire(update_to_content(UPDATE)))
    assert same(back.weights, WEIGHTS)
    assert back.extras.keys() == UPDATE.extras.keys()
    assert all(same(back.extras[group], UPDATE.extras[group]) for group in UPDATE.extras)
    for name in ("client_id", "round_index", "num_examples", "num_steps", "signals", "scalars", "counts", "seconds"):
        assert getattr(back, name) == getattr(UPDATE, name), name


def test_signals_that_were_not_measured_stay_unknown_and_zero_stays_zero() -> None:
    signals = content_to_update(over_the_wire(update_to_content(UPDATE))).signals
    assert signals.f1_before is None
    assert signals.validation_loss is None
    assert signals.f1_after == 0.0


def test_a_broadcast_comes_back_as_it_was() -> None:
    sent = Broadcast(
        round_index=5,
        weights=WEIGHTS,
        rule="proximal",
        extras={"control": {"w": np.float32([1])}},
        scalars={"mu": 0.01, "steps": 3, "warm": True, "likelihood": "mean"},
    )
    content = over_the_wire(broadcast_to_content(sent, RUN))
    back = content_to_broadcast(content)
    assert same(back.weights, sent.weights)
    assert same(back.extras["control"], sent.extras["control"])
    assert (back.round_index, back.rule, back.scalars) == (5, "proximal", sent.scalars)
    assert {name: type(value) for name, value in back.scalars.items()} == {"mu": float, "steps": int, "warm": bool, "likelihood": str}
    assert content_to_run(content) == RUN


def test_run_card_and_counts_come_back_as_they_were() -> None:
    assert content_to_run(over_the_wire(run_to_content(RUN))) == RUN
    card = ClientCard(0, 10, 0, 2, ("Drama", "Sci-Fi"), {"text": 1.0, "image": 0.25}, ("a.weight", "b"), "abc")
    assert content_to_card(over_the_wire(card_to_content(card))) == card
    assert content_to_counts(over_the_wire(counts_to_content(4, {"test": COUNTS}))) == (4, {"test": COUNTS})


def test_a_card_without_modalities_or_tensors() -> None:
    card = ClientCard(0, 1, 0, 0, (), {}, ())
    assert content_to_card(over_the_wire(card_to_content(card))) == card


floats = st.floats(allow_nan=True, allow_infinity=True)
arrays = st.one_of(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), elements=st.floats(width=32)),
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_dims=2, max_side=3)),
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3), elements=floats),
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays, max_size=4))
def test_any_named_arrays_come_back_bit_for_bit_and_in_order(weights: dict[str, np.ndarray]) -> None:
    back = record_to_arrays(over_the_wire(RecordDict({"weights": arrays_to_record(weights)})).array_records["weights"])
    assert list(back) == list(weights)
    assert same(back, weights)


def test_a_clients_problem_is_raised_with_its_own_words() -> None:
    content = over_the_wire(problem_to_content(2, FileNotFoundError("dataset/client_2/train.csv is missing")))
    for read in (content_to_update, content_to_card, content_to_counts):
        with pytest.raises(UpdateError, match="FileNotFoundError: dataset/client_2/train.csv is missing"):
            read(content)


def broken(key: str, record: object = None) -> RecordDict:
    """The update's message without one record, or with another one in its place."""
    content = update_to_content(UPDATE)
    del content[key]
    if record is not None:
        content[key] = record  # type: ignore[assignment]
    return content


CLIENT = {"client-id": 3, "round-index": 2, "num-examples": 17, "num-steps": 4}


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        broken("weights"),
        broken("client"),
        broken("signals"),
        broken("scalars"),
        broken("seconds"),
        broken("weights", MetricRecord({"w": 1.0})),
        broken("client", ConfigRecord({k: v for k, v in CLIENT.items() if k != "num-steps"})),
        broken("client", ConfigRecord({**CLIENT, "num-examples": 0})),
        broken("client", ConfigRecord({**CLIENT, "num-examples": -5})),
        broken("client", ConfigRecord({**CLIENT, "num-examples": 2.5})),
        broken("client", ConfigRecord({**CLIENT, "num-examples": "many"})),
        broken("client", ConfigRecord({**CLIENT, "num-steps": True})),
        broken("client", ConfigRecord({**CLIENT, "client-id": -1})),
        broken("signals", MetricRecord({"train-loss": [0.1, 0.2]})),
        broken("scalars", MetricRecord({"log-likelihood": [0.1]})),
        broken("scalars", MetricRecord({"log-likelihood": float("nan")})),
        broken("counts.val-after", MetricRecord({"tp": [1], "fp": [0], "fn": [0], "samples": [0, 0, 1]})),
        broken("counts.val-after", MetricRecord({"tp": [1.0], "fp": [0.0], "fn": [0.0], "samples": [1.0, 0.0, 1.0]})),
        broken("counts.val-after", MetricRecord({"tp": 1})),
    ],
)
def test_a_malformed_update_is_refused(content: RecordDict) -> None:
    with pytest.raises(UpdateError):
        content_to_update(content)


def test_arrays_that_are_no_arrays_are_refused() -> None:
    content = update_to_content(UPDATE)
    record = content.array_records["weights"]
    array = record["half"]
    archive = io.BytesIO()
    np.savez(archive, half=np.zeros(2))
    for data in (b"no npy file", array.data[:-1], b"", archive.getvalue()):
        content["weights"] = ArrayRecord({"half": Array(dtype="float16", shape=(2,), stype=array.stype, data=data)})
        with pytest.raises(UpdateError, match="array 'half' cannot be read"):
            content_to_update(content)


def test_pickled_objects_are_never_loaded() -> None:
    """An .npy payload of dtype object holds a pickle, which could run code on the server."""

    class Bomb:
        def __reduce__(self) -> object:
            return (pytest.fail, ("the payload's code has run",))

    buffer = io.BytesIO()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    buffer.write(header.getvalue() + pickle.dumps([Bomb()]))
    content = update_to_content(UPDATE)
    stype = content.array_records["weights"]["half"].stype
    content["weights"] = ArrayRecord({"w": Array(dtype="object", shape=(1,), stype=stype, data=buffer.getvalue())})
    with pytest.raises(UpdateError, match="array 'w' cannot be read"):
        content_to_update(content)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"client": ConfigRecord({"client-id": 1})}),
        RecordDict({"client": MetricRecord({"client-id": 1})}),
        RecordDict(
            {
                "client": ConfigRecord(
                    {**dict(card_to_content(ClientCard(0, 1, 0, 0, ("a",), {"t": 1.0}, ()))["client"]), "modality-shares": [0.5, 0.5]}
                )
            }
        ),
        RecordDict(
            {"client": ConfigRecord({**dict(card_to_content(ClientCard(0, 1, 0, 0, ("a",), {"t": 1.0}, ()))["client"]), "num-train": "x"})}
        ),
    ],
)
def test_a_malformed_card_is_refused(content: RecordDict) -> None:
    with pytest.raises(UpdateError, match="first question is malformed"):
        content_to_card(content)


def test_malformed_counts_are_refused() -> None:
    for content in (RecordDict(), RecordDict({"client": ConfigRecord({"client-id": 1}), "counts.test": MetricRecord({"tp": [1]})})):
        with pytest.raises(UpdateError, match="malformed evaluation reply"):
            content_to_counts(content)


def test_keys_on_the_wire_are_kebab_case() -> None:
    content = update_to_content(UPDATE)
    words = [key for record in ("client", "signals") for key in content[record]] + list(run_to_content(RUN)["round"])
    assert not [word for word in words if "_" in word]


def test_counts_of_another_number_of_labels_are_refused_before_memory_is_taken() -> None:
    content = over_the_wire(update_to_content(UPDATE))
    labels = len(UPDATE.counts["val-after"].tp)
    assert content_to_update(content, labels).counts == UPDATE.counts
    with pytest.raises(UpdateError, match=f"counts {labels} labels, expected {labels + 1}"):
        content_to_update(content, labels + 1)
