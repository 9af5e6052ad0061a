"""Partitions are disjoint, complete, reproducible, independent of the order of rows, and leave no client empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmap.data.modality import draw_missing
from fedmap.data.partition import POLICIES, Policy, apportion, partition, stratified_split
from fedmap.errors import ConfigError


def _table(n: int, num_labels: int, seed: int) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, num_labels)) < rng.uniform(0.05, 0.5, num_labels)).astype(np.uint8)
    labels[np.arange(n), rng.integers(num_labels, size=n)] = 1
    return [f"m{i:05d}.jpg" for i in rng.permutation(10 * n)[:n]], labels


def _policy(name: str, clients: int, alpha: float = 1.0, min_rows: int = 1) -> Policy:
    return Policy(name, clients, tuple(float(k + 1) for k in range(clients)), alpha, labels_per_client=2, min_rows=min_rows)


tables = st.builds(_table, n=st.integers(40, 150), num_labels=st.integers(2, 7), seed=st.integers(0, 2**32 - 1))


@given(tables, st.sampled_from(POLICIES), st.integers(1, 5), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_every_row_goes_to_exactly_one_client_and_nobody_is_empty(table, name, clients, seed):
    ids, labels = table
    parts = partition(ids, labels, _policy(name, clients), seed)
    assert len(parts) == clients
    assert sorted(np.concatenate(parts)) == list(range(len(ids)))
    assert min(len(part) for part in parts) >= 1


@given(tables, st.sampled_from(POLICIES), st.integers(0, 999), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_rows_does_not_matter(table, name, seed, random):
    ids, labels = table
    order = list(range(len(ids)))
    random.shuffle(order)
    shuffled = [ids[i] for i in order]
    first = partition(ids, labels, _policy(name, 3), seed)
    second = partition(shuffled, labels[order], _policy(name, 3), seed)
    assert [[ids[i] for i in part] for part in first] == [[shuffled[i] for i in part] for part in second]
    split = stratified_split(ids, labels, (0.7, 0.1, 0.2), seed, "x")
    again = stratified_split(shuffled, labels[order], (0.7, 0.1, 0.2), seed, "x")
    assert [[ids[i] for i in part] for part in split] == [[shuffled[i] for i in part] for part in again]


@given(tables, st.sampled_from([name for name in POLICIES if name != "proportions"]))
@settings(max_examples=20, deadline=None)
def test_another_seed_gives_another_partition(table, name):
    ids, labels = table
    results = {tuple(tuple(part) for part in partition(ids, labels, _policy(name, 3), seed)) for seed in range(4)}
    assert len(results) > 1


@given(tables, st.lists(st.floats(0.05, 1), min_size=2, max_size=4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_stratified_split_has_the_exact_sizes_and_every_row_once(table, shares, seed):
    ids, labels = table
    shares = np.array(shares) / sum(shares)
    parts = stratified_split(ids, labels, shares, seed, "x")
    assert sorted(np.concatenate(parts)) == list(range(len(ids)))
    assert [len(part) for part in parts] == apportion(len(ids), shares).tolist()


@given(st.integers(0, 500), st.lists(st.floats(0, 10), min_size=1, max_size=8).filter(lambda s: sum(s) > 1e-3))
def test_apportioned_rows_add_up_and_stay_near_their_shares(n, shares):
    sizes = apportion(n, shares)
    assert sizes.sum() == n
    assert sizes.min() >= 0
    positive = np.array(shares) > 0
    if n >= 100 * len(shares):
        assert np.all(sizes[positive] >= 1)
        assert np.abs(sizes - n * np.array(shares) / sum(shares)).max() <= len(shares)


@given(st.integers(2, 80), st.floats(0, 0.5), st.floats(0, 0.49), st.integers(0, 99))
def test_no_row_loses_both_modalities_and_the_rates_are_met(n, missing_text, missing_image, seed):
    lost = round(missing_text * n), round(missing_image * n)
    full = np.ones(n, dtype=bool)
    if sum(lost) > n:
        with pytest.raises(ConfigError, match="no row may lose both"):
            draw_missing(full, full, missing_text, missing_image, seed=seed, client_id=0)
        return
    text, image = draw_missing(full, full, missing_text, missing_image, seed=seed, client_id=0)
    assert np.all(text | image)
    assert ((~text).sum(), (~image).sum()) == lost


def test_proportions_are_exact():
    ids, labels = _table(2000, 5, 0)
    parts = partition(ids, labels, Policy(), 42)
    assert [len(part) for part in parts] == [700, 200, 300, 400, 400]


def _label_distance(parts, labels) -> float:
    shares = np.array([labels[part].sum(0) / labels[part].sum() for part in parts])
    return float(np.abs(shares - labels.sum(0) / labels.sum()).sum(1).mean())


def test_each_policy_skews_what_it_names():
    rng = np.random.default_rng(1)
    labels = np.eye(6, dtype=np.uint8)[rng.integers(6, size=3000)]
    ids = [f"{i:05d}" for i in range(3000)]
    deal = {
        name: partition(ids, labels, Policy(name, 5, alpha=alpha, labels_per_client=2), 3)
        for name, alpha in (("iid", 1.0), ("dirichlet", 0.3), ("quantity", 0.3), ("label_skew", 1.0))
    }
    deal["mild"] = partition(ids, labels, Policy("dirichlet", 5, alpha=100.0), 3)
    skew = {name: _label_distance(parts, labels) for name, parts in deal.items()}
    sizes = {name: np.std([len(part) for part in parts]) for name, parts in deal.items()}
    assert skew["iid"] < 0.15
    assert skew["quantity"] < 0.25
    assert skew["mild"] < 0.25
    assert skew["dirichlet"] > 0.5
    assert skew["label_skew"] > 0.8
    assert sizes["iid"] == 0
    assert sizes["quantity"] > 300
    # With one label each and every label owned, a client of label skew sees its own labels only.
    assert all((labels[part].any(0)).sum() <= 2 for part in deal["label_skew"])


def test_a_stratified_split_keeps_rare_labels_in_proportion():
    labels = np.zeros((1000, 3), dtype=np.uint8)
    labels[:, 0] = 1
    labels[:100, 1] = 1
    labels[:10, 2] = 1
    parts = stratified_split([f"{i:04d}" for i in range(1000)], labels, (0.7, 0.1, 0.2), 0, "x")
    assert [labels[part].sum(0).tolist() for part in parts] == [[700, 70, 7], [100, 10, 1], [200, 20, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "diriclet"}, "policy='diriclet' is unknown; expected one of proportions, iid"),
        ({"clients": 0}, "at least 1 client"),
        ({"clients": 3}, "5 proportions for 3 clients"),
        ({"proportions": (1.0, 0.0, 1.0, 1.0, 1.0)}, "must all be positive"),
        ({"alpha": 0.0}, "alpha=0.0 must be positive"),
        ({"alpha": float("nan")}, "must be positive"),
        ({"labels_per_client": 0}, "labels_per_client=0"),
        ({"min_rows": 0}, "a client without rows cannot train"),
    ],
)
def test_a_bad_policy_says_what_is_wrong(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Policy(**arguments)


def test_impossible_minimum_rows_say_how_to_mend_it():
    ids, labels = _table(40, 3, 0)
    with pytest.raises(ConfigError, match=r"40 rows cannot give 5 clients at least 10 each; take fewer clients"):
        partition(ids, labels, Policy(), 0)
    ids, labels = _table(100, 3, 0)
    with pytest.raises(ConfigError, match=r"policy=proportions leaves a client with 10 of 100 rows, but min_rows=12; take more even"):
        partition(ids, labels, Policy(min_rows=12), 0)
    one = np.ones((60, 1), dtype=np.uint8)
    with pytest.raises(ConfigError, match=r"policy=dirichlet leaves a client with \d+ of 60 rows.*larger alpha"):
        partition([str(i) for i in range(60)], one, Policy("dirichlet", 5, alpha=0.01), 0)


def test_repeated_row_ids_are_refused():
    with pytest.raises(ConfigError, match="must differ"):
        partition(["a", "a"], np.ones((2, 1), dtype=np.uint8), Policy("iid", 1, min_rows=1), 0)
