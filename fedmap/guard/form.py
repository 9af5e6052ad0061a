"""What an update has to look like, from the server's own arrays: names, shapes and types of numbers, and so its bytes."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedmap import npy
from fedmap.errors import UpdateError
from fedmap.reasons import Reason
from fedmap.weights import Array, Weights

_HEADER = 10_000  # bytes of an .npy header at most; NumPy's own limit
_BESIDE = 1 << 20  # bytes for everything beside the arrays: signals, counts, names


@dataclass(frozen=True)
class Kind:
    """One array: its shape and its type of numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @staticmethod
    def of(array: Array) -> Kind:
        """The kind of an array."""
        return Kind(array.shape, array.dtype)

    @property
    def nbytes(self) -> int:
        """Of the numbers alone."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Form:
    """What the answer to one broadcast has to look like.

    Attributes:
        weights: the arrays that must come back, no more and no less.
        extras: the groups of further arrays that the strategy needs, no more and no less.
        scalars: the least and the greatest value of each number that the strategy needs; further ones may come.
        own_start: whether clients train on from models of their own, so that what they send is no step from the broadcast.
    """

    weights: Mapping[str, Kind]
    extras: Mapping[str, Mapping[str, Kind]] = field(default_factory=dict)
    scalars: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    own_start: bool = False

    @staticmethod
    def of(
        weights: Weights,
        names: Collection[str] | None = None,
        extras: Mapping[str, Weights] | None = None,
        scalars: Mapping[str, tuple[float, float]] | None = None,
        own_start: bool = False,
    ) -> Form:
        """The form around the server's own arrays.

        Args:
            weights: what was broadcast.
            names: of the arrays that must come back; None is all.
            extras: by group, arrays like which those of the clients must be.
            scalars: see the attribute.
            own_start: see the attribute.
        """
        kept = weights if names is None else {name: weights[name] for name in weights if name in names}
        return Form(
            weights={name: Kind.of(array) for name, array in kept.items()},
            extras={group: {name: Kind.of(array) for name, array in arrays.items()} for group, arrays in (extras or {}).items()},
            scalars=dict(scalars or {}),
            own_start=own_start,
        )

    @property
    def groups(self) -> dict[str, Mapping[str, Kind]]:
        """All groups of arrays; the model's own is ""."""
        return {"": self.weights, **self.extras}

    @functools.cached_property
    def max_bytes(self) -> int:
        """The most that a whole update may take: the arrays with their headers, and what is beside them."""
        return _BESIDE + sum(
            kind.nbytes + 128 + len(name) + 8 * len(kind.shape) for kinds in self.groups.values() for name, kind in kinds.items()
        )


def check_size(found: int, limit: int) -> None:
    """Refuse an update by its bytes, before anything is made of them.

    Raises:
        UpdateError: there are more than the limit.
    """
    if found > limit:
        raise UpdateError(
            f"the update takes {found} bytes, expected at most {limit}; train the server's model, send the strategy's extra arrays alone, "
            "or raise defence.max_bytes",
            Reason.SIZE,
        )


def check_kinds(who: str, found: Mapping[str, object], expected: Mapping[str, Kind]) -> None:
    """Refuse missing and unknown arrays.

    Raises:
        UpdateError: names the first of both.
    """
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise UpdateError(
            f"{who} sent other tensors than expected: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]!r:.200}",
            Reason.NAMES,
        )


def check_groups(who: str, found: Collection[str], expected: Collection[str]) -> None:
    """Refuse missing and unknown groups of further arrays.

    Raises:
        UpdateError: names them.
    """
    if missing := sorted(set(expected) - set(found)):
        raise UpdateError(
            f"{who} did not send {missing}, which the strategy needs from every client: let the clients train by the rule that the broadcast "
            "names, and keep its extras in an after_round hook",
            Reason.NAMES,
        )
    if unknown := sorted(set(found) - set(expected)):
        raise UpdateError(
            f"{who} sent {unknown[:3]!r:.200}, which the strategy does not expect; an aggregator that uses them says so with "
            "expected_extras(state)",
            Reason.NAMES,
        )


def check_kind(who: str, name: str, found: Kind, expected: Kind) -> None:
    """Refuse another shape, which NumPy might silently broadcast, and another type of numbers.

    Raises:
        UpdateError: names the array and both kinds.
    """
    if found.shape != expected.shape:
        raise UpdateError(f"{who}: {name} is {found}, expected {expected}", Reason.SHAPE)
    if found.dtype != expected.dtype:
        raise UpdateError(f"{who}: {name} is {found}, expected {expected}", Reason.DTYPE)


def read_npy(name: str, data: bytes | memoryview, expected: Kind) -> Array:
    """The array in the bytes of an .npy file, of the expected kind, over these very bytes.

    The header is only believed where it says what is expected, and nothing is allocated by what it claims. Objects, which
    NumPy would unpickle, are never expected.

    Raises:
        UpdateError: another kind, other bytes than the kind takes, or no .npy at all.
    """
    if (usual := npy.view(data, expected.dtype, expected.shape)) is not None:
        return usual
    head = io.BytesIO(data[: _HEADER + 16])
    try:
        version = np.lib.format.read_magic(head)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(head, max_header_size=_HEADER)
    except Exception as error:  # NumPy's reader raises all sorts of errors on a stranger's bytes
        raise UpdateError(f"array {name!r} cannot be read: {error!r:.200}", Reason.MALFORMED) from error
    check_kind("the client", name, Kind(tuple(shape), dtype), expected)
    start = head.tell()
    if len(data) - start != expected.nbytes:
        raise UpdateError(
            f"array {name!r} cannot be read: {len(data) - start} bytes of numbers, expected {expected.nbytes}", Reason.MALFORMED
        )
    flat: npt.NDArray[np.generic] = np.frombuffer(data, dtype=expected.dtype, offset=start)
    array = flat.reshape(expected.shape, order="F" if fortran else "C")
    return array if array.flags.aligned else array.copy()
