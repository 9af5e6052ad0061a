"""What a stranger's message may hold: bytes are counted and headers compared before anything is made of them."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedmap.errors import UpdateError
from fedmap.flower.wire import content_to_update, problem_to_content, update_to_content
from fedmap.guard import Form
from fedmap.records import Broadcast, ClientUpdate

SENT = Broadcast(1, {"w": np.ones((2, 3), np.float32), "n": np.array(3)})
UPDATE = ClientUpdate(0, 1, dict(SENT.weights), num_examples=4, num_steps=1, extras={"delta": {"w": SENT.weights["w"]}})
FORM = Form.of(SENT.weights, extras={"delta": {"w": SENT.weights["w"]}})


def refused(content: RecordDict, code: str, **limits: int) -> str:
    with pytest.raises(UpdateError) as caught:
        content_to_update(content, None, SENT, form=FORM, **limits)
    assert caught.value.code == code
    return str(caught.value)


def test_a_fitting_message_is_read_over_its_own_bytes() -> None:
    back = content_to_update(update_to_content(UPDATE), None, SENT, form=FORM)
    assert back.weights["w"].tobytes() == SENT.weights["w"].tobytes()
    assert not back.weights["w"].flags.writeable, "no copy was made"
    assert int(back.weights["n"]) == 3


def test_a_header_that_claims_a_petabyte_takes_no_memory() -> None:
    content = update_to_content(UPDATE)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**15,)})
    stype = content.array_records["weights"]["w"].stype
    huge = Array(dtype="float32", shape=(2, 3), stype=stype, data=header.getvalue())
    content["weights"] = ArrayRecord({"w": huge, "n": content.array_records["weights"]["n"]})
    assert "w is float32[1000000000000000], expected float32[2, 3]" in refused(content, "shape")


def test_more_bytes_than_the_model_takes_are_refused_unread() -> None:
    content = update_to_content(UPDATE)
    stype = content.array_records["weights"]["w"].stype
    content["weights"] = ArrayRecord({"w": Array(dtype="float32", shape=(2, 3), stype=stype, data=b"x" * (2 << 20))})
    assert "raise defence.max_bytes" in refused(content, "size")
    refused(update_to_content(UPDATE), "size", max_bytes=100)
    many = update_to_content(UPDATE)
    many["signals"] = MetricRecord({f"custom.{i:06d}": 1.0 for i in range(60_000)})
    refused(many, "size")


def test_unknown_and_missing_arrays_and_groups_are_refused_before_they_are_read() -> None:
    refused(update_to_content(replace(UPDATE, extras={})), "names")
    refused(update_to_content(replace(UPDATE, extras={**UPDATE.extras, "more": {}})), "names")
    refused(update_to_content(replace(UPDATE, weights={**UPDATE.weights, "x": np.zeros(1)})), "names")


def test_a_problem_is_told_from_a_broken_update_and_cut_short() -> None:
    assert len(refused(problem_to_content(0, RuntimeError("no data " * 2000)), "problem")) <= 2000
    refused(RecordDict(), "malformed")
    refused(RecordDict({"problem": MetricRecord({"kind": 1.0})}), "malformed")
