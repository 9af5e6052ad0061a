"""Random draws depend on (seed, round, client, purpose) and on nothing else."""

import numpy as np
import pytest
import torch

from fedmap.randomness import derive_seed, generator, sample_clients, torch_seed


def test_each_part_of_the_key_changes_the_seed() -> None:
    base = {"purpose": "batches", "round_index": 1, "client_id": 0}
    keys = [{**base, **change} for change in ({}, {"purpose": "train"}, {"round_index": 2}, {"client_id": 1}, {"client_id": -1})]
    seeds = [derive_seed(seed, **key) for seed in (0, 1) for key in keys]  # type: ignore[arg-type]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_digit_cannot_move_from_one_part_of_the_key_to_the_next() -> None:
    assert derive_seed(1, purpose="x", round_index=12, client_id=3) != derive_seed(1, purpose="x", round_index=1, client_id=23)
    assert derive_seed(11, purpose="x", round_index=2) != derive_seed(1, purpose="x", round_index=12)


def test_the_derivation_never_changes_between_versions() -> None:
    """blake2b("42/3/1/batches", 8 bytes, little endian) without its lowest bit: runs of older versions stay repeatable."""
    assert derive_seed(42, purpose="batches", round_index=3, client_id=1) == 3303932824733382946


def test_neighbouring_keys_give_unrelated_streams() -> None:
    draws = np.stack([generator(0, purpose="x", round_index=r).normal(size=2000) for r in range(20)])
    correlation = np.corrcoef(draws) - np.eye(20)
    assert np.abs(correlation).max() < 0.12  # 5 standard deviations of 1/sqrt(2000)


def test_sampling_is_a_function_of_seed_round_and_set() -> None:
    chosen = sample_clients(7, 3, [5, 1, 9, 4, 2], 3)
    assert chosen == sample_clients(7, 3, [2, 4, 9, 1, 5, 5], 3)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 3
    assert set(chosen) <= {1, 2, 4, 5, 9}
    assert len({tuple(sample_clients(7, r, range(10), 3)) for r in range(30)}) > 15, "rounds draw anew"
    assert len({tuple(sample_clients(s, 3, range(10), 3)) for s in range(30)}) > 15, "seeds draw anew"


def test_sampling_leaves_numpys_and_torchs_global_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sample_clients(0, 1, range(10), 3)
    with torch_seed(0, purpose="x"):
        torch.rand(10)
    assert torch.equal(torch.rand(3), expected)


def test_every_client_gets_its_turn_about_as_often() -> None:
    """1,000 rounds of 3 out of 10: each client expects 300 turns, standard deviation sqrt(1000 * .3 * .7) = 14.5."""
    turns = np.zeros(10)
    for round_index in range(1000):
        turns[sample_clients(1, round_index, range(10), 3)] += 1
    assert turns.sum() == 3000
    assert np.abs(turns - 300).max() < 5 * 14.5


@pytest.mark.parametrize("count", [0, 4, 9])
def test_no_limit_or_a_large_one_takes_everybody(count: int) -> None:
    assert sample_clients(0, 1, [3, 0, 2, 1], count) == [0, 1, 2, 3]


def test_nobody_to_choose_from() -> None:
    assert sample_clients(0, 1, [], 3) == []


def test_torch_draws_depend_on_the_key_inside_the_block_alone() -> None:
    def draw(seed: int, client_id: int) -> list[float]:
        with torch_seed(seed, purpose="train", round_index=1, client_id=client_id):
            return torch.rand(4).tolist()

    first = draw(0, 0)
    torch.rand(17)
    assert draw(0, 0) == first
    assert draw(0, 1) != first
    assert draw(1, 0) != first
