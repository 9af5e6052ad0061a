"""Every file of conf/strategy with every way of packing: near the unpacked result, or refused with a sentence before anybody trains."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from benchmarks.wire_scores import PackedClient
from fedmap.aggregators.base import expected_form
from fedmap.compression import Compression
from fedmap.errors import ConfigError
from fedmap.flower.feedback import check_compression, residuals_of
from fedmap.guard import OFF, Ladder, climb
from fedmap.simulation import simulate
from tests.contract.test_strategies import NUM_CLIENTS, STRATEGIES, built, options_of
from tests.toys import net_clients, one_round, same, start

HOW = {
    "lossless": Compression("lossless", "lossless", smallest=4),
    "fp16": Compression("fp16", "fp16", smallest=4),
    "int8": Compression("int8", "fp16", smallest=4, block=8),
    "topk": Compression("topk", "fp16", smallest=4, density=0.5, feedback=True),
}
REFUSE_TOPK = {"bulyan", "fedgma", "fedmap", "fedmedian", "fedtrimmedavg", "gma"}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_with_every_code(name: str, how: str) -> None:
    settings = HOW[how]
    clients = net_clients(replace(options_of(name), num_updates=2), NUM_CLIENTS)
    aggregator = built(name)
    state = start(aggregator, clients)
    rule = aggregator.broadcast(state).rule
    if how == "topk" and name in REFUSE_TOPK:
        with pytest.raises(ConfigError, match="choose compression="):
            check_compression(settings, aggregator, rule)
        return
    check_compression(settings, aggregator, rule)
    plain, _ = simulate(aggregator, state, clients, 2)
    packed = [
        PackedClient(**{field.name: getattr(client, field.name) for field in fields(client)}, settings=settings) for client in clients
    ]
    got, memories = simulate(built(name), state, packed, 2)
    assert got.round_index == 2
    if how == "lossless":
        assert same(got.weights, plain.weights)
    for key, array in plain.weights.items():
        assert (got.weights[key].shape, got.weights[key].dtype) == (array.shape, array.dtype)
        assert np.isfinite(got.weights[key]).all()
        if how == "fp16":  # within two steps of the local optimiser, whose sign may tip where a gradient is all but zero
            np.testing.assert_allclose(got.weights[key], array, rtol=0, atol=0.05)
    kept = {group for memory in memories.values() for group in residuals_of(memory)}
    assert ("weights" in kept) == (how == "topk" and name != "individual")
    updates, _ = one_round(aggregator, state, packed)
    broadcast = aggregator.broadcast(state)
    settled = climb(Ladder(OFF, broadcast, expected_form(aggregator, state, broadcast), state.layout.buffers), updates)
    assert len(settled.updates) == NUM_CLIENTS, settled.refused
