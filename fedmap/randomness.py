"""Random generators from (seed, round, client, purpose), so that no part of a run depends on another's draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np


def derive_seed(seed: int, *, purpose: str, round_index: int = 0, client_id: int = -1) -> int:
    """A 63-bit seed for one purpose, one round and one client (-1 is the server).

    The derivation hashes its arguments, so that neighbouring seeds, rounds and clients give unrelated streams.
    """
    key = f"{int(seed)}/{int(round_index)}/{int(client_id)}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *, purpose: str, round_index: int = 0, client_id: int = -1) -> np.random.Generator:
    """A NumPy generator for one purpose, one round and one client; see `derive_seed`."""
    return np.random.default_rng(derive_seed(seed, purpose=purpose, round_index=round_index, client_id=client_id))


@contextmanager
def torch_seed(seed: int, *, purpose: str, round_index: int = 0, client_id: int = -1) -> Iterator[None]:
    """Seed torch's global generators (dropout, initialisation) inside the block and restore them afterwards."""
    import torch

    derived = derive_seed(seed, purpose=purpose, round_index=round_index, client_id=client_id)
    if torch.accelerator.is_available():
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(derived)
            yield
        return
    before = torch.get_rng_state()  # torch.manual_seed also seeds devices that are not there, and takes a traceback for each
    torch.default_generator.manual_seed(derived)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def sample_clients(seed: int, round_index: int, client_ids: Sequence[int], count: int) -> list[int]:
    """`count` of the clients without replacement, sorted; a function of (seed, round, the set of clients) alone.

    All clients are returned when `count` is 0 or not less than their number.
    """
    pool = sorted(set(client_ids))
    if count <= 0 or count >= len(pool):
        return pool
    rng = generator(seed, purpose="sample-clients", round_index=round_index)
    return sorted(int(pool[i]) for i in rng.choice(len(pool), size=count, replace=False))
