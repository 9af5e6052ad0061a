"""What the guard remembers over rounds, as part of the server's checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_ROUNDS = 100  # for which counted updates are remembered
_NORMS = 5  # rounds whose usual norms are remembered


@dataclass(frozen=True)
class Counted:
    """An update that has been counted: whose, in which round, and after which broadcast."""

    client_id: int
    round_index: int
    received: tuple[int, int]


@dataclass(frozen=True)
class GuardState:
    """Frozen; each round makes a new one.

    Attributes:
        rows: by client, the training rows that it first said it has.
        norms: by group of arrays, the usual norm of the last rounds' changes, oldest first.
        directions: by client, how far its changes have pointed along with the others', see `fedmap.guard.comparing.directions`.
        counted: [n, 6] uint64, one row for each update of the last 100 rounds: its digest, that of the broadcast before it (two
            numbers each), the client and the round.
    """

    rows: Mapping[int, int] = field(default_factory=dict)
    norms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    directions: Mapping[int, float] = field(default_factory=dict)
    counted: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 6), np.uint64))

    def find(self, digest: tuple[int, int]) -> list[Counted]:
        """The updates with this digest that have been counted, oldest first."""
        first, second = (np.uint64(half) for half in digest)
        rows = self.counted[(self.counted[:, 0] == first) & (self.counted[:, 1] == second)]
        return [Counted(int(row[4]), int(row[5]), (int(row[2]), int(row[3]))) for row in rows]

    def after(
        self,
        round_index: int,
        received: tuple[int, int],
        digests: Mapping[int, tuple[int, int]],
        norms: Mapping[str, float],
        rows: Mapping[int, int],
        directions: Mapping[int, float],
    ) -> GuardState:
        """The state after a round.

        Args:
            round_index: the round.
            received: the digest of what was broadcast.
            digests: by client, of the updates that were counted.
            norms: by group, the round's usual norm; a group without changes is left out.
            rows: by client, what it says it has.
            directions: see the attribute; clients that are not in it stay as they were.
        """
        new = [(*digest, *received, client_id, round_index) for client_id, digest in sorted(digests.items())]
        kept = self.counted[self.counted[:, 5] + np.uint64(_ROUNDS) > np.uint64(round_index)]
        return GuardState(
            rows={**rows, **self.rows},
            norms={**self.norms, **{group: _last((*self.norms.get(group, ()), value)) for group, value in norms.items()}},
            directions={**self.directions, **directions},
            counted=np.concatenate([kept, np.array(new, np.uint64).reshape(-1, 6)]),
        )


def _last(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(values)[-_NORMS:]
