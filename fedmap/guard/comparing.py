"""The steps that need the round's other updates: changes much larger than usual, replays, and changes against all others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedmap.guard.options import Defence
from fedmap.guard.state import GuardState
from fedmap.records import ClientUpdate
from fedmap.weights import Array, Weights, add_scaled, difference, is_float, norm, zeros_like

ENOUGH = 3  # clients whose median means something: of two nobody can tell which one is wrong
_ABSURD = 1e6  # times the size of the model itself: refused even where nothing is known of what is usual
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Large:
    """A change that is too large.

    Attributes:
        sentence: for people.
        scales: by group, what it is multiplied by, in (0, 1); empty where it is refused.
    """

    sentence: str
    scales: Mapping[str, float]

    @property
    def refused(self) -> bool:
        """Whether it cannot be used at all."""
        return not self.scales


def usual_norms(norms: Iterable[Mapping[str, float]], least: int = 1) -> dict[str, float]:
    """By group of arrays, the median norm of the clients' changes; of an even number the lower one, so that half cannot raise it.

    Clients that changed nothing say nothing of what is usual.

    Args:
        norms: of each client, by group.
        least: groups that fewer clients changed are left out, >= 1.
    """
    found: dict[str, list[float]] = {}
    for own in norms:
        for group, value in own.items():
            if 0 < value < math.inf:
                found.setdefault(group, []).append(value)
    return {group: statistics.median_low(values) for group, values in found.items() if len(values) >= least}


def reference_norms(norms: Iterable[Mapping[str, float]], before: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """What a round's changes are measured by: the round's own median; that of the last rounds where too few clients changed anything.

    Args:
        norms: of each client, by group.
        before: by group, what was usual in the last rounds.
    """
    earlier = {group: statistics.median_low(values) for group, values in before.items() if values}
    return {**earlier, **usual_norms(norms, ENOUGH)}


def too_large(
    norms: Mapping[int, Mapping[str, float]], usual: Mapping[str, float], received: Weights, defence: Defence
) -> dict[int, Large]:
    """The clients whose change is larger than `norm_factor` times the usual one, in any group of arrays."""
    if defence.norm == "off":
        return {}
    absurd = _ABSURD * (1 + norm(received))
    found = {}
    for client_id, own in norms.items():
        scales, sentences, hopeless = {}, [], False
        for group, value in own.items():
            what = f"client {client_id}: its change{f' of {group}' if group else ''}"
            if value > absurd:
                hopeless = True
                sentences.append(f"{what} has norm {value:.3g}, which no training reaches")
            elif group in usual and value > defence.norm_factor * usual[group]:
                scales[group] = defence.norm_factor * usual[group] / value
                sentences.append(
                    f"{what} is {value / usual[group]:.3g} times as large as usual, at most {defence.norm_factor:g} times is taken"
                )
        if hopeless or (scales and defence.norm == "reject"):
            found[client_id] = Large("; ".join(sentences), {})
        elif scales:
            found[client_id] = Large("; ".join(sentences), scales)
    return found


def scaled(update: ClientUpdate, scales: Mapping[str, float], received: Weights, buffers: Collection[str]) -> ClientUpdate:
    """The update with its changes scaled down."""
    weights: Mapping[str, Array] = update.weights
    for group, names in (
        ("", [name for name in weights if name not in buffers]),
        ("buffers", [name for name in weights if name in buffers]),
    ):
        if group in scales:
            own = {name: weights[name] for name in names}
            change = difference(own, received)
            weights = {**weights, **add_scaled({name: received[name] for name in change}, change, scales[group])}
    extras = {group: _times(arrays, scales.get(f"extra.{group}", 1.0)) for group, arrays in update.extras.items()}
    return replace(update, weights=weights, extras=extras)


def _times(arrays: Weights, scale: float) -> Weights:
    return arrays if scale == 1 else {**arrays, **add_scaled(zeros_like(arrays), arrays, scale)}


def replays(
    digests: Mapping[int, tuple[int, int]], updates: Mapping[int, ClientUpdate], received: tuple[int, int], state: GuardState
) -> Iterator[tuple[int, str]]:
    """The clients whose update has been counted already, each with a sentence.

    Of equal updates in one round the client with the lowest number keeps its: which one is the copy cannot be known, the model is the
    same whoever's it is, and the order of arrival must not matter. A client that trains twice on the same broadcast, because
    the round between did not change the model, may come to the same end twice.

    Args:
        digests: by client, of the updates that changed anything; who returns what was broadcast repeats nobody.
        updates: by client.
        received: the digest of what was broadcast.
        state: what was counted before.
    """
    first: dict[tuple[int, int], int] = {}
    for client_id, digest in sorted(digests.items()):
        before = [old for old in state.find(digest) if (old.client_id, old.received) != (client_id, received)]
        twin = first.setdefault(digest, client_id)
        if before:
            whose = "its own" if before[0].client_id == client_id else f"client {before[0].client_id}'s"
            yield (
                client_id,
                f"client {client_id}: its model is bit for bit {whose} of round {before[0].round_index}, which has been counted",
            )
        elif twin != client_id and _same(updates[twin].weights, updates[client_id].weights):
            yield client_id, f"client {client_id}: its model is bit for bit client {twin}'s of this round, which is counted once"


def _same(left: Weights, right: Weights) -> bool:
    return all(array.tobytes() == right[name].tobytes() for name, array in left.items())


def against_the_others(
    updates: Mapping[int, ClientUpdate], received: Weights, names: Sequence[str], limit: float
) -> Iterator[tuple[int, str]]:
    """The clients whose change points away from that of the others, each with a sentence.

    Each change counts with length 1, so that nobody's size decides. At most a minority is refused: where half or more of the clients
    point away from the rest there is no common direction.

    Args:
        updates: by client.
        received: what they started from.
        names: of the arrays that are trained.
        limit: the least cosine, in [-1, 0].
    """
    cosines = direction_cosines(list(updates.values()), received, names)
    away = [(client_id, cosine) for client_id, cosine in zip(updates, cosines, strict=True) if cosine < limit]
    if len(updates) < ENOUGH or 2 * len(away) >= len(updates):
        return
    for client_id, cosine in away:
        yield client_id, f"client {client_id}: its change points away from the others' (cosine {cosine:.2f}, expected at least {limit:g})"


def direction_cosines(updates: Sequence[ClientUpdate], received: Weights, names: Sequence[str]) -> list[float]:
    """For each client the cosine between its change and the mean direction of all others; 0 where either is nothing."""
    gram = np.zeros((len(updates), len(updates)))
    for name in names:
        if not is_float(received[name]):
            continue
        own = np.ascontiguousarray(received[name]).reshape(-1)
        flats = [np.ascontiguousarray(update.weights[name]).reshape(-1) for update in updates]
        for start in range(0, own.size, _BLOCK):
            place = slice(start, start + _BLOCK)
            changes = np.stack([np.subtract(flat[place], own[place], dtype=np.float64) for flat in flats])
            gram += changes @ changes.T
    lengths = np.sqrt(np.diag(gram))
    safe = np.where(lengths > 0, lengths, 1.0)
    cosines = gram / np.outer(safe, safe)
    found = []
    for k in range(len(updates)):
        others = [j for j in range(len(updates)) if j != k and lengths[j] > 0]
        length = math.sqrt(max(float(cosines[np.ix_(others, others)].sum()), 0.0)) if others else 0.0
        found.append(float(cosines[k, others].sum()) / length if length > 0 and lengths[k] > 0 else 0.0)
    return found
