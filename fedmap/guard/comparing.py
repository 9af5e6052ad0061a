"""The steps that need the round's other updates: changes much larger than usual, replays, and changes against all others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedmap.guard.options import Defence
from fedmap.guard.state import GuardState
from fedmap.records import ClientUpdate
from fedmap.weights import Array, Weights, add_scaled, difference, is_float, norm, zeros_like

ENOUGH = 3  # clients whose median means something: of two nobody can tell which one is wrong
_ABSURD = 1e6  # times the size of the model itself: refused even where nothing is known of what is usual
MANY = 5  # clients whose common direction means something
_ROUNDING = 1e-12  # of a sum of cosines, for each client: what is smaller is taken for 0
_KEPT = 0.9  # of what is known of a client's direction, from round to round
_BLOCK = 1 << 17  # numbers of all clients at a time: they stay in the processor's cache
_LEAST = 1 << 9  # numbers of one client at a time, at least


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
            floats = [name for name in names if is_float(weights[name])]
            weights = {**weights, **{name: _scaled(weights[name], received[name], scales[group]) for name in floats}}
    extras = {group: _times(arrays, scales.get(f"extra.{group}", 1.0)) for group, arrays in update.extras.items()}
    return replace(update, weights=weights, extras=extras)


def _scaled(array: Array, received: Array, scale: float) -> Array:
    return add_scaled({"": received}, difference({"": array}, {"": received}), scale)[""]


def _times(arrays: Weights, scale: float) -> Weights:
    return arrays if scale == 1 else {**arrays, **add_scaled(zeros_like(arrays), arrays, scale)}


def replays(
    digests: Mapping[int, tuple[int, int]],
    updates: Mapping[int, ClientUpdate],
    received: tuple[int, int],
    state: GuardState,
    *,
    own_start: bool = False,
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
        own_start: whether clients go on from models of their own, and may have arrived where they do not move any more.
    """
    first: dict[tuple[int, int], int] = {}
    for client_id, digest in sorted(digests.items()):
        before = [old for old in state.find(digest) if old.client_id != client_id or (old.received != received and not own_start)]
        if before:
            whose = "its own" if before[0].client_id == client_id else f"client {before[0].client_id}'s"
            yield (
                client_id,
                f"client {client_id}: its model is bit for bit {whose} of round {before[0].round_index}, which has been counted",
            )
            continue
        twin = first.setdefault(digest, client_id)
        if twin != client_id and _same(updates[twin].weights, updates[client_id].weights):
            yield client_id, f"client {client_id}: its model is bit for bit client {twin}'s of this round, which is counted once"


def _same(left: Weights, right: Weights) -> bool:
    return all(array.tobytes() == right[name].tobytes() for name, array in left.items())


def directions(
    updates: Mapping[int, ClientUpdate], received: Weights, names: Sequence[str], before: Mapping[int, float], lengths: Sequence[float]
) -> dict[int, float]:
    """For each client how far it has pointed along with the others: s <- 0.9 s + cosine, over the rounds that it took part in.

    The cosine is that between its change and the mean direction of the others, where each change counts with length 1, so that nobody's
    size decides, and where those that have pointed away so far do not count. Honest clients agree most in the first rounds
    (0.4 to 0.6 on the movies) and hardly in late ones (0 to 0.1), where a single round tells little: hence the sum.

    Args:
        updates: by client.
        received: what they started from.
        names: of the arrays that are trained.
        before: by client, s after the round before; a client that is not in it starts at 0.
        lengths: the norm of each change.
    """
    if len(updates) < MANY:
        return {}
    before = {client_id: before.get(client_id, 0.0) for client_id in updates}
    counted = np.array([value >= 0 for value in before.values()])
    for _ in range(2):  # those that turn out to point away do not count either
        cosines = _cosines_with_others(list(updates.values()), received, names, lengths, counted)
        now = {client_id: _KEPT * value + cosine for (client_id, value), cosine in zip(before.items(), cosines, strict=True)}
        again = np.array([value >= 0 for value in now.values()])
        if (again == counted).all():
            break
        counted = again
    return now


def against_the_others(standing: Mapping[int, float], limit: float) -> Iterator[tuple[int, str]]:
    """The clients that have pointed away from the others, each with a sentence.

    At most a minority is refused: where half or more point away from the rest there is no common direction.

    Args:
        standing: what `directions` found.
        limit: the least value, < 0.
    """
    away = [(client_id, value) for client_id, value in standing.items() if value < limit]
    if 2 * len(away) >= len(standing):
        return
    for client_id, value in away:
        yield (
            client_id,
            (
                f"client {client_id}: its changes point away from the others' (cosines summed over rounds {value:.2f}, expected at least {limit:g})"
            ),
        )


def _cosines_with_others(
    updates: Sequence[ClientUpdate], received: Weights, names: Sequence[str], lengths: Sequence[float], counted: npt.NDArray[np.bool_]
) -> list[float]:
    """For each client the cosine between its change and the sum of the counted others' unit changes; 0 where either is nothing.

    Each change is compared with the sum of all, which takes as long as reading them, and not with each other one. In float64, since a
    sum of many that cancel out must be seen to be nothing.
    """
    scales = np.array([1 / length if length > 0 else 0.0 for length in lengths])[:, None]
    rows, own = np.zeros(len(updates)), np.zeros(len(updates))  # with the sum of all that are counted, and with itself
    whole, size = 0.0, max(_BLOCK // len(updates), _LEAST)
    changes = np.empty((len(updates), size))
    for name in names:
        if not is_float(received[name]):
            continue
        start = np.ascontiguousarray(received[name]).reshape(-1)
        flats = [np.ascontiguousarray(update.weights[name]).reshape(-1) for update in updates]
        for place in (slice(low, min(low + size, start.size)) for low in range(0, start.size, size)):
            block = changes[:, : place.stop - place.start]
            for row, flat in zip(block, flats, strict=True):
                np.subtract(flat[place], start[place], out=row)
            block *= scales
            total = counted @ block
            rows += block @ total
            own += np.einsum("ij,ij->i", block, block)
            whole += float(total @ total)
    own = np.where(counted, own, 0.0)
    squares = whole - 2 * np.where(counted, rows, 0.0) + own  # of the others' sums, without adding them up for each client anew
    norms = np.sqrt(np.where(squares > _ROUNDING * len(updates), squares, 0.0))
    return [float(found) for found in np.divide(rows - own, norms, out=np.zeros(len(updates)), where=norms > 0)]
