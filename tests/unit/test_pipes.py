"""Messages between processes of one machine."""

import pickle
from multiprocessing import Pipe
from threading import Thread

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from fedmap.flower.parcels import LateArray, arrays_to_record, size_of
from fedmap.flower.pipes import receive, send


def test_what_was_sent_arrives() -> None:
    ours, theirs = Pipe()
    large = bytes(range(256)) * 4096
    thing = {"large": [large, large, large + b"1"], "small": b"abc", "empty": b"", "number": 1, "text": "x" * 100_000}
    sender = Thread(target=send, args=(ours, thing))
    sender.start()
    assert receive(theirs) == thing
    sender.join()
    for value in (None, b"x" * (1 << 16), ()):
        sender = Thread(target=send, args=(theirs, value))
        sender.start()
        assert receive(ours) == value
        sender.join()
    ours.close()
    theirs.close()


def test_a_closed_end_is_an_end() -> None:
    ours, theirs = Pipe()
    ours.send_bytes(b"\2\0\0\0")
    ours.send_bytes(b"one of two")
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)
    theirs.close()


def test_a_large_array_whose_bytes_are_made_late_is_like_any_other() -> None:
    weights = {"large": np.arange(1 << 19, dtype=np.float32), "small": np.arange(3)}
    late, made = (
        RecordDict({"weights": arrays_to_record(weights)}),
        RecordDict({"weights": ArrayRecord({name: Array(array) for name, array in weights.items()})}),
    )
    record = late["weights"]
    assert isinstance(record, ArrayRecord)
    assert [type(record[name]) for name in weights] == [LateArray, Array]
    ours, theirs = Pipe()
    sender = Thread(target=send, args=(ours, late))
    sender.start()
    for found in (receive(theirs), pickle.loads(pickle.dumps(late))):
        assert type(found["weights"]["large"]) is Array
        assert {name: array.data for name, array in found["weights"].items()} == {n: a.data for n, a in record.items()}
        assert {name: size_of(array) for name, array in record.items()} == {n: len(a.data) for n, a in found["weights"].items()}
    sender.join()
    assert late.object_id == made.object_id, "a SuperLink is sent the same objects"
