"""A SuperNode's pauses: short after an answer, Flower's own in the long run, and untouched where Flower's loop is another one."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from fedmap.flower import paced

_IDLE, _WORKING = 3, 0.5


def clock() -> tuple[paced.Clock, list[float]]:
    slept: list[float] = []
    return paced.Clock(slept.append), slept


def test_pauses_grow_to_flowers_own_and_begin_anew_after_an_answer() -> None:
    made, slept = clock()
    for _ in range(30):
        made.sleep(_IDLE)
    assert slept[0] == pytest.approx(0.2)
    assert slept[:12] == sorted(set(slept[:12])), "each is longer than the one before"
    assert all(pause <= 0.2 + 0.25 * sum(slept[:place]) + 1e-9 for place, pause in enumerate(slept)), "about a quarter of the time"
    assert slept[-15:] == [_IDLE] * 15
    made.sleep(_WORKING)
    made.sleep(_IDLE)
    assert slept[-2:] == pytest.approx([0.05, 0.2])


def test_in_the_long_run_nobody_asks_more_often_than_flower() -> None:
    made, slept = clock()
    while sum(slept) < 3600:
        made.sleep(_IDLE)
    assert len(slept) <= 3600 / _IDLE + 10


def test_the_rest_of_the_clock_is_pythons() -> None:
    made, slept = clock()
    made.sleep(7)
    assert slept == [7]
    assert made.monotonic is time.monotonic


def test_flowers_loop_is_the_one_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    flower = importlib.import_module(paced._LOOP)
    monkeypatch.setattr(flower, "time", time)
    made = clock()[0]
    assert paced.pace(flower, made)
    assert flower.time is made
    assert not paced.pace(flower, clock()[0]), "one that is not the system's clock is left alone"
    assert flower.time is made


@pytest.mark.parametrize(
    "source",
    [
        "import time\ndef loop():\n    time.sleep(5)\n    time.sleep(0.5)\n    time.sleep(0.5)\n",
        "import time\ndef loop():\n    time.sleep(3)\n    time.sleep(0.5)\n    time.sleep(0.5)\n    time.sleep(1)\n",
        "from time import sleep\ndef loop():\n    sleep(3)\n",
    ],
)
def test_another_loop_is_left_alone(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "another_loop.py"
    file.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    loop = importlib.import_module(file.stem)
    before = dict(vars(loop))
    try:
        assert not paced.pace(loop, clock()[0])
        assert vars(loop) == before
    finally:
        del sys.modules[file.stem]


def test_a_module_without_a_source_is_left_alone() -> None:
    assert not paced.pace(ModuleType("built"), clock()[0])


@pytest.mark.parametrize("loop", ["", "import time\ntime.sleep(0)\n", None])
def test_the_program_runs_whatever_flower_is_installed(loop: str | None, tmp_path: Path) -> None:
    for folder in ("flwr", "flwr/supernode"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    if loop is not None:
        (tmp_path / "flwr/supernode/start_client_internal.py").write_text(loop)
    program = tmp_path / "program"
    program.write_text("import json, sys\nprint(json.dumps([__name__, 'fedmap' in sys.modules, *sys.argv]))\nsys.exit(3)\n")
    command = [sys.executable, "-P", str(paced.__file__), str(program), "--insecure", "--port", "1"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout) == ["__main__", False, str(program), "--insecure", "--port", "1"]
