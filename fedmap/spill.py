"""Where the updates of one round wait for each other: in memory, or, where that would be much, in a file.

Every step that needs all updates at once (medians of norms, robust means, a fixed order of summation) can then be taken, and the
server's own memory does not grow with the number of clients: what is read from the file is the system's cache, which gives way.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np

from fedmap.errors import StorageError
from fedmap.records import ClientUpdate
from fedmap.weights import Array, Weights

IN_MEMORY = 128 << 20  # bytes of one round's updates that are simply kept
_LINE = 64  # bytes; where arrays begin


@dataclass
class Spill:
    """A file without a name in a folder, gone with the process or with `close`.

    Attributes:
        folder: on a disk with room for a round's updates.
        expected: bytes of all updates of the round together.
        limit: up to here they stay in memory, >= 0.
    """

    folder: Path
    expected: int
    limit: int = IN_MEMORY
    _file: IO[bytes] | None = field(default=None, init=False)

    def keep(self, update: ClientUpdate) -> ClientUpdate:
        """The same update; its arrays lie in the file, and are read-only, if the round's updates are too many for memory.

        Raises:
            StorageError: the file cannot be written.
        """
        if self.expected <= self.limit:
            return update
        groups = {"": update.weights, **update.extras}
        try:
            kept = self._write(groups)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: the round's updates, {self.expected / 2**30:.1f} GiB in all, cannot be kept there ({error}); "
                "make room on that disk, or take fewer clients a round (clients_per_round)"
            ) from error
        return replace(update, weights=kept.pop(""), extras=kept)

    def close(self) -> None:
        """Forget the file; arrays that are still in use keep their part of it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, groups: Mapping[str, Weights]) -> dict[str, dict[str, Array]]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.folder, prefix=".updates-")  # noqa: SIM115, closed by `close`
        file = self._file
        start = file.seek(0, 2)
        start += file.write(bytes(-start % mmap.ALLOCATIONGRANULARITY))
        places: list[tuple[str, str, Array, int]] = []
        at = 0
        for group, arrays in groups.items():
            for name, array in arrays.items():
                at += file.write(bytes(-at % _LINE))
                places.append((group, name, array, at))
                at += file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.flush()
        found: dict[str, dict[str, Array]] = {group: {} for group in groups}
        if at == 0:
            return found
        mapped = mmap.mmap(file.fileno(), at, access=mmap.ACCESS_READ, offset=start)
        for group, name, array, place in places:
            found[group][name] = np.frombuffer(mapped, dtype=array.dtype, count=array.size, offset=place).reshape(array.shape)
        with contextlib.suppress(AttributeError, ValueError, OSError):
            mapped.madvise(mmap.MADV_SEQUENTIAL)
        return found
