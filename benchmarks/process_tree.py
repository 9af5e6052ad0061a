"""Processor seconds and memory of a program with everything that it starts, orphans included. Linux only.

    python -m benchmarks.process_tree COMMAND ...

runs a command as the root of a tree that loses nobody: processes whose parent ends become children of this one, which collects
their times. So the sum over the living processes of a tree, of their own times and of those of the children that they have
waited for, is the time of all processes that were ever in it, whenever it is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

_PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>
_TICKS = os.sysconf("SC_CLK_TCK")


def tree_seconds(pid: int) -> float:
    """Processor seconds, user and system, of a process and all its descendants so far, to a hundredth for each of them."""
    return sum(_seconds(process, 11, 12, 13, 14) for process in _tree(pid))  # utime, stime, cutime, cstime


def _seconds(pid: int, *places: int) -> float:
    """Processor seconds of a process; places as in proc(5), counted from the state."""
    with contextlib.suppress(OSError, IndexError):  # it ended meanwhile, and its parent has its time
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(fields[place]) for place in places) / _TICKS
    return 0.0


def _tree(pid: int) -> list[int]:
    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.Error:
        return []


@dataclass
class Peak:
    """What was seen of single processes, by pid.

    Attributes:
        processes: the largest resident set of each, in bytes, as the kernel kept it.
        seconds: processor seconds of each, its children's not counted, up to the last look at it.
        names: the command line of each.
    """

    processes: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def look(self, pid: int) -> None:
        """Read the marks and the clocks of a tree."""
        for process in _tree(pid):
            with contextlib.suppress(OSError, psutil.Error, StopIteration):
                lines = Path(f"/proc/{process}/status").read_text().splitlines()
                kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
                self.processes[process] = max(1024 * kilobytes, self.processes.get(process, 0))
                self.names[process] = " ".join(psutil.Process(process).cmdline())
                self.seconds[process] = max(_seconds(process, 11, 12), self.seconds.get(process, 0.0))


@contextlib.contextmanager
def running(command: Sequence[str | Path], log: Path, cwd: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program as the root of a tree; whatever of it is left is killed at the end of the block."""
    words = [sys.executable, "-m", "benchmarks.process_tree", *map(str, command)]
    project = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(part for part in (project, os.environ.get("PYTHONPATH", "")) if part)
    own = {**environment, "PROCESS_TREE_PYTHONPATH": environment.get("PYTHONPATH", ""), "PYTHONPATH": path}
    with log.open("wb") as output:
        root = subprocess.Popen(words, cwd=cwd, env=own, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield root
    finally:
        for process in reversed(_tree(root.pid)):
            with contextlib.suppress(psutil.Error):
                psutil.Process(process).kill()
        root.wait()


@dataclass
class Recorder:
    """Reads trees again and again in a thread of its own, inside the block.

    Attributes:
        pids: of the trees' roots; more may be added.
        seconds: between two readings.
        readings: (unix time, processor seconds of all trees so far).
        shares: the same time, and the seconds of each process so far by pid; short-lived ones are read up to their last look.
        peak: see `Peak`.
    """

    pids: list[int] = field(default_factory=list)
    seconds: float = 0.3
    readings: list[tuple[float, float]] = field(default_factory=list)
    shares: list[tuple[float, dict[int, float]]] = field(default_factory=list)
    peak: Peak = field(default_factory=Peak)
    _over: threading.Event = field(default_factory=threading.Event)
    _ended: dict[int, float] = field(default_factory=dict)

    def __enter__(self) -> Recorder:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            for pid in list(self.pids):
                self._ended[pid] = max(tree_seconds(pid), self._ended.get(pid, 0.0))
                self.peak.look(pid)
            now = time.time()
            self.readings.append((now, sum(self._ended.values())))
            self.shares.append((now, dict(self.peak.seconds)))
            if self._over.wait(self.seconds):
                return

    def at(self, moment: float) -> float:
        """Processor seconds at a unix time, between the readings around it."""
        times, values = zip(*self.readings, strict=True)
        return float(np.interp(moment, times, values))

    def between(self, start: float, end: float) -> dict[int, float]:
        """Processor seconds of each process, by pid, from the reading next to a unix time to the one next to another."""
        first, last = (min(self.shares, key=lambda share: abs(share[0] - moment))[1] for moment in (start, end))
        return {pid: seconds - first.get(pid, 0.0) for pid, seconds in last.items()}


def main(command: Sequence[str]) -> int:
    """Run the command and collect every process that it leaves behind; returns the command's exit status."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    environment = dict(os.environ)
    path = environment.pop("PROCESS_TREE_PYTHONPATH", "")
    environment.pop("PYTHONPATH", None)
    if path:
        environment["PYTHONPATH"] = path
    first = subprocess.Popen(command, env=environment)
    status = -1
    while True:
        try:
            pid, code = os.wait()
        except ChildProcessError:
            break
        if pid == first.pid:
            status = first.returncode = os.waitstatus_to_exitcode(code)
            time.sleep(0.1)  # what it has just ended is on its way
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
