"""The launcher: a program is run by copies of one process that has imported Flower, each fresh, and all gone with the session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedmap.flower import launcher
from tests.federations import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.skipif(sys.platform != "linux", reason="no copies elsewhere")]

PROGRAM = """
import json, os, sys
mine = {"pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv[1:], "flower": "flwr" in sys.modules,
        "fedmap": "fedmap" in sys.modules}
print(json.dumps(mine), flush=True)
if "wait" in sys.argv:
    sys.stdin.read()
os.kill(os.getpid(), 9) if "die" in sys.argv else sys.exit(3)
"""


@pytest.fixture
def front(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("l")
    program = home / "program"
    program.write_text(PROGRAM)
    folder = launcher.install(home, program)
    assert folder is not None
    return folder / "program"


@pytest.fixture
def session() -> Iterator[subprocess.Popen[str]]:
    """A shell that leads a session, as a SuperNode does, and runs what it is told."""
    shell = subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    yield shell
    shell.kill()
    shell.communicate()


def ask(session: subprocess.Popen[str], front: Path, *arguments: str) -> dict[str, object]:
    assert session.stdin is not None
    assert session.stdout is not None
    session.stdin.write(f"{front} {' '.join(arguments)} < /dev/null\n")
    session.stdin.flush()
    found: dict[str, object] = json.loads(session.stdout.readline())
    return found


def launchers(front: Path) -> list[psutil.Process]:
    place = str(front.parent.parent / "launcher")
    found = [p for p in psutil.process_iter(["cmdline", "status"]) if place in (p.info["cmdline"] or [])]
    return [p for p in found if p.info["status"] != psutil.STATUS_ZOMBIE]


def test_the_first_time_runs_the_program_itself_and_later_ones_copies(session: subprocess.Popen[str], front: Path) -> None:
    first = ask(session, front, "a")
    assert (first["flower"], first["arguments"]) == (False, ["a"])
    wait_for(lambda: (front.parent.parent / "launcher").exists(), 60, lambda: "no launcher")
    second, third = ask(session, front, "--token", "x"), ask(session, front, "die")
    (process,) = wait_for(lambda: found if len(found := launchers(front)) == 1 else None, 30, lambda: "copies that do not end")
    for copy in (second, third):
        assert copy["flower"] is True
        assert copy["fedmap"] is False, "a copy takes the product's code from the run, not from here"
        assert copy["parent"] == process.pid
    assert second["arguments"] == ["--token", "x"]
    assert len({first["pid"], second["pid"], third["pid"]}) == 3
    assert (front.parent.parent / "launcher").stat().st_mode & 0o077 == 0
    session.kill()
    session.wait()
    wait_for(lambda: not launchers(front), 30, lambda: "the launcher outlives its session")


def test_the_small_program_lasts_as_long_as_the_copy(session: subprocess.Popen[str], front: Path) -> None:
    ask(session, front)
    wait_for(lambda: (front.parent.parent / "launcher").exists(), 60, lambda: "no launcher")
    assert session.stdin is not None
    session.stdin.write(f"{front} wait; echo over\n")  # reads what the launcher has as its input, which is nothing
    session.stdin.flush()
    assert session.stdout is not None
    assert json.loads(session.stdout.readline())["flower"] is True
    assert session.stdout.readline() == "over\n"


def test_a_launcher_that_was_killed_is_replaced(session: subprocess.Popen[str], front: Path) -> None:
    ask(session, front)
    wait_for(lambda: launchers(front), 60, lambda: "no launcher")
    wait_for(lambda: (front.parent.parent / "launcher").exists(), 60, lambda: "no socket")
    launchers(front)[0].kill()
    wait_for(lambda: not launchers(front), 30, lambda: "still there")
    assert ask(session, front)["flower"] is False
    wait_for(lambda: launchers(front), 60, lambda: "no other launcher")
    wait_for(lambda: ask(session, front)["flower"] is True, 60, lambda: "no copy")


def test_a_home_whose_path_is_too_long_has_none(tmp_path: Path) -> None:
    assert launcher.install(tmp_path / ("x" * 100), tmp_path / "program") is None
    assert not any(os.scandir(tmp_path))
