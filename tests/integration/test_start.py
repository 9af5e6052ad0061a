"""Help and mistakes are answered without the packages that take seconds to import."""

import subprocess
import sys

import pytest

from benchmarks.start import COMMANDS, HEAVY, arguments_of, modules_of
from fedmap.config import PROJECT


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_answers_without_heavy_packages(name: str) -> None:
    _, words = COMMANDS[name]
    assert modules_of(words) & set(HEAVY) == set()


@pytest.mark.parametrize("name", ["server_main.py batch_size=0", "data_preparation.py path=/nowhere", "python -m fedmap report nowhere"])
def test_the_commands_that_are_measured_do_what_they_are_measured_for(name: str, tmp_path) -> None:
    status, words = COMMANDS[name]
    command = [sys.executable, *arguments_of(words, str(tmp_path))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"})
    assert done.returncode == status
    assert "batch_size=0: expected an integer" in done.stderr or "nowhere" in done.stderr


def test_what_is_looked_for_would_be_found() -> None:
    assert "torch" in modules_of(("-c", "import fedmap.local.training"))
