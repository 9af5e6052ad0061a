import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import main
from benchmarks.main_job import arguments, measure
from fedmap.baselines import Arena, MaskedSplit, PooledSplit
from fedmap.config import compose_and_resolve, parse
from fedmap.data.prepare import prepare
from fedmap.demo import shortfalls
from fedmap.history import FinalResults, Scores
from fedmap.local.training import evaluate


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    root = tmp_path_factory.mktemp("movies")
    prepare(root=str(root), source="synthetic", num_movies=150, seed=3, plot=False)
    overrides = ["model=tiny", "dataset.image_size=32", f"dataset.root={root}", "tracking=none", "num_rounds=2", "batch_size=16"]
    return Arena.of(parse(compose_and_resolve("config", overrides)))


@pytest.mark.slow
def test_the_quick_benchmark_runs_and_meets_its_target(tmp_path: Path) -> None:
    out = tmp_path / "main_job.json"
    assert main("main_job", measure, seeds=3, arguments=arguments, argv=["--quick", "--check", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["figures"]["federated.tuned.macro_f1"]["median"] > content["figures"]["untrained.tuned.macro_f1"]["median"]
    assert str(tmp_path) not in out.read_text()


def test_pooled_rows_score_as_their_parts_together(arena: Arena) -> None:
    parts = [splits["train"] for splits in arena.clients.values()]
    pooled = PooledSplit(parts)
    assert len(pooled) == sum(map(len, parts))
    whole = evaluate(arena.model, pooled, arena.options)
    counts = [evaluate(arena.model, part, arena.options).counts for part in parts]
    assert whole.counts == sum(counts[1:], counts[0])
    order = np.random.default_rng(0).permutation(len(pooled))
    assert np.array_equal(pooled.batch(order)["labels"].numpy().astype(np.uint8), pooled.labels[order])


def test_a_masked_split_hides_the_other_modality(arena: Arena) -> None:
    split = MaskedSplit(arena.server["test"], "text", arena.modality_names)
    batch = split.batch(np.arange(4))
    assert bool(batch["has_text"].all())
    assert not bool(batch["has_image"].any())
    assert split.modalities[:, 0].all()
    assert not split.modalities[:, 1].any()
    other = batch | {"image": 255 - batch["image"]}
    assert arena.model.eval()(batch).equal(arena.model(other))


def test_every_method_starts_from_the_same_weights_and_repeats(arena: Arena) -> None:
    before = arena.untrained()
    first, second = arena.federated(), arena.federated()
    assert first == second
    assert arena.untrained() == before
    assert len(first.clients) == 5
    assert arena.central().chosen_round in (1, 2)


def test_the_demonstration_names_what_is_not_as_good_as_it_must_be() -> None:
    def result(macro: float) -> FinalResults:
        return FinalResults(1, test_tuned=Scores(macro, macro, macro, macro, 10))

    good = {"federated": result(0.5), "central": result(0.54), "untrained": result(0.3), "most frequent": result(0.1)}
    assert shortfalls(good) == []
    assert len(shortfalls(good | {"untrained": result(0.36)})) == 1
    assert len(shortfalls(good | {"federated": result(0.2)})) == 3
