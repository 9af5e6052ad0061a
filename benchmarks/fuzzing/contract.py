"""What every parser of outside bytes promises, and how it is checked for one input.

Whatever the bytes are, a parser either takes them or raises an error of its own documentation; it comes back within seconds, takes
no more memory than the machine has to spare, runs nothing, and writes nothing outside the folder that it was given.
"""

from __future__ import annotations

import resource
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from fedmap.errors import FederationError

SECONDS = 5.0  # of this process's own time, for one input
MEMORY_BYTES = 1 << 30  # beyond what the process has when the target is ready
_WRITING = frozenset("wax+")
_FORBIDDEN = {
    "os.system": "ran a command",
    "os.exec": "ran a command",
    "os.fork": "started a process",
    "os.posix_spawn": "started a process",
    "subprocess.Popen": "started a process",
    "pickle.find_class": "loaded a pickle",
    "ctypes.dlopen": "loaded a library",
}
_PATHS = {
    "os.mkdir": (0,),
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.link": (1,),
    "os.chmod": (0,),
    "os.truncate": (0,),
    "shutil.rmtree": (0,),
}


class Target(Protocol):
    """A parser with what feeds it.

    Attributes:
        allowed: what it may raise besides `fedmap.errors`, as its documentation says.
        processes: whether it may start processes and open connections of its own.
    """

    allowed: tuple[type[BaseException], ...]
    processes: bool

    def __init__(self, folder: Path) -> None:
        """Get ready; everything that is written goes below the folder."""

    def seeds(self) -> Sequence[bytes]:
        """Good inputs, from which others are made."""

    def run(self, data: bytes) -> None:
        """Read one input. Whatever else it raises than what is allowed is a finding."""


@dataclass(frozen=True)
class Finding:
    """A broken promise.

    Attributes:
        kind: "crash", "slow", "memory" or "outside".
        place: the exception and the innermost line of the project in its traceback, by which findings are told apart.
        details: the traceback or a sentence.
    """

    kind: str
    place: str
    details: str


class Watch:
    """Notes what the running input does outside its folder. An audit hook stays until the process ends, so there is one for all."""

    def __init__(self) -> None:
        self.folder = ""
        self.processes = False
        self.seen: list[str] = []
        self._active = False
        sys.addaudithook(self._hook)

    def begin(self, folder: Path, *, processes: bool) -> None:
        """From now on nothing may be written outside the folder."""
        self.folder, self.processes, self.seen, self._active = str(folder.resolve()), processes, [], True

    def end(self) -> list[str]:
        """What was done outside since `begin`."""
        self._active = False
        return self.seen

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event == "open":
            path, mode = arguments[0], arguments[1]
            if isinstance(mode, str) and _WRITING & set(mode):
                self._path(event, path)
        elif event in _PATHS:
            for position in _PATHS[event]:
                self._path(event, arguments[position])
        elif event in _FORBIDDEN and not self.processes and not _importing():
            self.seen.append(f"{_FORBIDDEN[event]}: {event} {arguments!r:.200}")

    def _path(self, event: str, path: object) -> None:
        if isinstance(path, int):
            return
        text = path.decode(errors="replace") if isinstance(path, bytes) else str(path)
        whole = Path(text)
        if not whole.is_absolute():
            return  # relative to a folder that is open: the target's own, whose opening was seen
        if not str(whole.parent.resolve() / whole.name).startswith((self.folder, "/dev/null")):
            self.seen.append(f"{event} {text!r}")


def _importing() -> bool:
    """Whether a library is being imported for the first time, which may look for others."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def limit_memory() -> None:
    """From here on this process may grow by `MEMORY_BYTES`; what needs more raises a MemoryError, which no parser may."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def check(target: Target, data: bytes, folder: Path, watch: Watch) -> tuple[list[Finding], float]:
    """One input; returns the promises that it broke, and the processor seconds that it took."""
    found: list[Finding] = []
    watch.begin(folder, processes=target.processes)
    started = time.process_time()
    try:
        target.run(data)
    except (FederationError, *target.allowed):
        pass
    except MemoryError as error:
        found.append(Finding("memory", _place(error), f"more than {MEMORY_BYTES >> 20} MiB\n" + _trace(error)))
    except Exception as error:
        found.append(Finding("crash", _place(error), _trace(error)))
    seconds = time.process_time() - started
    found.extend(Finding("outside", sentence.partition(":")[0][:80], sentence) for sentence in watch.end())
    if seconds > SECONDS:
        found.append(Finding("slow", "", f"{seconds:.1f} s for {len(data):,} bytes"))
    return found, seconds


def _frames(error: BaseException) -> Iterator[str]:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/fedmap/" in frame.filename or frame.filename.endswith("/models.py"):
            yield f"{Path(frame.filename).name}:{frame.name}:{frame.lineno}"


def _place(error: BaseException) -> str:
    return f"{type(error).__name__} at {next(_frames(error), 'no line of the project')}"


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-4000:]
