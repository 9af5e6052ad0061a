"""A short federation of every strategy on synthetic movies, with the fusion model: a frozen text tower, an image tower with
BatchNorm, rows without text or poster, and clients that miss rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedmap.aggregators.base import expected_form, with_num_clients
from fedmap.aggregators.judge import with_judge
from fedmap.build import build_aggregator, build_data, build_model, prepare_split, training_options
from fedmap.checkpoint import Memories, state_from_bytes, state_to_bytes
from fedmap.config import CONF, compose_and_resolve, parse
from fedmap.data.prepare import prepare
from fedmap.guard import Defence, Ladder
from fedmap.local.client import LocalClient
from fedmap.local.judge import ModelJudge
from fedmap.local.rules import Memory, make_rule
from fedmap.local.tensors import get_weights, layout_of
from fedmap.simulation import simulate

STRATEGIES = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
MODEL = ["model=tiny", "model.freeze_bert=true", "model.vision_norm=batch"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("movies")
    prepare(root=str(root), source="synthetic", num_movies=220, poster_size=[24, 32], missing_text=0.2, missing_image=0.2, plot=False)
    return root


@pytest.fixture(scope="module")
def federation(folder):
    """(options to clients, their data prepared once)."""
    config = parse(compose_and_resolve("config", [*MODEL, f"dataset.root={folder}", "dataset.image_size=32"]))
    data = build_data(config)
    model = build_model(config, data)
    splits = {k: {name: prepare_split(model, split, folder / "cache") for name, split in data.client(k).items()} for k in data.client_ids()}
    initial = get_weights(model)

    def clients(options) -> list[LocalClient]:
        return [LocalClient(k, model, parts, options, seed=1, modality_names=("text", "image")) for k, parts in splits.items()]

    judge = ModelJudge(model, prepare_split(model, data.server()["val"], folder / "cache"), replace(training_options(config), device="cpu"))
    return clients, initial, layout_of(model), judge


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_rounds_and_a_restart(name, federation, tmp_path):
    make_clients, initial, layout, judge = federation
    config = parse(compose_and_resolve("config", [f"strategy={name}", *MODEL]))
    aggregator = with_judge(with_num_clients(build_aggregator(config), 5), judge)
    options = replace(training_options(config), device="cpu", batch_size=16, num_updates=3)
    clients = make_clients(options)
    assert not [key for key in initial if key.startswith("text.") or "text_tower" in key]
    assert [key for key in layout.buffers if initial[key].dtype == np.int64]

    seen = []
    start = aggregator.init(initial, layout)
    state, memories = simulate(aggregator, start, clients, 2, seed=3, clients_per_round=4, on_round=seen.append)
    broadcast = aggregator.broadcast(start)
    ladder = Ladder(Defence(), broadcast, expected_form(aggregator, start, broadcast), start.layout.buffers)
    for update in seen[0].updates:
        ladder.admit(update)
    assert state.round_index == 2
    assert all(np.isfinite(array).all() for array in state.weights.values())
    assert {key: array.dtype for key, array in state.weights.items()} == {key: array.dtype for key, array in initial.items()}

    for k, memory in memories.items():
        Memories(tmp_path / str(k)).keep(2, memory, oldest=1)
    restarted = {k: Memories(tmp_path / str(k)).before(3) for k in memories}
    straight, _ = simulate(aggregator, state, clients, 1, seed=3, clients_per_round=4, memories=memories)
    loaded = state_from_bytes(state_to_bytes(state), type(state))
    resumed, _ = simulate(aggregator, loaded, make_clients(options), 1, seed=3, clients_per_round=4, memories=restarted)
    assert state_to_bytes(resumed) == state_to_bytes(straight)

    broadcast = aggregator.broadcast(state)
    personal = make_rule(broadcast.rule).personal
    for client in clients[:2]:
        own = client.evaluate_round(broadcast, memories.get(client.client_id, Memory()))
        common = client.evaluate_round(broadcast, Memory())
        assert own.logits.shape[0] > 0
        assert np.array_equal(own.logits, common.logits) != (personal and client.client_id in memories)
