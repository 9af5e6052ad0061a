"""Updates that wait in a file are the ones that came, and the file goes with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedmap.aggregators.fedavg import FedAvg
from fedmap.errors import StorageError
from fedmap.records import ClientUpdate
from fedmap.spill import Spill

WEIGHTS = {
    "w": np.arange(5000, dtype=np.float32).reshape(50, 100),
    "turned": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "count": np.array(3, dtype=np.int64),
    "empty": np.zeros((0, 4), np.float32),
}


def update(client_id):
    weights = {name: array + array.dtype.type(client_id) for name, array in WEIGHTS.items()}
    return ClientUpdate(client_id, 1, weights, 10 + client_id, 1, extras={"control-delta": {"w": weights["w"] * 2}, "none": {}})


def test_what_comes_back_is_what_was_kept(tmp_path):
    spill = Spill(tmp_path, expected=10**6, limit=0)
    sent = [update(k) for k in range(3)]
    kept = [spill.keep(each) for each in sent]
    for before, after in zip(sent, kept, strict=True):
        assert replace(after, weights={}, extras={}) == replace(before, weights={}, extras={})
        for left, right in ((before.weights, after.weights), *((before.extras[g], after.extras[g]) for g in before.extras)):
            assert list(left) == list(right)
            for name, array in left.items():
                assert (array.dtype, array.shape) == (right[name].dtype, right[name].shape)
                np.testing.assert_array_equal(array, right[name])
                assert right[name].flags.aligned
                assert right[name].size == 0 or not right[name].flags.writeable
    method = FedAvg()
    state = method.init(WEIGHTS)
    expected, _ = method.aggregate(state, sent)
    spill.close()
    found, _ = method.aggregate(state, kept)  # what is in use stays
    assert all(expected.weights[name].tobytes() == array.tobytes() for name, array in found.weights.items())


def test_little_stays_in_memory(tmp_path):
    sent = update(0)
    assert Spill(tmp_path, expected=1000, limit=1000).keep(sent) is sent


def test_the_file_has_no_name(tmp_path):
    spill = Spill(tmp_path, expected=10**6, limit=0)
    spill.keep(update(0))
    assert list(tmp_path.iterdir()) == []
    spill.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"absent: the round's updates, 1\.0 GiB in all, cannot be kept there .*clients_per_round"):
        Spill(tmp_path / "absent", expected=2**30, limit=0).keep(update(0))
