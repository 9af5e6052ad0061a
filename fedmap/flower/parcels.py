"""Arrays in Flower messages: as they are, or packed by `fedmap.compression`.

A group of arrays lies under its key ("weights" or "extra.<group>"); what is packed of it lies in "packed.<key>" as bytes,
with the arrays' names in "names.<key>". The record "compression" of a train message says how.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE, SType
from flwr.supercore.inflatable.inflatable_object import InflatableObject

from fedmap import npy
from fedmap.compression import Compression
from fedmap.compression.parcels import WEIGHTS, Parcel, Parcels
from fedmap.errors import UpdateError
from fedmap.guard.form import Form, Kind, check_groups, read_npy
from fedmap.reasons import Reason
from fedmap.weights import Weights

_EXTRA, _PACKED, _NAMES = "extra.", "packed.", "names."
_STYPE = "fedmap.packed"
_LARGE = 1 << 20  # bytes
Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)
Made = TypeVar("Made", ArrayRecord, ConfigRecord, MetricRecord, RecordDict)


def of_kind(content: RecordDict, kind: type[Record]) -> dict[str, Record]:
    """A message's records of one kind, to read from; Flower's own properties check every key and value anew, at ten times the price."""
    return {key: record for key, record in content.items() if isinstance(record, kind)}


def filled(record: Made, values: Mapping[str, Any]) -> Made:
    """An empty record or content with these values, which are of its types; Flower checks each of them at ten times the price.

    Raises:
        TypeError: a key is no text.
    """
    if any(type(key) is not str for key in values):
        raise TypeError(f"expected texts as keys, got {list(values)!r:.200}")
    record.__dict__["_data"].update(values)
    return record


def arrays_to_record(weights: Weights) -> ArrayRecord:
    """Named arrays as a Flower record, in their own order."""
    return filled(ArrayRecord(), {name: _array(array) for name, array in weights.items()})


_DTYPE = functools.cache(str)  # NumPy makes the name anew each time


class _LateChunk(ArrayChunk):
    """A piece of a late array, as Flower sends it."""

    def __init__(self, later: npy.Later, start: int, stop: int) -> None:
        self.__dict__["piece"] = functools.partial(later.piece, start, stop)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """What lies in `data` of any other chunk."""
        return bytes(self.__dict__["piece"]())


class LateArray(Array):
    """Large bytes on their way out. They are made whenever they are asked for, so that a message takes no memory beside the model."""

    def __init__(self, dtype: str, shape: tuple[int, ...], stype: str, later: npy.Later) -> None:
        self.__dict__.update(dtype=dtype, shape=shape, stype=stype, later=later)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """What lies in `data` of any other array."""
        return bytes(self.__dict__["later"])

    @property
    def parts(self) -> Sequence[bytes | memoryview]:
        """The same where it lies."""
        later: npy.Later = self.__dict__["later"]
        return later.parts

    def slice_array(self) -> list[tuple[str, InflatableObject]]:
        """The chunks in which Flower sends it, each with its id; late as well."""
        if "_chunks" not in self.__dict__:
            later, size = self.__dict__["later"], FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
            chunks = [_LateChunk(later, start, min(start + size, len(later))) for start in range(0, len(later), size)]
            self.__dict__["_chunks"] = [(chunk.object_id, chunk) for chunk in chunks]
        return cast(list[tuple[str, InflatableObject]], self.__dict__["_chunks"])

    def __reduce__(self) -> tuple[type[Array], tuple[object, ...]]:
        return Array, (self.dtype, self.shape, self.stype, self.__dict__["later"])


LateArray.__qualname__ = Array.__qualname__  # by which Flower tells the other end what has come
_LateChunk.__qualname__ = ArrayChunk.__qualname__


def size_of(array: Array) -> int:
    """Bytes of an array's data."""
    return len(array.__dict__["later"] if isinstance(array, LateArray) else array.data)


def _array(array: npt.NDArray[np.generic]) -> Array:
    """What `Array(array)` is, made faster."""
    if array.nbytes >= _LARGE and array.flags.c_contiguous and array.dtype.kind in "biufc":
        return LateArray(_DTYPE(array.dtype), array.shape, SType.NUMPY, npy.Later.of(array))
    made = Array.__new__(Array)
    made.__dict__.update(dtype=_DTYPE(array.dtype), shape=array.shape, stype=SType.NUMPY, data=npy.to_bytes(array))
    return made


def record_to_arrays(record: ArrayRecord, kinds: Mapping[str, Kind] | None = None) -> dict[str, Any]:
    """The inverse of `arrays_to_record`.

    Args:
        record: of a message.
        kinds: what may be in it. Then nothing is allocated by what the bytes claim, and the arrays cannot be written to. None
            believes everything.

    Raises:
        UpdateError: the bytes of an array are none, or of an unknown or another kind.
    """
    if kinds is not None:
        if unknown := sorted(set(record) - set(kinds)):
            raise UpdateError(f"{len(unknown)} unknown tensors came, first {unknown[:3]!r:.200}", Reason.NAMES)
        return {name: read_npy(name, array.data, kinds[name]) for name, array in record.items()}
    arrays = {}
    for name, array in record.items():
        try:
            known = npy.view(array.data, np.dtype(array.dtype), array.shape) if array.stype == SType.NUMPY else None
            value: object = array.numpy() if known is None else known.copy()
        except Exception as error:  # NumPy's reader raises all sorts of errors on a stranger's bytes
            raise UpdateError(f"array {name!r} cannot be read: {error!r}") from error
        if not isinstance(value, np.ndarray):
            raise UpdateError(f"array {name!r} cannot be read: the bytes hold a {type(value).__name__}")
        arrays[name] = value
    return arrays


def put_parcels(content: RecordDict, parcels: Mapping[str, Parcel]) -> None:
    """Write groups of arrays into a message's content."""
    for group, parcel in parcels.items():
        key = group if group == WEIGHTS else f"{_EXTRA}{group}"
        content[key] = arrays_to_record(parcel.whole)
        if parcel.names:
            data = Array(dtype="uint8", shape=(len(parcel.data),), stype=_STYPE, data=bytes(parcel.data))
            content[f"{_PACKED}{key}"] = ArrayRecord({"data": data})
            content[f"{_NAMES}{key}"] = ConfigRecord({"names": list(parcel.names)})


def parcels_of(content: RecordDict, form: Form | None = None) -> Parcels:
    """The inverse of `put_parcels`; the model's group is always there.

    Args:
        content: of a message.
        form: what the arrays have to look like, where a stranger has sent them.

    Raises:
        UpdateError: an array cannot be read or is of another form, or packed arrays have no names or bytes.
        KeyError: the model is missing.
    """
    records = of_kind(content, ArrayRecord)
    keys = [WEIGHTS, *(key for key in records if key.startswith(_EXTRA))]
    if form is None:
        return {key.removeprefix(_EXTRA): _parcel(content, records, key) for key in keys}
    check_groups("the client", [key.removeprefix(_EXTRA) for key in keys[1:]], form.extras)
    kinds = {WEIGHTS: form.weights, **{f"{_EXTRA}{group}": arrays for group, arrays in form.extras.items()}}
    return {key.removeprefix(_EXTRA): _parcel(content, records, key, kinds[key]) for key in keys}


def _parcel(content: RecordDict, records: Mapping[str, ArrayRecord], key: str, kinds: Mapping[str, Kind] | None = None) -> Parcel:
    whole = record_to_arrays(records[key], kinds)
    packed = records.get(f"{_PACKED}{key}")
    if packed is None:
        return Parcel(whole)
    names = of_kind(content, ConfigRecord).get(f"{_NAMES}{key}", ConfigRecord()).get("names")
    if set(packed) != {"data"} or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UpdateError(f"{key}: the packed arrays are malformed, expected one piece of bytes and a list of names")
    return Parcel(whole, tuple(str(name) for name in names), packed["data"].data)


def put_compression(content: RecordDict, settings: Compression) -> None:
    """Say in a train message how it is packed, and how its answer is to be."""
    content["compression"] = ConfigRecord(dict(asdict(settings)))


def compression_of(content: RecordDict) -> Compression:
    """What a message says; a message without the record is not compressed.

    Raises:
        UpdateError: the server speaks of codes that this version does not know.
    """
    if "compression" not in of_kind(content, ConfigRecord):
        return Compression()
    found: dict[str, Any] = dict(of_kind(content, ConfigRecord)["compression"])
    try:
        settings = Compression(**found)
    except TypeError as error:
        raise UpdateError(
            f"the server's message is packed in an unknown way ({error}); use the same version on server and clients"
        ) from error
    settings.known()
    return settings
