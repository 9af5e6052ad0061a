"""Whole messages in packed form. What does not fit a code travels as it is, beside what does.

Down: the server packs its model x as it is; clients train from Q(x).
Up: a client packs the change d_k = y_k - Q(x), and the server adds it to x itself, not to Q(x): the rounding of the broadcast
never enters the server's model (a preserved central model: Philippenko and Dieuleveut, 2021, arXiv 2102.12528). With
lossless, the bits of y_k and x are compared instead (exclusive or), which gives y_k back bit for bit.

Error feedback (Karimireddy et al., 2019, arXiv 1901.09847), per client and array, e = 0 at first:

    p = d + e;   send C(p);   e <- p - C(p)

so that what a lossy code leaves out comes later. e is part of the client's memory of the run, by round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedmap.compression.codes import Code, Floats, make_code
from fedmap.compression.planes import Reader
from fedmap.compression.settings import EXACT, Compression
from fedmap.errors import UpdateError
from fedmap.randomness import generator
from fedmap.reasons import Reason
from fedmap.records import Broadcast, ClientUpdate
from fedmap.weights import Array, Weights

WEIGHTS = "weights"  # the group that is the model; every other is one of the message's extras
Shapes = Mapping[str, tuple[int, ...]]
_SLICE = 1 << 20  # numbers coded at a time: bounds the memory, and lets a scale follow its surroundings


@dataclass(frozen=True)
class Parcel:
    """One group of named arrays on its way.

    Attributes:
        whole: arrays that travel as they are.
        names: of the packed arrays, in the order of their bytes.
        data: the packed arrays, float32 all; b"" if there are none.
    """

    whole: Weights
    names: tuple[str, ...] = ()
    data: bytes | memoryview = field(default=b"", repr=False)


Parcels = dict[str, Parcel]


def pack_broadcast(broadcast: Broadcast, settings: Compression, seed: int) -> Parcels:
    """The server's model and extras for one round; `seed` is the federation's, for random rounding."""
    code = make_code(settings.down, settings)
    parcels = {}
    for group, arrays in _groups(broadcast):
        if code is None:
            parcels[group] = Parcel(arrays)
            continue
        rng = generator(seed, purpose=f"compression-{group}", round_index=broadcast.round_index)
        names = _fitting(arrays, _shapes(broadcast.weights), settings)
        data = b"".join(piece for name in names for part in _slices(_flat(arrays[name])) for piece in code.write(part, rng))
        parcels[group] = Parcel({name: array for name, array in arrays.items() if name not in names}, tuple(names), data)
    return parcels


def unpack_broadcast(parcels: Mapping[str, Parcel], settings: Compression, shapes: Shapes) -> dict[str, dict[str, Array]]:
    """The inverse of `pack_broadcast`, as far as the code allows: arrays by group.

    Args:
        parcels: by group.
        settings: what the message says.
        shapes: of the receiver's own model, by name.

    Raises:
        UpdateError: the parcels do not fit the model or are damaged.
    """
    code = make_code(settings.down, settings)
    found = {}
    for group, parcel in parcels.items():
        read = _opened(parcel, code, shapes, group)
        own = {name: _read(read, code, shapes[name]) for name in parcel.names}
        read.end()
        found[group] = _in_order({**parcel.whole, **own}, shapes)
    return found


def pack_update(
    update: ClientUpdate, received: Broadcast, settings: Compression, seed: int, residuals: Mapping[str, Weights]
) -> tuple[Parcels, dict[str, dict[str, Array]]]:
    """What a client sends, and what it keeps of it for its next round.

    An array that is not finite travels as it is, so that the server can say which; its residual stays as it was.

    Args:
        update: after training.
        received: the broadcast as the client has unpacked it.
        settings: what the message said.
        seed: the federation's.
        residuals: what the client has kept, by group; empty in its first round.

    Returns:
        Parcels and residuals, both by group; no residuals without error feedback.
    """
    code = make_code(settings.up, settings)
    feedback = settings.feedback and settings.up not in EXACT
    parcels: Parcels = {}
    kept: dict[str, dict[str, Array]] = {}
    for group, arrays in _groups(update):
        if code is None:
            parcels[group] = Parcel(arrays)
            continue
        rng = generator(seed, purpose=f"compression-{group}", round_index=received.round_index, client_id=update.client_id)
        before = residuals.get(group, {}) if feedback else {}
        names, pieces, left = [], [], dict(before)
        for name in _fitting(arrays, _shapes(received.weights), settings):
            values = _change(_flat(arrays[name]), _flat(received.weights[name]) if group == WEIGHTS else None, settings.up)
            if name in before:
                values = values + _flat(before[name])
            if not np.isfinite(arrays[name]).all() or (settings.up != "lossless" and not np.isfinite(values).all()):
                continue
            names.append(name)
            written = [(part, code.write(part, rng)) for part in _slices(values)]
            pieces += [piece for _, parts in written for piece in parts]
            if feedback:
                lost = [part - code.read(Reader(b"".join(parts)), len(part)) for part, parts in written]
                left[name] = np.concatenate(lost).reshape(arrays[name].shape)
        parcels[group] = Parcel({name: array for name, array in arrays.items() if name not in names}, tuple(names), b"".join(pieces))
        if feedback and left:
            kept[group] = left
    return parcels, kept


def unpack_update(parcels: Mapping[str, Parcel], sent: Broadcast, settings: Compression) -> dict[str, dict[str, Array]]:
    """The inverse of `pack_update`, as far as the code allows: arrays by group, to be checked like any others.

    Args:
        parcels: by group, as a stranger has sent them.
        sent: the broadcast that they answer, before it was packed: its names and shapes are the ones that count.
        settings: the server's own.

    Raises:
        UpdateError: unknown or repeated names, sizes that do not fit, damaged bytes, scales or places out of range.
    """
    code = make_code(settings.up, settings)
    shapes = {name: shape for name, shape in _shapes(sent.weights).items() if sent.weights[name].dtype == np.float32}
    found = {}
    for group, parcel in parcels.items():
        read = _opened(parcel, code, shapes, group)
        own: dict[str, Array] = {}
        for name in parcel.names:
            change = _read(read, code, shapes[name])
            own[name] = _arrived(change, sent.weights[name], settings.up) if group == WEIGHTS else change
        read.end()
        found[group] = _in_order({**parcel.whole, **own}, sent.weights)
    return found


def _groups(message: Broadcast | ClientUpdate) -> Iterator[tuple[str, Weights]]:
    yield WEIGHTS, message.weights
    yield from message.extras.items()


def _fitting(arrays: Weights, shapes: Shapes, settings: Compression) -> list[str]:
    """Names of the arrays that can be packed: float32, not too small, and known to the receiver."""
    return [
        name
        for name, array in arrays.items()
        if array.dtype == np.float32 and array.size >= settings.smallest and shapes.get(name) == array.shape
    ]


def _change(values: Floats, start: Floats | None, code: str) -> Floats:
    if start is None:
        return values
    if code == "lossless":
        return np.bitwise_xor(values.view(np.uint32), start.view(np.uint32)).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return values - start


def _arrived(change: Floats, start: Array, code: str) -> Array:
    if code == "lossless":
        bits = np.bitwise_xor(_flat(change).view(np.uint32), _flat(start).view(np.uint32))
        return bits.view(np.float32).reshape(change.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # the guard names what is not finite
        return np.asarray(change + np.asarray(start, np.float32))


def _opened(parcel: Parcel, code: Code | None, shapes: Shapes, group: str) -> Reader:
    """The parcel's bytes, if its names are ones that may be packed."""
    if parcel.names and code is None:
        raise UpdateError(f"{group}: {len(parcel.names)} arrays are packed, and nothing has asked for that", Reason.NAMES)
    unknown = sorted(set(parcel.names) - set(shapes))
    twice = sorted(set(parcel.names) & set(parcel.whole))
    if unknown or twice or len(set(parcel.names)) != len(parcel.names):
        problem = (
            f"unknown or of another kind, first {unknown[:3]!r:.200}"
            if unknown
            else f"there twice, first {twice[:3] or parcel.names[:3]!r:.200}"
        )
        raise UpdateError(f"{group}: packed arrays are {problem}; use the same model configuration on server and clients", Reason.NAMES)
    return Reader(parcel.data)


def _read(read: Reader, code: Code | None, shape: tuple[int, ...]) -> Floats:
    assert code is not None, "_opened has refused packed arrays without a code"
    size = int(np.prod(shape, dtype=np.int64))
    values = np.empty(size, np.float32)
    for start in range(0, size, _SLICE):
        stop = min(start + _SLICE, size)
        values[start:stop] = code.read(read, stop - start)
    return values.reshape(shape)


def _in_order(arrays: Weights, names: Iterable[str]) -> dict[str, Array]:
    """The arrays in the order of the names, then whatever else there is."""
    known = {name: arrays[name] for name in names if name in arrays}
    return {**known, **{name: array for name, array in arrays.items() if name not in known}}


def _slices(values: Floats) -> Iterator[Floats]:
    for start in range(0, len(values), _SLICE):
        yield values[start : start + _SLICE]


def _flat(array: Array) -> Floats:
    return np.ascontiguousarray(array, np.float32).reshape(-1)


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in weights.items()}
