"""Server states and client memories as bytes and as files, without pickle.

Any frozen dataclass made of numbers, strings, arrays, mappings, sequences, sets and further such dataclasses can be
stored. The format is a short header with a checksum, so that damaged bytes are told from good ones, and then a safetensors
container: the arrays as tensors, everything else as a JSON tree in its metadata. Loading never imports a name that
it read from a file: the caller says which class it expects.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
import tempfile
import types
import typing
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fedmap.errors import CheckpointError
from fedmap.weights import Array

T = TypeVar("T")

_FORMAT = 1
_MAGIC = b"FEDMAP%d\n" % _FORMAT  # followed by the CRC-32 of everything after it, in four bytes, lowest first


def state_to_bytes(state: object) -> bytes:
    """A dataclass as bytes; `state_from_bytes` gives an equal one back, array for array and bit for bit.

    Raises:
        CheckpointError: the state holds a value of a kind that cannot be stored; its place is named.
    """
    return b"".join(_header_and_container(state))


def _header_and_container(state: object) -> tuple[bytes, bytes]:
    arrays: dict[str, Array] = {}
    tree = json.dumps(_encode(state, arrays, type(state).__name__))
    container: bytes = save_tensors(arrays, metadata={"tree": tree})
    return _MAGIC + zlib.crc32(container).to_bytes(4, "little"), container


def state_from_bytes(data: bytes, expected: type[T], also: Sequence[type] = ()) -> T:
    """The dataclass that `state_to_bytes` stored.

    Args:
        data: the stored bytes.
        expected: the class of the state, e.g. `type(aggregator.init(weights, layout))`.
        also: further dataclasses that may stand in fields that are annotated with one of their base classes.

    Raises:
        CheckpointError: the bytes are damaged or cut short, were written by a newer version or not by FedMAP at all, or hold
            another class.
    """
    if (newer := re.match(rb"FEDMAP(\d{1,9})\n", data)) and int(newer[1]) > _FORMAT:
        raise CheckpointError(
            f"the saved state has format {int(newer[1])}, and this version of FedMAP reads up to {_FORMAT}; update FedMAP to continue"
        )
    if not data.startswith(_MAGIC):
        raise CheckpointError("this is not a state saved by this version of FedMAP; give the path of one of its checkpoints")
    start = len(_MAGIC) + 4
    container = data[start:]
    if zlib.crc32(container) != int.from_bytes(data[len(_MAGIC) : start], "little"):
        raise CheckpointError(f"the saved state ({len(data)} bytes) is damaged or cut short; use the checkpoint before it")
    try:
        return _decoded(container, expected, also)
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError, SafetensorError) as error:
        raise CheckpointError(f"the saved state is not in the form that this version of FedMAP writes ({error!r:.100})") from error


def _decoded(container: bytes, expected: type[T], also: Sequence[type]) -> T:
    arrays = load_tensors(container)
    found = json.loads(_tree(container))
    name = _name(expected)
    if found["dataclass"] != name:
        raise CheckpointError(f"expected a saved {name}, found {found['dataclass']}; resume with the strategy that wrote it")
    classes = _dataclasses_of(expected)
    for kind in also:
        classes |= _dataclasses_of(kind)
    return typing.cast(T, _decode(found, arrays, classes))


def save_state(path: Path, state: object) -> None:
    """Write a state to a file, atomically: after a crash the file holds the old state or the new one, never half of one."""
    write_atomically(path, *_header_and_container(state))


def load_state(path: Path, expected: type[T], also: Sequence[type] = ()) -> T:
    """Read a state from a file; see `state_from_bytes`.

    Raises:
        CheckpointError: the file is missing, unreadable, damaged or holds another class.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; give the path of a saved checkpoint") from error
    try:
        return state_from_bytes(data, expected, also)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write_atomically(path: Path, *parts: bytes) -> None:
    """Replace a file by the parts, one after the other, in one step that also survives a power cut. Its owner alone can read it.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; the old file is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # created readable by its owner alone
        try:
            with os.fdopen(handle, "wb") as file:
                for part in parts:  # not joined: a model may be half of the memory
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
            _sync_folder(path.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)  # the new name is safe only when the folder is
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tree(container: bytes) -> str:
    # safetensors' in-memory reader gives no metadata; its header is a length in eight bytes and a JSON object
    length = int.from_bytes(container[:8], "little")
    return typing.cast(str, json.loads(container[8 : 8 + length])["__metadata__"]["tree"])


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _encode(value: object, arrays: dict[str, Array], place: str) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise CheckpointError(f"{place} has dtype {value.dtype}; only numbers and booleans can be saved")
        key = str(len(arrays))
        arrays[key] = np.asarray(value, order="C")
        return {"array": key}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _encode(getattr(value, f.name), arrays, f"{place}.{f.name}") for f in dataclasses.fields(value) if f.init}
        return {"dataclass": _name(type(value)), "fields": fields}
    if isinstance(value, Mapping):
        return {"mapping": [[_encode(k, arrays, place), _encode(v, arrays, f"{place}[{k!r}]")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_encode(v, arrays, f"{place}[{i}]") for i, v in enumerate(value)]}
    if isinstance(value, frozenset | set):
        return {"frozenset": [_encode(v, arrays, place) for v in sorted(value)]}
    raise CheckpointError(
        f"{place} is a {type(value).__name__}; a state may hold arrays, numbers, strings, mappings, sequences and dataclasses"
    )


def _decode(node: Any, arrays: Mapping[str, Array], classes: Mapping[str, type]) -> Any:
    if not isinstance(node, dict):
        return node
    if "array" in node:
        return arrays[node["array"]]
    if "mapping" in node:
        return {_decode(k, arrays, classes): _decode(v, arrays, classes) for k, v in node["mapping"]}
    if "list" in node:
        return [_decode(v, arrays, classes) for v in node["list"]]
    if "tuple" in node:
        return tuple(_decode(v, arrays, classes) for v in node["tuple"])
    if "frozenset" in node:
        return frozenset(_decode(v, arrays, classes) for v in node["frozenset"])
    cls = classes.get(node["dataclass"])
    if cls is None:
        raise CheckpointError(f"the saved state holds a {node['dataclass']}, which is not part of the expected state")
    values = {name: _decode(v, arrays, classes) for name, v in node["fields"].items()}
    hints = _hints(cls)
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            raise CheckpointError(f"the saved {node['dataclass']} has a {type(value).__name__} as {name}, expected {hints[name]}")
    try:
        return cls(**values)
    except TypeError as error:
        raise CheckpointError(f"the saved {node['dataclass']} has other fields than this version's: {error}") from error


_hints = functools.lru_cache(maxsize=256)(typing.get_type_hints)


def _fits(value: object, annotation: Any) -> bool:
    """Whether a decoded value is what an annotation says, as far as annotations of states go."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if annotation is Any:
        return True
    if annotation is None or annotation is types.NoneType:
        return value is None
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple:
        if not isinstance(value, tuple) or (arguments[-1:] != (...,) and len(value) != len(arguments)):
            return False
        kinds = itertools.repeat(arguments[0]) if arguments[-1:] == (...,) else arguments
        return all(_fits(item, kind) for item, kind in zip(value, kinds))  # noqa: B905, the repeated one does not end
    if isinstance(origin, type) and not issubclass(origin, np.ndarray) and arguments:
        if not isinstance(value, origin):
            return False
        if isinstance(value, Mapping):
            return all(_fits(key, arguments[0]) and _fits(item, arguments[1]) for key, item in value.items())
        return all(_fits(item, arguments[0]) for item in typing.cast(Collection[object], value))
    kind = origin or annotation
    return not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or isinstance(value, kind)


def _dataclasses_of(root: Any) -> dict[str, type]:
    """Every dataclass that the annotations of `root` lead to, by name."""
    found: dict[str, type] = {}
    todo: list[Any] = [root]
    while todo:
        item = todo.pop()
        todo.extend(typing.get_args(item))
        if isinstance(item, type) and dataclasses.is_dataclass(item) and _name(item) not in found:
            found[_name(item)] = item
            todo.extend(typing.get_type_hints(item).values())
    return found
