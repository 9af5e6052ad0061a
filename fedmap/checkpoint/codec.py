"""Server states and client memories as bytes and as files, without pickle.

Any frozen dataclass made of numbers, strings, arrays, mappings, sequences, sets and further such dataclasses can be
stored. The format is a short header with a checksum, so that damaged bytes are told from good ones, and then a safetensors
container: the arrays as tensors, everything else as a JSON tree in its metadata. Loading never imports a name that
it read from a file: the caller says which class it expects.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import math
import mmap
import os
import re
import tempfile
import types
import typing
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from fedmap.errors import CheckpointError
from fedmap.weights import Array

T = TypeVar("T")

_FORMAT = 1
_MAGIC = b"FEDMAP%d\n" % _FORMAT  # followed by the CRC-32 of everything after it, in four bytes, lowest first
_CODES = {  # safetensors' names of the kinds of numbers
    "bool": "BOOL",
    **{f"{kind}{bits}": f"{code}{bits}" for kind, code in (("int", "I"), ("uint", "U")) for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
}
_DTYPES = {code: name for name, code in _CODES.items()}


def state_to_bytes(state: object) -> bytes:
    """A dataclass as bytes; `state_from_bytes` gives an equal one back, array for array and bit for bit.

    Raises:
        CheckpointError: the state holds a value of a kind that cannot be stored; its place is named.
    """
    file = io.BytesIO()
    _write(file, state)
    return file.getvalue()


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
    return _read(io.BytesIO(data), expected, also)


def save_state(path: Path, state: object) -> None:
    """Write a state to a file, atomically: after a crash the file holds the old state or the new one, never half of one."""
    write_atomically(path, lambda file: _write(file, state))


def load_state(path: Path, expected: type[T], also: Sequence[type] = (), *, mapped: bool = False) -> T:
    """Read a state from a file; see `state_from_bytes`. It takes the memory of its arrays and no more.

    Args:
        path: the file.
        expected: the class of the state.
        also: see `state_from_bytes`.
        mapped: leave the arrays in the file, which must stay as it is (it may be removed, but not everywhere): they take none of
            the process's own memory. What is written into them stays in the process.

    Raises:
        CheckpointError: the file is missing, unreadable, damaged or holds another class.
    """
    return _opened(path, lambda file: _read(file, expected, also, mapped=mapped))


def check_state(path: Path) -> None:
    """Look whether a file is a state as it was written, without making anything of it.

    Raises:
        CheckpointError: it is missing, unreadable or damaged.
    """
    _opened(path, _check)


def _opened(path: Path, read: Callable[[BinaryIO], T]) -> T:
    try:
        with path.open("rb") as file:
            return read(file)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; give the path of a saved checkpoint") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Replace a file by what `write` writes, in one step that also survives a power cut. Its owner alone can read it.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; the old file is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # created readable by its owner alone
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
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


def _write(file: BinaryIO, state: object) -> None:
    """Array by array from where they lie: a model may be half of the memory."""
    arrays: dict[str, Array] = {}
    tree = json.dumps(_encode(state, arrays, type(state).__name__))
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)  # so that each begins at a multiple of its numbers' size
    head: dict[str, Any] = {"__metadata__": {"tree": tree}}
    end = 0
    for key, array in ordered:
        head[key] = {"dtype": _CODES[array.dtype.name], "shape": array.shape, "data_offsets": (end, end + array.nbytes)}
        end += array.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-(len(_MAGIC) + 12 + len(text)) % 8)  # so that the numbers can be used where they lie in the file
    file.write(_MAGIC + bytes(4))
    crc = 0
    for part in (np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8), *(_octets(array) for _, array in ordered)):
        crc = zlib.crc32(part.data, crc)
        file.write(part.data)
    file.seek(len(_MAGIC))
    file.write(crc.to_bytes(4, "little"))


def _octets(array: Array) -> npt.NDArray[np.uint8]:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8)


def _check(file: BinaryIO) -> None:
    """Leaves the file where the container begins."""
    start = file.read(len(_MAGIC) + 12)  # a newer version's may be longer
    if (newer := re.match(rb"FEDMAP(\d{1,9})\n", start)) and int(newer[1]) > _FORMAT:
        raise CheckpointError(
            f"the saved state has format {int(newer[1])}, and this version of FedMAP reads up to {_FORMAT}; update FedMAP to continue"
        )
    if not start.startswith(_MAGIC):
        raise CheckpointError("this is not a state saved by this version of FedMAP; give the path of one of its checkpoints")
    begin = file.seek(len(_MAGIC) + 4)
    crc = 0
    while block := file.read(1 << 20):
        crc = zlib.crc32(block, crc)
    if crc != int.from_bytes(start[len(_MAGIC) : begin], "little"):
        raise CheckpointError(f"the saved state ({file.tell()} bytes) is damaged or cut short; use the checkpoint before it")
    file.seek(begin)


def _read(file: BinaryIO, expected: type[T], also: Sequence[type], *, mapped: bool = False) -> T:
    _check(file)
    try:
        tree, arrays = _container(file, mapped)
        return _decoded(tree, arrays, expected, also)
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"the saved state is not in the form that this version of FedMAP writes ({error!r:.100})") from error


def _container(file: BinaryIO, mapped: bool) -> tuple[str, dict[str, Array]]:
    """The metadata's tree and the arrays, each in memory of its own or in the file; nothing is allocated by what a made-up header claims."""
    begin = file.tell()
    size = file.seek(0, os.SEEK_END) - begin - 8
    file.seek(begin)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size:
        raise ValueError(f"a header of {length} bytes in {size}")
    head = json.loads(file.read(length))
    tree = head.pop("__metadata__")["tree"]
    first = file.tell()
    octets = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8) if mapped else None
    arrays: dict[str, Array] = {}
    end = 0
    for key, about in sorted(head.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (start, stop) = np.dtype(_DTYPES[about["dtype"]]), tuple(about["shape"]), about["data_offsets"]
        if start != end or not all(type(n) is int and n >= 0 for n in shape) or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"array {key!r:.40} lies at {start} to {stop}")
        if (end := stop) > size - length:
            raise ValueError(f"array {key!r:.40} ends after the end")
        if octets is None:
            array = np.empty(shape, dtype.newbyteorder("<"))
            file.readinto(array.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
        else:
            array = octets[first + start : first + stop].view(dtype.newbyteorder("<")).reshape(shape)
        arrays[key] = array.astype(dtype, copy=not array.flags.aligned)
    if end != size - length:
        raise ValueError(f"{size - length - end} bytes that are no array's")
    return tree, arrays


def _decoded(tree: str, arrays: Mapping[str, Array], expected: type[T], also: Sequence[type]) -> T:
    found = json.loads(tree)
    name = _name(expected)
    if found["dataclass"] != name:
        raise CheckpointError(f"expected a saved {name}, found {found['dataclass']}; resume with the strategy that wrote it")
    classes = _dataclasses_of(expected)
    for kind in also:
        classes |= _dataclasses_of(kind)
    return typing.cast(T, _decode(found, arrays, classes))


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _encode(value: object, arrays: dict[str, Array], place: str) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.name not in _CODES:
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
