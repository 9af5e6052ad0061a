import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fedmap.data.cache import cached_arrays, content_key, streamed_arrays
from fedmap.errors import DataError


def _numbers():
    return {"a": np.arange(12, dtype=np.int32).reshape(3, 4), "b": np.zeros((0, 5), np.float32)}


def test_arrays_are_built_once_and_come_back_read_only(tmp_path):
    calls = []

    def build():
        calls.append(1)
        return _numbers()

    for _ in range(3):
        arrays = cached_arrays(tmp_path / "deep" / "cache", "numbers-1", build)
        assert arrays["a"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
        assert arrays["a"].dtype == np.int32
        assert arrays["b"].shape == (0, 5)
        assert not arrays["a"].flags.writeable
        assert not arrays["b"].flags.writeable
    assert len(calls) == 1
    assert isinstance(arrays["a"], np.memmap)


def test_streamed_arrays_start_at_zero_and_are_filled_in_place(tmp_path):
    def fill(arrays):
        arrays["x"][1] = 7

    arrays = streamed_arrays(tmp_path, "stream", {"x": ((3, 2), "u1"), "none": ((0, 3), np.float32)}, fill)
    assert arrays["x"].tolist() == [[0, 0], [7, 7], [0, 0]]
    assert arrays["none"].shape == (0, 3)
    again = streamed_arrays(tmp_path, "stream", {"x": ((3, 2), "u1")}, lambda _: pytest.fail("it is in the cache"))
    assert again["x"].tolist() == arrays["x"].tolist()


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "header", "garbage", "format"])
def test_a_damaged_folder_is_built_again(tmp_path, damage, caplog):
    cached_arrays(tmp_path, "k", _numbers)
    array, header = tmp_path / "k" / "a.npy", tmp_path / "k" / "header.json"
    content = array.read_bytes()
    if damage == "truncate":
        array.write_bytes(content[:-4])
    elif damage == "flip":
        array.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "delete":
        array.unlink()
    elif damage == "header":
        header.unlink()
    elif damage == "garbage":
        header.write_bytes(b"[1, 2")
    else:
        header.write_text(header.read_text().replace('"format": 1', '"format": 0'))
    calls = []
    arrays = cached_arrays(tmp_path, "k", lambda: calls.append(1) or _numbers())
    assert calls == [1]
    assert arrays["a"][2, 3] == 11
    assert "damaged" in caplog.text
    cached_arrays(tmp_path, "k", lambda: pytest.fail("it was repaired"))
    assert [path.name for path in tmp_path.glob(".*.tmp")] == []


def test_a_failing_build_leaves_nothing_and_keeps_its_error(tmp_path):
    def build():
        raise OSError("poster.jpg is gone")

    with pytest.raises(OSError, match=r"poster\.jpg is gone"):
        cached_arrays(tmp_path, "k", build)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_what_a_killed_writer_left_is_removed(tmp_path):
    left = tmp_path / ".k.0123.tmp"
    left.mkdir()
    (left / "a.npy").write_bytes(b"half")
    cached_arrays(tmp_path, "k", _numbers)
    assert not left.exists()


def test_a_cache_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"file.cache cannot be written: .*dataset\.cache_dir"):
        cached_arrays(tmp_path / "file" / "cache", "k", _numbers)


@pytest.mark.parametrize("key", ["", "../k", ".hidden", "a/b"])
def test_a_key_must_be_a_plain_name(tmp_path, key):
    with pytest.raises(ValueError, match="not a cache name"):
        cached_arrays(tmp_path, key, _numbers)


def test_concurrent_threads_build_once(tmp_path):
    calls, results = [], []

    def build():
        calls.append(1)
        return {"a": np.full(1000, len(calls))}

    threads = [threading.Thread(target=lambda: results.append(cached_arrays(tmp_path, "k", build)["a"][0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [1] * 6
    assert len(calls) == 1


def _write_in_process(folder: str, value: int, results) -> None:
    results.put(int(cached_arrays(Path(folder), "k", lambda: {"a": np.full(50_000, value)})["a"].sum() // 50_000))


def test_concurrent_processes_agree_on_one_result(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_write_in_process, args=(str(tmp_path), value, results)) for value in (1, 2, 3)]
    for process in processes:
        process.start()
    seen = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(seen)) == 1
    assert seen[0] in (1, 2, 3)


def _write_and_wait(folder: str, begun) -> None:
    def fill(arrays):
        arrays["a"][:] = 1
        begun.set()
        time.sleep(60)

    streamed_arrays(Path(folder), "k", {"a": ((1000,), np.int64)}, fill)


def test_a_writer_that_is_killed_leaves_no_half_written_array(tmp_path):
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=_write_and_wait, args=(str(tmp_path), begun))
    process.start()
    assert begun.wait(60)
    process.kill()
    process.join()
    assert not (tmp_path / "k").exists()
    assert len(list(tmp_path.glob(".k.*.tmp"))) == 1
    arrays = streamed_arrays(tmp_path, "k", {"a": ((1000,), np.int64)}, lambda arrays: arrays["a"].__setitem__(0, 5))
    assert int(arrays["a"].sum()) == 5
    assert list(tmp_path.glob(".k.*.tmp")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_full_disk_is_an_error_and_not_a_crash(tmp_path):
    code = f"""
import pathlib, resource
from fedmap.data.cache import streamed_arrays
from fedmap.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    streamed_arrays(pathlib.Path({str(tmp_path)!r}), "k", {{"a": ((4 << 20,), "u1")}}, lambda arrays: arrays["a"].fill(1))
except DataError as error:
    print(error)
"""
    project = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=project)
    assert ended.returncode == 0, ended.stderr
    assert "cannot be written: [Errno 27] File too large. Free space there, or name another folder with dataset.cache_dir" in ended.stdout
    assert list(tmp_path.glob("*/*.npy")) == []


def test_the_key_depends_on_content_and_settings_alone():
    rows = np.arange(6)
    assert content_key(rows, {"size": 8, "name": "x"}) == content_key(rows.copy(), {"name": "x", "size": 8})
    different = {
        content_key(rows),
        content_key(rows.reshape(2, 3)),
        content_key(rows.astype(np.int32)),
        content_key(rows, 1),
        content_key(rows + 1),
    }
    assert len(different) == 5
    assert content_key("ab", "c") != content_key("a", "bc")
