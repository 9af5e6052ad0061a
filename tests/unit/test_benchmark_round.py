"""What the benchmarks of a round and of deployment rest on: processor time of whole trees, rounds cut out of it, scores."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.deployed import Model
from benchmarks.process_tree import Recorder, running, tree_seconds
from benchmarks.round_systems import Timing, environment_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

# a program that starts another, which starts a third, and ends at once; the third computes for 0.4 s and is nobody's child any more
ORPHAN = """
import os, sys, time
if os.fork() == 0:
    if os.fork() == 0:
        end = time.process_time() + 0.4
        while time.process_time() < end: pass
    os._exit(0)
os._exit(0)
"""


def test_no_process_is_lost_from_a_tree(tmp_path: Path) -> None:
    environment = environment_of()
    with Recorder(seconds=0.05) as recorder, running([sys.executable, "-c", ORPHAN], tmp_path / "log", tmp_path, environment) as root:
        recorder.pids.append(root.pid)
        while root.poll() is None:
            seconds = tree_seconds(root.pid)
            time.sleep(0.02)
    assert root.returncode == 0
    assert max(seconds, recorder.readings[-1][1]) >= 0.35
    assert tree_seconds(root.pid) == 0.0  # it has ended


def test_a_trees_environment_is_its_own(tmp_path: Path) -> None:
    code = "import os; print(os.environ.get('PYTHONPATH'), os.environ['OMP_NUM_THREADS'])"
    for path, told in (("", "None 1"), ("/somewhere", "/somewhere 1")):
        environment = environment_of(**({"PYTHONPATH": path} if path else {}))
        with running([sys.executable, "-c", code], tmp_path / "log", tmp_path, environment) as root:
            root.wait(60)
        assert (tmp_path / "log").read_text().strip() == told


def test_a_round_is_read_between_two_readings() -> None:
    recorder = Recorder(readings=[(10.0, 1.0), (11.0, 2.0), (13.0, 2.0), (14.0, 5.0)])
    assert recorder.at(10.5) == pytest.approx(1.5)
    assert recorder.at(13.5) - recorder.at(10.5) == pytest.approx(2.0)


def test_scores_of_a_model() -> None:
    labels = np.array([[1, 0, 0], [0, 1, 0]], dtype=np.uint8)
    timing = Timing([], [], 0.0, np.array([[2.0, -1.0, 0.0], [-2.0, 3.0, 0.0]], dtype=np.float32), labels)
    expected = np.mean([np.log1p(np.exp(-x)) for x in (2.0, 1.0, 0.0, 2.0, 3.0, 0.0)])
    assert timing.loss == pytest.approx(expected)
    assert timing.precision == 1.0  # both labels that occur are ranked right; the third does not


def test_numbers_of_a_model() -> None:
    assert Model("", (), {"a": (2, 3), "b": (), "c": (4,)}).numbers == 11


def test_own_processor_time_is_in_the_tree() -> None:
    assert tree_seconds(os.getpid()) >= 0.9 * time.process_time() - 0.05
