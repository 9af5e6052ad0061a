"""`guardian.py PID CREATED`: ends a program and all that it has started when whoever started it is gone, even by SIGKILL.

Its standard input is a pipe whose other end the starter holds; the system closes that end however the starter ends.
"""

import contextlib
import os
import sys


def main(pid: int, created: float) -> None:
    """Wait for the end of standard input, then kill the program's session and descendants, if it is still the same program."""
    sys.stdin.buffer.read()
    import psutil  # only now: until then this process costs next to nothing

    with contextlib.suppress(psutil.Error):
        program = psutil.Process(pid)
        if program.create_time() != created:
            return
        family = [program, *program.children(recursive=True)]
        for process in [*family, *(p for p in psutil.process_iter() if _session(p.pid) == pid)]:
            with contextlib.suppress(psutil.Error):
                process.kill()


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
