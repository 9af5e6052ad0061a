"""The benchmark of faults, small: it runs as it is written, and every federation survives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmap.config import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_federations_survive_faults(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--quick", "--check", "--out", str(tmp_path / "faults.json")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())
    assert found["figures"]["survived"]["values"] == found["figures"]["tried"]["values"] == [7.0]
    assert {trial["fault"] for trial in found["trials"]} >= {"all clients fail", "a client out of memory", "an unreadable row"}
    assert "7 / 7" not in done.stdout, "the table has a line for each fault"
    assert "Faults survived / tried" in done.stdout
