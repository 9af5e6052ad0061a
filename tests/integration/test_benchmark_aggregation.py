"""The aggregation benchmark's processes: real contestants on a small model, through the pipe."""

from __future__ import annotations

import math

import pytest

from benchmarks import aggregation
from benchmarks.aggregation import PROCESSES, Case, Contestant, report, run
from benchmarks.aggregation_models import SIZES, tensors_of
from benchmarks.harness import Options


@pytest.mark.parametrize(("size", "least", "most"), [("1M", 0.9e6, 1.1e6), ("11.4M", 11.3e6, 11.5e6), ("121M", 120e6, 122e6)])
def test_the_sizes_are_what_they_are_called(size, least, most):
    tensors = tensors_of(size)
    assert least <= sum(math.prod(shape) for shape, dtype in tensors.values() if dtype == "float32") <= most
    assert set(SIZES) >= {size}


@pytest.mark.slow
def test_contestants_answer_and_ours_is_exact(monkeypatch):
    small = {"w": ((300, 50), "float32"), "b": ((50,), "float32"), "count": ((), "int64")}
    monkeypatch.setattr(aggregation, "tensors_of", lambda size: small)
    case = Case("1M", 3, 15050, 4 * 15050)
    processes = [process for process in PROCESSES if process != "peer"]
    run(case, processes, 2, together=True)
    assert {who: len(found) for who, found in case.warm.items()} == dict.fromkeys(
        ("limit", "read", "ours", "parsed", "mixing", "flower"), 2
    )
    assert all(trial["wall"] > 0 for found in case.warm.values() for trial in found)
    assert case.facts["ours"]["exact"]["same"] is True
    assert case.facts["ours"]["exact"]["ulps"] <= 0.5001
    result = report([case], [], Options(True, 1, None))
    stated = {target.name: target for target in result.targets}
    assert math.isnan(stated["1Mx3: fedops with 4 candidates / ours, both from messages, wall"].value), (
        "who did not run has not been beaten"
    )
    assert not stated["1Mx3: fedops with 4 candidates / ours, both from messages, wall"].met


def test_a_contestant_that_dies_says_why(monkeypatch):
    monkeypatch.setattr(aggregation, "tensors_of", lambda size: {"w": ((2,), "no such dtype")})
    with pytest.raises(RuntimeError, match="no such dtype"):
        Contestant("ours", Case("1M", 1, 2, 8))
