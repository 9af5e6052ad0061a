"""The lock of a folder: one process at a time, and none for longer than its process lives."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmap.config import PROJECT
from fedmap.errors import StorageError
from fedmap.files import is_locked, locked

HOLD = """
import sys, time
from pathlib import Path
from fedmap.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_ends_with_its_process_and_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    assert not is_locked(path)
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(PROJECT)}) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        started = time.monotonic()
        with pytest.raises(StorageError, match=rf"{path.parent} is in use by process {holder.pid} on \S+; wait"), locked(path, 0.2):
            raise AssertionError("two at once")
        assert time.monotonic() - started >= 0.2
        assert is_locked(path)
        holder.kill()
    with locked(path, 5.0):
        assert is_locked(path)
        assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert not is_locked(path)
    with locked(path):
        pass


def test_a_place_where_nothing_can_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match=r"file/\.lock: cannot be written \((Not a directory|File exists)\); free space"),
        locked(tmp_path / "file" / ".lock"),
    ):
        raise AssertionError("locked nothing")
