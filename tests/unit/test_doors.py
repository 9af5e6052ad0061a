"""The doors' small parts: names of runs, resolved paths, and programs that are started and ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf

from fedmap.config import PROJECT
from fedmap.errors import FederationError
from fedmap.flower import processes
from fedmap.flower.doors import resolved, run_name
from fedmap.flower.session import check_name


def test_a_run_is_named_after_its_folder() -> None:
    assert run_name(Path("/p/outputs/2026-01-31/12-00-00")) == "2026-01-31_12-00-00"
    assert run_name(Path("/p/outputs/hospital")) == "hospital"
    assert run_name(Path("/p/multirun/2026-01-31/12-00-00/3")) == "2026-01-31_12-00-00_3"
    for folder in ("/tmp/my runs/é (1)", "/.hidden/-x", "/", "/a"):
        assert check_name(run_name(Path(folder)))


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 200, "-rf"])
def test_a_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(FederationError, match="use letters, digits"):
        check_name(name)


def test_paths_of_the_data_become_absolute_and_interpolations_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create(
        {"hydra": {"x": 1}, "seed": 3, "dataset": {"root": "data", "cache_dir": "~/cache", "seed": "${seed}"}, "model": {"root": "data"}}
    )
    tree = resolved(cfg)
    assert tree["dataset"] == {"root": str(tmp_path / "data"), "cache_dir": os.path.expanduser("~/cache"), "seed": 3}
    assert tree["model"]["root"] == "data"
    assert "hydra" not in tree


SPAWNS = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


def children_of(pid: int) -> list[psutil.Process]:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if children := psutil.Process(pid).children(recursive=True):
            return children
        time.sleep(0.02)
    raise AssertionError("the program has started nothing")


def test_a_program_ends_with_everything_it_has_started(tmp_path: Path) -> None:
    children: list[psutil.Process] = []

    def work() -> None:
        with processes.running([sys.executable, "-c", SPAWNS], tmp_path / "a.log", tmp_path, os.environ) as process:
            children.extend([psutil.Process(process.pid), *children_of(process.pid)])
            raise RuntimeError("on the way out")

    with pytest.raises(RuntimeError, match="on the way out"):
        work()
    assert len(children) == 2
    assert not [child for child in children if child.is_running()]


STARTER = """
import os, sys
from pathlib import Path
from fedmap.flower import processes
with processes.running([sys.executable, "-c", sys.argv[1]], Path("a.log"), Path.cwd(), os.environ) as process:
    print(process.pid, flush=True)
    process.wait()
"""


def test_a_program_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", STARTER, SPAWNS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment) as starter:
        assert starter.stdout is not None
        program = psutil.Process(int(starter.stdout.readline()))
        family = [program, *children_of(program.pid), *psutil.Process(starter.pid).children()]
        assert len(family) == 4, "the program, what it started, and the starter's two children"
        starter.kill()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


def test_a_program_that_will_not_end_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        processes.end_tree(process.pid, patience=0.3)
        assert not psutil.pid_exists(process.pid)
    processes.end_tree(process.pid)  # it is gone: nothing to do


def test_sigterm_runs_the_finally_clauses() -> None:
    before = signal.getsignal(signal.SIGTERM)
    tidied = []

    def work() -> None:
        with processes.terminated_like_interrupted():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                tidied.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert tidied
    assert signal.getsignal(signal.SIGTERM) is before


def test_ports() -> None:
    port = processes.free_port()
    address = f"127.0.0.1:{port}"
    assert not processes.answers(address)
    with socket.create_server(("127.0.0.1", port)):
        assert processes.answers(address)
    assert processes.split_address("[::1]:8000") == ("::1", 8000)


def test_a_program_that_ends_early_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    address = f"127.0.0.1:{processes.free_port()}"
    code = "import sys; sys.exit('no such database')"
    message = r"(?s)ended with exit code 1; the end of .*x\.log:\nno such database"
    with (
        processes.running([sys.executable, "-c", code], log, tmp_path, os.environ) as process,
        pytest.raises(FederationError, match=message),
    ):
        processes.wait_until_answers(address, process, log)


def test_a_missing_program_is_named() -> None:
    with pytest.raises(FederationError, match=r"flower-nothing is not installed beside .*install requirements\.txt"):
        processes.program("flower-nothing")
    assert Path(processes.program("flower-superlink")).exists()


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    assert processes.tail(tmp_path / "none") == ""
    (tmp_path / "log").write_bytes(b"\n".join(b"line %d" % i for i in range(100)) + b"\n\xff")
    assert processes.tail(tmp_path / "log", 2) == "line 99\n\ufffd"
