"""Messages for a SuperLink in few pieces: what is small of a content travels in one array, the crate, and large arrays beside it.

Flower hands each array, each chunk of 5 MB and each record on as an object with an HTTP request of its own, six times on the way from
the server to a client and back. A request takes about 4 ms of processor time on both ends whatever is in it, so that the 160
arrays of a BERT and a ResNet took 8 s a round, four times their training. A crate holds, in the order of the content,

    the length of the list in 8 bytes, the list as JSON, the arrays' bytes, each from a multiple of 64 bytes on

and what comes out of it is what went in, byte for byte, and lies where it lay in the crate. The local runtime passes contents on as they are and has no crates.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmap.errors import UpdateError
from fedmap.flower.parcels import LateArray, filled, size_of
from fedmap.npy import Later

CRATE = "crate"
_LARGE = 4 << 20  # bytes from which an array travels beside the crate: it needs chunks of its own anyway, and no copy
_LENGTH = struct.Struct("<Q")
_LINE = 64  # bytes; where arrays begin, so that their numbers lie as the processor wants them
_RECORDS: Mapping[str, type[ConfigRecord] | type[MetricRecord]] = {"config": ConfigRecord, "metric": MetricRecord}


def crate(content: RecordDict) -> RecordDict:
    """The content with a crate; it is left as it was, and shares its arrays with what is returned."""
    listed: list[tuple[str, str, Any]] = []
    pieces: list[bytes | memoryview] = []
    found = RecordDict()
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            small = {name: array for name, array in record.items() if size_of(array) < _LARGE}
            for array in small.values():
                pieces += array.parts if isinstance(array, LateArray) else (array.data,)
                pieces.append(bytes(-size_of(array) % _LINE))
            about = [[name, *([a.dtype, a.shape, a.stype, size_of(a)] if name in small else ())] for name, a in record.items()]
            listed.append((key, "array", about))
            if len(small) < len(record):
                found[key] = filled(ArrayRecord(), {name: array for name, array in record.items() if name not in small})
        elif any(isinstance(value, bytes) for value in record.values()):  # JSON has no bytes
            found[key] = record
            listed.append((key, "whole", None))
        else:
            listed.append((key, "config" if isinstance(record, ConfigRecord) else "metric", dict(record)))
    head = json.dumps(listed).encode()
    later = Later((_LENGTH.pack(len(head)), head, bytes(-(_LENGTH.size + len(head)) % _LINE), *pieces))
    found[CRATE] = filled(ArrayRecord(), {"data": LateArray("uint8", (len(later),), "fedmap.crate", later)})
    return found


def uncrate(content: RecordDict) -> RecordDict:
    """The inverse of `crate`; a content without a crate as it is.

    Raises:
        UpdateError: the crate is damaged or was made by something else.
    """
    if CRATE not in content:
        return content
    try:
        return _opened(content)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, struct.error) as error:
        raise UpdateError(f"the message's crate is malformed: {error!r:.200}") from error


def _opened(content: RecordDict) -> RecordDict:
    data = memoryview(cast(ArrayRecord, content[CRATE])["data"].data)
    (length,) = _LENGTH.unpack_from(data)
    place = _LENGTH.size + length
    listed = json.loads(bytes(data[_LENGTH.size : place]))
    place += -place % _LINE
    found = RecordDict()
    for key, kind, about in listed:
        if key in found:
            raise ValueError(f"{key!r} comes twice")
        if kind == "whole":
            found[key] = content[key]
        elif kind in _RECORDS:
            found[key] = _RECORDS[kind](about)
        elif kind == "array":
            beside = cast(ArrayRecord, content.get(key, ArrayRecord()))
            arrays: dict[str, Array] = {}
            for name, *described in about:
                if described:
                    dtype, shape, stype, size = described
                    if not 0 <= size <= len(data) - place:
                        raise ValueError(f"{name!r} has {size} bytes, expected at most {len(data) - place}")
                    arrays[name] = _lying(dtype, shape, stype, data[place : place + size])
                    place += size + -size % _LINE
                else:
                    arrays[name] = beside[name]
            found[key] = filled(ArrayRecord(), arrays)
        else:
            raise ValueError(f"{key!r} is of the unknown kind {kind!r:.40}")
    if place != len(data):
        raise ValueError(f"{len(data) - place} bytes are left over")
    return found


def _lying(dtype: object, shape: object, stype: object, data: memoryview) -> Array:
    """An array whose bytes stay where they lie, which Flower's own constructor does not take."""
    if (
        not isinstance(dtype, str)
        or not isinstance(stype, str)
        or not isinstance(shape, list)
        or any(type(size) is not int for size in shape)
    ):
        raise TypeError(f"an array of dtype {dtype!r:.40}, shape {shape!r:.80} and kind {stype!r:.40}")
    made = Array.__new__(Array)
    made.__dict__.update(dtype=dtype, shape=tuple(shape), stype=stype, data=data)
    return made
